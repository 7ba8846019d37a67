"""What comes back of a document or an image that a disposable has opened: decimal sizes and raw pixels, nothing else.

``qubes.PdfConvert`` answers with a line ``PAGES``, then for each page a line ``W H`` and exactly 3·W·H bytes RGB
(agent-services §10); ``qubes.GetImageRGBA`` with one line ``W H`` and 4·W·H bytes RGBA (§1). Whoever reads it trusts
none of it: pixels are any bytes, so only the numbers can be wrong, and one that is ends it.

Sans I/O. Pixels are passed on as they come; nothing is held but an unfinished line.
"""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    PixelEvent = Union["PageCount", "PageStarted", "PixelsReceived", "PageEnded"]

RGB = 3
RGBA = 4
"""Bytes of a pixel."""


class PageCount(Value):
    """The document has so many pages."""

    __slots__ = ("pages",)
    pages: int

    def __init__(self, pages: int) -> None:
        self._fill(pages=pages)


class PageStarted(Value):
    """A page of this size, in pixels, follows."""

    __slots__ = ("height", "width")
    width: int
    height: int

    def __init__(self, width: int, height: int) -> None:
        self._fill(width=width, height=height)


class PixelsReceived(Value):
    """A piece of the page, of any length, row after row."""

    __slots__ = ("data",)
    data: bytes

    def __init__(self, data: bytes) -> None:
        self._fill(data=data)


class PageEnded(Value):
    """The page is whole."""

    __slots__ = ()


def encode_page_count(pages: int) -> bytes:
    """:raise LocalProtocolError: none, or too many."""
    if not 1 <= pages <= limits.PIXELS_MAX_PAGES:
        raise LocalProtocolError(f"{pages} pages; 1 to {limits.PIXELS_MAX_PAGES} can be sent")
    return b"%d\n" % pages


def encode_size(width: int, height: int) -> bytes:
    """:raise LocalProtocolError: a side that cannot be sent."""
    if not (1 <= width <= limits.PIXELS_MAX_SIDE and 1 <= height <= limits.PIXELS_MAX_SIDE):
        raise LocalProtocolError(f"{width} × {height} pixels; a side has 1 to {limits.PIXELS_MAX_SIDE}")
    return b"%d %d\n" % (width, height)


def _number(untrusted_digits: bytes, limit: int) -> int:
    """A decimal number without sign, blank or leading zero. :raise RemoteProtocolError:"""
    if not untrusted_digits.isdigit() or untrusted_digits.startswith(b"0") or len(untrusted_digits) > len(str(limit)):
        raise RemoteProtocolError("a size that is no number")
    number = int(untrusted_digits)
    if number > limit:
        raise RemoteProtocolError(f"a size of {number}, at most {limit} are allowed")
    return number


class PixelDecoder:
    """Takes the answer in any pieces. ``pages``: how many follow; None: a line says it first."""

    def __init__(self, bytes_per_pixel: int, pages: int | None = None) -> None:
        self._bytes_per_pixel = bytes_per_pixel
        self._pages = pages
        """Still to come, the one under way included."""
        self._line = b""
        self._missing = 0
        """Bytes of the page under way."""

    def receive(self, untrusted_data: bytes) -> list[PixelEvent]:
        """:raise RemoteProtocolError: a line that is none, a number out of its bounds, bytes after the end."""
        events: list[PixelEvent] = []
        position = 0
        while position < len(untrusted_data):
            if self._missing:
                piece = untrusted_data[position : position + self._missing]
                position += len(piece)
                self._missing -= len(piece)
                events.append(PixelsReceived(piece))
                if not self._missing:
                    events.append(PageEnded())
                    assert self._pages is not None
                    self._pages -= 1
            else:
                position = self._take_line(untrusted_data, position, events)
        return events

    def end(self) -> None:
        """The peer has closed. :raise RemoteProtocolError: something is missing."""
        if self._pages != 0:
            raise RemoteProtocolError("the answer ends before its last pixel")

    def _take_line(self, untrusted_data: bytes, position: int, events: list[PixelEvent]) -> int:
        if self._pages == 0:
            raise RemoteProtocolError("bytes after the last pixel")
        room = limits.PIXELS_MAX_LINE - len(self._line)
        end = untrusted_data.find(b"\n", position, position + room)
        if end < 0:
            self._line += untrusted_data[position : position + room]
            if len(self._line) >= limits.PIXELS_MAX_LINE:
                raise RemoteProtocolError("a size that is too long")
            return len(untrusted_data)
        line, self._line = self._line + untrusted_data[position:end], b""
        if self._pages is None:
            self._pages = _number(line, limits.PIXELS_MAX_PAGES)
            events.append(PageCount(self._pages))
        else:
            untrusted_width, _, untrusted_height = line.partition(b" ")
            width = _number(untrusted_width, limits.PIXELS_MAX_SIDE)
            height = _number(untrusted_height, limits.PIXELS_MAX_SIDE)
            self._missing = width * height * self._bytes_per_pixel
            events.append(PageStarted(width, height))
        return end + 1
