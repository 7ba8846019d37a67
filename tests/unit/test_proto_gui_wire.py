from __future__ import annotations

import struct
import tracemalloc

import pytest
from gui_strategies import FRAME_PICTURE, FROM_AGENT, FROM_HOST, GRANT_PICTURE, ICON, OURS_FROM_HOST
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import gui, gui_wire, limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.gui import Configure, Create, FramePicture, GrantPicture, Message
from insula_proto.gui_wire import Decoder, encode

EVERYTHING = (*gui.FROM_HOST, *(cls for cls in gui.FROM_AGENT if cls is not FramePicture))
LENGTHS = gui_wire.lengths(EVERYTHING)
WITH_FRAMES = (*gui.FROM_HOST, *(cls for cls in gui.FROM_AGENT if cls is not GrantPicture))
SOME = st.integers(0, 3) | st.just(0x7FFFFFFF)
ANY = st.one_of(FROM_AGENT, FROM_HOST, GRANT_PICTURE, ICON, OURS_FROM_HOST)


def raw(kind: int, body: bytes, window: int = 7) -> bytes:
    return struct.pack("<III", kind, window, len(body)) + body


def decode(kind: int, body: bytes, window: int = 7, *, frames: bool = False) -> Message:
    [message] = Decoder(WITH_FRAMES if frames else EVERYTHING).receive(raw(kind, body, window))
    return message


@given(ANY)
def test_decode_encoded_returns_same_message(message: Message) -> None:
    assert Decoder(EVERYTHING).receive(encode(message)) == [message]


@given(FRAME_PICTURE)
def test_decode_frame_picture_returns_same(message: Message) -> None:
    assert Decoder(WITH_FRAMES).receive(encode(message)) == [message]


@given(st.lists(ANY, max_size=5), st.integers(1, 64))
def test_decode_any_split_returns_same_messages(messages: list[Message], size: int) -> None:
    data = b"".join(map(encode, messages))
    decoder = Decoder(EVERYTHING)
    got = [m for start in range(0, len(data), size) for m in decoder.receive(data[start : start + size])]
    assert got == messages
    assert decoder.is_between_messages


@given(st.lists(ANY | FRAME_PICTURE, min_size=1, max_size=3), st.data(), st.booleans())
def test_decode_mutated_bytes_raises_only_remote_error(
    messages: list[Message], data: st.DataObject, frames: bool
) -> None:
    """MC-11, MC-35."""
    wire = bytearray(b"".join(map(encode, messages)))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        Decoder(WITH_FRAMES if frames else EVERYTHING).receive(bytes(wire))
    except RemoteProtocolError:
        return


