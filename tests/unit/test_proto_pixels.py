"""Sizes and pixels of what was opened elsewhere: only numbers in bounds and exactly the pixels they announce."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, pixels
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.pixels import PageCount, PageEnded, PageStarted, PixelDecoder, PixelsReceived

PixelEvent = PageCount | PageStarted | PixelsReceived | PageEnded

SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)


def encode(sizes: list[tuple[int, int]], bytes_per_pixel: int = pixels.RGB) -> bytes:
    pages = [pixels.encode_size(w, h) + bytes(w * h * bytes_per_pixel) for w, h in sizes]
    return pixels.encode_page_count(len(sizes)) + b"".join(pages)


def joined(events: list[PixelEvent]) -> list[PixelEvent]:
    """The same events, pixels of a page in one piece."""
    result: list[PixelEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, PixelsReceived) and isinstance(last, PixelsReceived):
            result[-1] = PixelsReceived(last.data + event.data)
        else:
            result.append(event)
    return result


@given(SIZES, st.data())
def test_receive_any_split_gives_the_same_pages(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    stream = encode(sizes)
    decoder = PixelDecoder(pixels.RGB)
    events: list[PixelEvent] = []
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, len(stream)))
        events += decoder.receive(stream[position : position + size])
        position += size
    decoder.end()
    expected: list[PixelEvent] = [PageCount(len(sizes))]
    for width, height in sizes:
        expected += [PageStarted(width, height), PixelsReceived(bytes(width * height * 3)), PageEnded()]
    assert joined(events) == expected


def test_receive_one_image_without_count_byte_by_byte() -> None:
    decoder = PixelDecoder(pixels.RGBA, pages=1)
    events = [event for byte in b"1 2\nABCDEFGH" for event in decoder.receive(bytes([byte]))]
    decoder.end()
    assert joined(events) == [PageStarted(1, 2), PixelsReceived(b"ABCDEFGH"), PageEnded()]


@given(st.binary(max_size=200))
def test_receive_any_bytes_raise_only_the_remote_error(data: bytes) -> None:
    """MC-11."""
    decoder = PixelDecoder(pixels.RGB)
    try:
        decoder.receive(data)
        decoder.end()
    except RemoteProtocolError:
        return
    assert encode_of(data) == data


def encode_of(data: bytes) -> bytes:
    decoder = PixelDecoder(pixels.RGB)
    out = b""
    for event in decoder.receive(data):
        if isinstance(event, PageCount):
            out += pixels.encode_page_count(event.pages)
        elif isinstance(event, PageStarted):
            out += pixels.encode_size(event.width, event.height)
        elif isinstance(event, PixelsReceived):
            out += event.data
    return out


@pytest.mark.parametrize(
    "answer",
    [
        b"0\n", b"10001\n", b"-1\n", b"+1\n", b"01\n", b" 1\n", b"1 \n", b"\n", b"x\n", b"99999999999999\n", b"1" * 13,
        "١\n".encode(), b"1\n0 1\n", b"1\n1 0\n", b"1\n10001 1\n", b"1\n1 10001\n", b"1\n1\n", b"1\n1 1 1\n",
        b"1\n1  1\n", b"1\n1,1\n", b"1\n-1 -1\n", b"1\n0x1 1\n", b"1\n1e3 1\n", b"1\n1 1\r\n",
    ],
)  # fmt: skip
def test_receive_size_that_is_none_refused_before_any_pixel(answer: bytes) -> None:
    """MC-11: too large, zero, negative, not a number."""
    with pytest.raises(RemoteProtocolError):
        PixelDecoder(pixels.RGB).receive(answer)


def test_receive_bytes_after_the_end_refused() -> None:
    """MC-21."""
    with pytest.raises(RemoteProtocolError, match="after the last"):
        PixelDecoder(pixels.RGB).receive(encode([(1, 1)]) + b"x")


@pytest.mark.parametrize("cut", range(len(encode([(1, 1), (2, 1)]))))
def test_end_too_early_refused(cut: int) -> None:
    decoder = PixelDecoder(pixels.RGB)
    decoder.receive(encode([(1, 1), (2, 1)])[:cut])
    with pytest.raises(RemoteProtocolError, match="ends before"):
        decoder.end()


@pytest.mark.parametrize("pages", [0, -1, limits.PIXELS_MAX_PAGES + 1])
def test_encode_page_count_out_of_bounds_is_our_fault(pages: int) -> None:
    with pytest.raises(LocalProtocolError):
        pixels.encode_page_count(pages)


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (limits.PIXELS_MAX_SIDE + 1, 1), (1, limits.PIXELS_MAX_SIDE + 1)])
def test_encode_size_out_of_bounds_is_our_fault(size: tuple[int, int]) -> None:
    with pytest.raises(LocalProtocolError):
        pixels.encode_size(*size)
