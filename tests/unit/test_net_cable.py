"""Frames on a cable, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.net.cable import MAX_FRAME, FrameDecoder, encode
from insula_proto.errors import RemoteProtocolError

frames = st.lists(st.binary(min_size=1, max_size=200), max_size=10)


@given(frames, st.lists(st.integers(1, 50), max_size=20))
def test_frames_come_back_whatever_the_pieces(sent: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    decoder, received = FrameDecoder(), []
    for size in [*sizes, len(stream)]:
        received += decoder.receive(stream[:size])
        stream = stream[size:]
    assert received == sent


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        received = decoder.receive(data)
    except RemoteProtocolError:
        return
    assert data.startswith(b"".join(map(encode, received)))


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**32 - 1])
def test_length_that_no_frame_has_is_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{length} bytes"):
        FrameDecoder().receive(length.to_bytes(4, "big"))


def test_largest_frame_passes() -> None:
    assert FrameDecoder().receive(encode(bytes(MAX_FRAME))) == [bytes(MAX_FRAME)]