PUBLISHED = [
    (gui.Key(7, True, -1, 2, 3, 38), 124, "<IiiII", (2, -1, 2, 3, 38)),
    (gui.Key(7, False, 1, 2, 3, 38), 124, "<IiiII", (3, 1, 2, 3, 38)),
    (gui.Button(7, True, 1, 2, 3, 1), 125, "<IiiII", (4, 1, 2, 3, 1)),
    (gui.Button(7, False, 1, 2, 3, 1), 125, "<IiiII", (5, 1, 2, 3, 1)),
    (gui.Motion(7, 1, -2, 3, False), 126, "<iiII", (1, -2, 3, 0)),
    (gui.Crossing(7, True, 1, 2, 3, 4, 5, True), 127, "<IiiIIII", (7, 1, 2, 3, 4, 5, 1)),
    (gui.Crossing(7, False, 1, 2, 3, 4, 5, False), 127, "<IiiIIII", (8, 1, 2, 3, 4, 5, 0)),
    (gui.Focus(7, True, 1, 2), 128, "<III", (9, 1, 2)),
    (gui.Focus(7, False, 1, 2), 128, "<III", (10, 1, 2)),
    (Create(7, -1, 2, 3, 4, 5, True), 130, "<iiIIII", (-1, 2, 3, 4, 5, 1)),
    (gui.Destroy(7), 131, "<", ()),
    (gui.Map(7, 9, True), 132, "<II", (9, 1)),
    (gui.Unmap(7), 133, "<", ()),
    (Configure(7, -1, 2, 3, 4, False), 134, "<iiIII", (-1, 2, 3, 4, 0)),
    (gui.Damage(7, 1, 2, 3, 4), 136, "<iiII", (1, 2, 3, 4)),
    (gui.Close(7), 137, "<", ()),
    (gui.ClipboardRequest(7), 139, "<", ()),
    (gui.ClipboardData(7, b"ab"), 140, "<2s", (b"ab",)),
    (gui.Title(7, b"hi"), 141, "<128s", (b"hi",)),
    (gui.KeymapNotify(7, bytes(range(32))), 142, "<32s", (bytes(range(32)),)),
    (gui.Dock(7), 143, "<", ()),
    (gui.WindowHints(7, 1, 2, 3, 4, 5, 6, 7, 8, 9), 144, "<9I", (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    (gui.WindowFlags(7, 1, 2), 145, "<II", (1, 2)),
    (gui.WindowClass(7, b"c", b"n"), 146, "<64s64s", (b"c", b"n")),
    (GrantPicture(7, 32, 32, (5,)), 147, "<IIIII", (0, 32, 32, 24, 5)),
    (gui.Cursor(7, 0x102), 148, "<I", (0x102,)),
    (gui.DumpAcknowledged(7), 149, "<", ()),
]


@pytest.mark.parametrize(("message", "kind", "layout", "fields"), PUBLISHED)
def test_encode_is_the_published_layout(message: Message, kind: int, layout: str, fields: tuple[object, ...]) -> None:
    assert encode(message) == raw(kind, struct.pack(layout, *fields))


def test_encode_frame_picture_goes_on_with_offset_and_row() -> None:
    assert encode(FramePicture(7, 10, 20, 8192)) == raw(147, struct.pack("<IIIIQI", 0x100, 10, 20, 24, 8192, 40))


@pytest.mark.parametrize("kind", sorted(LENGTHS))
def test_decode_wrong_length_refused_at_header_without_memory(kind: int) -> None:
    """MC-11: refused before the body is awaited."""
    shortest, longest = LENGTHS[kind]
    for length in {max(shortest - 1, 0), longest + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF} - {shortest}:
        decoder = Decoder(EVERYTHING)
        tracemalloc.start()
        with pytest.raises(RemoteProtocolError):
            decoder.receive(struct.pack("<III", kind, 7, length))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16384


@pytest.mark.parametrize("kind", [0, 123, 129, 135, 138, 150, 0x8000, 0x8002, 0xFFFFFFFF])
def test_decode_unknown_or_obsolete_type_refused(kind: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Decoder(EVERYTHING).receive(struct.pack("<III", kind, 7, 0))


def test_decode_unknown_type_skipped_where_told_so() -> None:
    decoder = Decoder(EVERYTHING, skips_unknown=True)
    data = raw(150, b"x" * 100) + raw(131, b"")
    assert [m for byte in data for m in decoder.receive(bytes([byte]))] == [gui.Unknown(7, 150), gui.Destroy(7)]
    with pytest.raises(RemoteProtocolError):
        decoder.receive(struct.pack("<III", 150, 7, gui_wire.MAX_SKIPPED + 1))


@pytest.mark.parametrize("side", [0, 0x80000000, 0xFFFFFFFF])
def test_decode_empty_or_negative_window_refused(side: int) -> None:
    """MC-35."""
    for size in ((side, 10), (10, side)):
        with pytest.raises(RemoteProtocolError):
            decode(130, struct.pack("<iiIIII", 0, 0, *size, 0, 0))
        with pytest.raises(RemoteProtocolError):
            decode(134, struct.pack("<iiIII", 0, 0, *size, 0))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (130, struct.pack("<iiIIII", 0, 0, 1, 1, 0, 2)),
        (132, struct.pack("<II", 0, 2)),
        (134, struct.pack("<iiIII", 0, 0, 1, 1, 0xFFFFFFFF)),
        (145, struct.pack("<II", 3, 1)),
        (148, struct.pack("<I", 1)),
        (148, struct.pack("<I", 0xFF)),
        (148, struct.pack("<I", 0x101)),
        (148, struct.pack("<I", 0x19A)),
        (148, struct.pack("<I", 0xFFFFFFFF)),
        (124, struct.pack("<IiiII", 4, 0, 0, 0, 0)),
        (128, struct.pack("<III", 0, 0, 0)),
    ],
)
def test_decode_impossible_value_refused(kind: int, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(kind, body)


def test_decode_window_zero_cannot_be_created() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(130, struct.pack("<iiIIII", 0, 0, 1, 1, 0, 0), window=0)


def dump(kind: int, width: int, height: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IIII", kind, width, height, 24) + rest


@pytest.mark.parametrize(
    "body",
    [
        dump(1, 32, 32, bytes(4)),
        dump(0, 0, 32, bytes(4)),
        dump(0, 32, 0, bytes(4)),
        dump(0, 16385, 1, bytes(4 * 17)),
        dump(0, 1, 6145, bytes(4 * 7)),
        dump(0, 32, 33, bytes(4)),  # a page too few
        dump(0, 0x10000, 0x10000, bytes(4)),  # 32 bits overflow to 0
        dump(0, 32, 32, bytes(5)),
        dump(0, 32, 32),
        dump(gui.DUMP_FRAME, 32, 32, bytes(12)),
    ],
)
def test_decode_grant_picture_with_too_little_memory_or_odd_length_refused(body: bytes) -> None:
    """MC-35, MC-36."""
    with pytest.raises(RemoteProtocolError):
        decode(147, body)


def test_decode_largest_picture_fits_its_largest_message() -> None:
    pages = limits.GUI_MAX_GRANTS
    picture = decode(147, dump(0, limits.GUI_MAX_WIDTH, limits.GUI_MAX_HEIGHT, bytes(4 * pages)))
    assert isinstance(picture, GrantPicture)
    assert len(picture.references) == 98304


@pytest.mark.parametrize(
    ("width", "height", "offset", "row"),
    [
        (0, 10, 0, 0),
        (10, 0, 0, 40),
        (16385, 1, 0, 65540),
        (1, 6145, 0, 4),
        (10, 10, 1, 40),
        (10, 10, 4095, 40),
        (10, 10, 0, 39),
        (10, 10, 0, 44),
        (10, 10, 0, 0),
        (10, 10, 0, 0xFFFFFFFF),
    ],
)
def test_decode_frame_picture_odd_place_or_row_refused(width: int, height: int, offset: int, row: int) -> None:
    """MC-36."""
    with pytest.raises(RemoteProtocolError):
        decode(147, dump(gui.DUMP_FRAME, width, height, struct.pack("<QI", offset, row)), frames=True)


def test_decode_grants_where_frames_are_used_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(147, dump(0, 32, 32, bytes(12)), frames=True)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"a\0b".ljust(128, b"\0"), b"a"),
        (b"x" * 128, b"x" * 127),
        (bytes(128), b""),
        (b"\x1b]0;\xff".ljust(128, b"\0"), b"\x1b]0;\xff"),
    ],
)
def test_decode_title_is_cut_at_nul_and_at_its_field(field: bytes, text: bytes) -> None:
    """MC-39."""
    assert decode(141, field) == gui.Title(7, text)


