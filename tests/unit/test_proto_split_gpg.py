"""Split GPG's codec: options in a block, frames of descriptors."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, split_gpg
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.split_gpg import Closed, Data, Exited, FrameDecoder

PRINTABLE = st.text(max_size=30).filter(str.isprintable)
FRAMES = st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=9000)), max_size=6)


@given(st.lists(PRINTABLE, max_size=8))
def test_command_round_trip(arguments: list[str]) -> None:
    block = split_gpg.encode_command(arguments)
    assert len(block) == 1028
    assert split_gpg.decode_command(block) == arguments


def test_command_has_the_published_form() -> None:
    block = split_gpg.encode_command(["-b", "--armor"])
    assert block == struct.pack("<I", 11) + b"\0-b\0--armor\0" + bytes(1024 - 12)
    assert split_gpg.encode_command([])[:5] == b"\0\0\0\0\0"


@pytest.mark.parametrize("arguments", [["a\0b"], ["x" * 1024], ["x"] * 512])
def test_command_that_does_not_fit_is_our_fault(arguments: list[str]) -> None:
    with pytest.raises(LocalProtocolError):
        split_gpg.encode_command(arguments)


@given(st.binary(max_size=40).map(lambda data: data.ljust(1028, b"\0")) | st.binary(max_size=1100))
def test_decode_command_any_bytes_only_the_remote_error(block: bytes) -> None:
    """MC-11."""
    try:
        arguments = split_gpg.decode_command(block)
    except RemoteProtocolError:
        return
    assert all(argument.isprintable() for argument in arguments)
    assert split_gpg.decode_command(split_gpg.encode_command(arguments)) == arguments


@pytest.mark.parametrize(
    "block",
    [
        b"", bytes(1027), bytes(1029), struct.pack("<I", 1024) + bytes(1024), b"\xff" * 4 + bytes(1024),
        struct.pack("<I", 2) + b"\0-b-" + bytes(1020), struct.pack("<I", 2) + b"-b\0" + bytes(1021),
        struct.pack("<I", 3) + b"\0\xff\xff\0" + bytes(1020), struct.pack("<I", 3) + b"\0\x1b[\0" + bytes(1020),
    ],
)  # fmt: skip
def test_decode_command_that_is_none_refused(block: bytes) -> None:
    """MC-11, MC-16."""
    with pytest.raises(RemoteProtocolError):
        split_gpg.decode_command(block)


@given(FRAMES, st.data())
def test_frames_any_split_gives_the_same_bytes(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(split_gpg.encode_data(index, content) for index, content in frames)
    stream += b"".join(split_gpg.encode_closed(index) for index in range(4)) + split_gpg.encode_exited(7)
    decoder = FrameDecoder(4, is_client=True)
    received: dict[int, bytes] = dict.fromkeys(range(4), b"")
    closed, status = [], -1
    rest = stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        for frame in decoder.receive(rest[:size]):
            if isinstance(frame, Data):
                assert 1 <= len(frame.data) <= limits.GPG_MAX_DATA
                received[frame.index] += frame.data
            elif isinstance(frame, Closed):
                closed.append(frame.index)
            else:
                status = frame.status
        rest = rest[size:]
    decoder.end()
    assert received == {index: b"".join(c for i, c in frames if i == index) for index in range(4)}
    assert (closed, status) == ([0, 1, 2, 3], 7)


@given(st.binary(max_size=200), st.booleans())
def test_frames_any_bytes_only_the_remote_error(data: bytes, is_client: bool) -> None:
    """MC-11."""
    try:
        frames = FrameDecoder(2, is_client=is_client).receive(data)
    except RemoteProtocolError:
        return
    for frame in frames:
        assert isinstance(frame, Exited) or frame.index in (0, 1)


FRAME = struct.Struct("<iI").pack


@pytest.mark.parametrize(
    "stream",
    [
        FRAME(2, 1), FRAME(0, 4097), FRAME(0, 0xFFFFFFFF), FRAME(-1, 1), FRAME(-257, 0), FRAME(-(2**31), 0),
        FRAME(0, 0) + FRAME(0, 1), FRAME(0, 0) + FRAME(0, 0), FRAME(-1, 0) + FRAME(-1, 0), FRAME(-1, 0) + b"x",
    ],
)  # fmt: skip
def test_frame_out_of_bounds_refused_at_its_header(stream: bytes) -> None:
    """MC-11, MC-21: too long, for nobody, for what is closed, after the end."""
    with pytest.raises(RemoteProtocolError):
        FrameDecoder(2, is_client=True).receive(stream)


def test_end_from_a_client_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="exit status"):
        FrameDecoder(2, is_client=False).receive(FRAME(-1, 0))


@pytest.mark.parametrize("stream", [b"", FRAME(0, 4), FRAME(0, 4) + b"abc", FRAME(0, 1) + b"a"])
def test_server_that_ends_without_a_status_is_noticed(stream: bytes) -> None:
    decoder = FrameDecoder(2, is_client=True)
    decoder.receive(stream)
    with pytest.raises(RemoteProtocolError, match="ended in the middle"):
        decoder.end()


@pytest.mark.parametrize("status", [-1, 256])
def test_status_that_is_none_is_our_fault(status: int) -> None:
    with pytest.raises(LocalProtocolError):
        split_gpg.encode_exited(status)
