"""The screen of a machine without agent, as RFB: what is read, what is said, what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import rfb
from insula.gui.rfb import Client, Event, Ready, Resized, Rows, Updated
from insula_proto.errors import RemoteProtocolError

WIDTH, HEIGHT = 40, 30
BELL = b"\2"


def hello(width: int = WIDTH, height: int = HEIGHT, name: bytes = b"QEMU") -> bytes:
    """The server's half of the handshake."""
    init = struct.pack(">HH16xI", width, height, len(name)) + name
    return b"RFB 003.008\n" + b"\1\1" + bytes(4) + init


def update(*rects: bytes) -> bytes:
    return struct.pack(">BxH", 0, len(rects)) + b"".join(rects)


def raw(x: int, y: int, width: int, height: int) -> bytes:
    pixels = bytes(n % 251 for n in range(4 * width * height))
    return struct.pack(">HHHHi", x, y, width, height, rfb.RAW) + pixels


def pseudo(encoding: int, width: int = 0, height: int = 0, *, y: int = 0, body: bytes = b"") -> bytes:
    return struct.pack(">HHHHi", 0, y, width, height, encoding) + body


def cut_text(size: int) -> bytes:
    return struct.pack(">B3xI", 3, size) + bytes(size)


RAWS = st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(0, 10), st.integers(0, 10)).map(lambda r: raw(*r))
PSEUDOS = st.sampled_from(
    [
        pseudo(rfb.DESKTOP_SIZE, 40, 30),
        pseudo(rfb.DESKTOP_SIZE, 50, 60),
        pseudo(rfb.EXTENDED_DESKTOP_SIZE, 40, 31, body=b"\1\0\0\0" + bytes(16)),
        pseudo(rfb.EXTENDED_DESKTOP_SIZE, 90, 90, y=1, body=bytes(4)),
        pseudo(rfb.EXTENDED_KEYS),
    ]
)
MESSAGES = st.one_of(
    st.lists(RAWS | PSEUDOS, max_size=4).map(lambda rects: update(*rects)),
    st.just(BELL),
    st.integers(0, 99).map(cut_text),
)
STREAMS = st.lists(MESSAGES, max_size=5).map(lambda messages: hello() + b"".join(messages))


def read(data: bytes, size: int = 1 << 20) -> list[Event]:
    client = Client()
    return [event for at in range(0, len(data), size) for event in client.receive(data[at : at + size])]


def test_handshake_says_what_is_wanted_and_no_password() -> None:
    client = Client()
    assert client.receive(b"RFB 003.008\n") == []
    assert client.pending() == b"RFB 003.008\n"
    assert client.receive(b"\2\1\2") == []
    assert client.pending() == b"\1"
    assert client.receive(hello()[14:]) == [Ready(WIDTH, HEIGHT)]
    said = client.pending()
    assert said[:1] == b"\0"
    assert said[1:21] == bytes((0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0))
    assert struct.unpack(">BxH4i", said[21:]) == (2, 4, 0, -223, -308, -258)
    assert client.pending() == b""


def test_pixels_come_as_whole_rows() -> None:
    data = raw(1, 2, 2, 2)
    assert read(hello() + update(data)) == [
        Ready(WIDTH, HEIGHT), Rows(1, 2, 2, data[12:20]), Rows(1, 3, 2, data[20:28]), Updated(),
    ]  # fmt: skip


def test_what_the_server_can_do_and_other_sizes_are_noted() -> None:
    client = Client()
    assert client.receive(hello() + update(pseudo(rfb.EXTENDED_KEYS), pseudo(rfb.DESKTOP_SIZE, 8, 9)))[1:] == [
        Resized(8, 9), Updated(),
    ]  # fmt: skip
    assert (client.has_keys, client.can_resize) == (True, False)
    # The size it has already, and one that was not done, are none.
    rects = [
        pseudo(rfb.EXTENDED_DESKTOP_SIZE, 8, 9, body=bytes(4)),
        pseudo(rfb.EXTENDED_DESKTOP_SIZE, 99, 99, y=1, body=bytes(4)),
    ]
    assert client.receive(update(*rects)) == [Updated()]
    assert client.can_resize


@given(STREAMS, st.integers(1, 50))
def test_any_split_gives_the_same_events(data: bytes, size: int) -> None:
    try:
        whole = read(data)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            read(data, size)
        return
    assert read(data, size) == whole


@given(STREAMS, st.data())
def test_mutated_bytes_raise_only_remote_error_and_rows_lie_on_the_screen(data: bytes, draw: st.DataObject) -> None:
    """MC-35, MC-49."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    width = height = 0
    try:
        for event in read(bytes(changed)):
            if isinstance(event, (Ready, Resized)):
                width, height = event.width, event.height
            elif isinstance(event, Rows):
                assert event.x + event.width <= width
                assert event.y < height
                assert len(event.pixels) == 4 * event.width
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"RFB 003.003\n",
        b"RFB 003.008\n\0",
        b"RFB 003.008\n\1\2",
        b"RFB 003.008\n\1\1\0\0\0\1",
        hello(0, 10),
        hello(10, 6145),
        hello(name=bytes(1025)),
        hello() + b"\1",
        hello() + b"\4",
        hello() + update(raw(0, 0, 41, 1)[:12]),
        hello() + update(raw(39, 29, 1, 2)[:12]),
        hello() + update(pseudo(5, 1, 1)),
        hello() + update(pseudo(rfb.DESKTOP_SIZE, 0, 1)),
        hello() + update(pseudo(rfb.EXTENDED_DESKTOP_SIZE, 10, 10, body=b"\x11")) + bytes(3),
        hello() + struct.pack(">B3xI", 3, 65537),
        hello() + struct.pack(">B3xi", 3, -4),
    ],
)
def test_what_may_not_come_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(data)


def test_of_the_largest_rectangle_no_more_than_a_row_is_kept() -> None:
    """MC-11."""
    client = Client()
    client.receive(hello(16384, 6144))
    client.receive(update(struct.pack(">HHHHi", 0, 0, 16384, 6144, rfb.RAW)))
    for _ in range(100):
        client.receive(bytes(65535))
        assert client.held <= 65536


def test_what_is_said_has_the_layout_of_the_protocol() -> None:
    assert rfb.update_request(800, 600, is_incremental=True) == bytes.fromhex("03 01 0000 0000 0320 0258")
    assert rfb.key_event(0x1E, is_press=True) == bytes.fromhex("ff 00 0001 00000000 0000001e")
    assert rfb.pointer_event(5, 3, 4) == bytes.fromhex("05 05 0003 0004")
    assert rfb.set_size(800, 600) == bytes.fromhex("fb 00 0320 0258 01 00 00000000 0000 0000 0320 0258 00000000")