@pytest.mark.parametrize(
    "message",
    [
        Create(0, 0, 0, 1, 1),
        Create(1, 0, 0, 0, 1),
        Create(1, 2**31, 0, 1, 1),
        Configure(1, 0, 0, 1, -1),
        Configure(1, 0, 0, 1, 1, 2),  # type: ignore[arg-type]
        gui.WindowFlags(1, 1, 1),
        gui.Cursor(1, 0x101),
        gui.Title(1, b"a\0b"),
        gui.Title(1, b"x" * 128),
        gui.WindowClass(1, b"x" * 64, b""),
        FramePicture(1, 10, 10, 100),
        GrantPicture(1, 100, 100, (1,)),
        gui.Unknown(1, 2),
    ],
)
def test_encode_what_the_peer_would_refuse_raises(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


@given(
    st.builds(Create, SOME, SOME, SOME, SOME, SOME, SOME, st.integers(0, 3))
    | st.builds(Configure, SOME, SOME, SOME, SOME, SOME, st.integers(0, 3))
    | st.builds(gui.WindowFlags, SOME, SOME, SOME)
    | st.builds(gui.Cursor, SOME, st.integers(0x90, 0x1A0))
)
def test_encode_raises_exactly_where_decoding_would(message: Message) -> None:
    """(It checks numbers that it has just packed without taking them apart again.)"""
    body = gui_wire.encode_body(message)
    try:
        decode(message.kind, body, message.window)
    except RemoteProtocolError:
        with pytest.raises(LocalProtocolError):
            encode(message)
    else:
        assert encode(message) == raw(message.kind, body, message.window)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (65, 1, 260),
        (1, 65, 260),
        (0, 1, 0),
        (1, 0, 0),
        (2, 2, 15),
        (2, 2, 17),
        (0, 0, 4),
        (2**31, 2**31, 16),
        (64, 64, 0),
    ],
)
def test_decode_icon_too_large_or_of_another_size_refused(width: int, height: int, size: int) -> None:
    """MC-40."""
    with pytest.raises(RemoteProtocolError, match="icon"):
        decode(gui.Icon.kind, struct.pack("<II", width, height) + bytes(size))


def test_decode_icon_longer_than_the_largest_is_refused_with_its_header() -> None:
    """MC-11."""
    with pytest.raises(RemoteProtocolError, match="length"):
        Decoder(EVERYTHING).receive(struct.pack("<III", gui.Icon.kind, 1, 8 + 4 * 64 * 64 + 1))


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<I", 96) + bytes(24),
        struct.pack("<IiiIIII", 47, 0, 0, 10, 10, 0, 0),
        struct.pack("<IiiIIII", 481, 0, 0, 10, 10, 0, 0),
        struct.pack("<IiiIIII", 96, -1, 0, 10, 10, 0, 0),
        struct.pack("<IiiIIII", 96, 0, 6145, 10, 10, 0, 0),
        struct.pack("<IiiIIII", 96, 0, 0, 16385, 10, 0, 0),
        struct.pack("<IiiIIII", 96, 0, 0, 10, 0, 0, 0),
        struct.pack("<IiiIIII", 96, 0, 0, 10, 10, 0, 0) + b"x",
    ],
)
def test_decode_screens_that_cannot_be_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(gui.Screens.kind, body)


def test_decode_keyboard_that_is_not_ascii_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="ASCII"):
        decode(gui.Keyboard.kind, "dé".encode().ljust(384, b"\0"))
