"""A PDF made of pixels: each page one image, compressed without loss, nothing else in it (PDF 1.4, ISO 32000-1).

Written as the pixels come, so a document of any length needs no more memory than a piece of one page.
"""

from __future__ import annotations

import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSION = 4
"""zlib's level: a third of the time of its default, for pages a tenth larger."""
POINTS_PER_INCH = 72
MAX_SIZE = 9_999_999_999
"""Bytes: the table at the end has ten digits for a place."""
_OBJECTS_PER_PAGE = 4
_FIRST_PAGE = 3
"""Objects 1 and 2 are the catalogue and the list of pages."""


class PdfTooLong(Exception):
    """The file would not fit its own table of contents, or the limit it was given."""


class PdfWriter:
    """``write`` takes bytes of the file, in order."""

    def __init__(self, write: Callable[[bytes], None], dots_per_inch: int, max_size: int = MAX_SIZE) -> None:
        self._write_out = write
        self._dots_per_inch = dots_per_inch
        self._max_size = min(max_size, MAX_SIZE)
        self._places: dict[int, int] = {}
        """Object → where it begins."""
        self._size = 0
        self._pages = 0
        self._compressor = zlib.compressobj(COMPRESSION)
        self._stream_begins = 0
        # Four bytes above 127: what carries files must see that this is not text.
        self._write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")

    def begin_page(self, width: int, height: int) -> None:
        """A page of so many pixels; exactly 3·width·height bytes of :meth:`pixels` must follow."""
        page = self._page_object()
        across, up = self._points(width), self._points(height)
        self._begin_object(page)
        self._write(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s %s]/Contents %d 0 R"
            b"/Resources<</XObject<</I %d 0 R>>>>>>\nendobj\n" % (across, up, page + 1, page + 2)
        )
        drawing = b"q %s 0 0 %s 0 0 cm /I Do Q" % (across, up)
        self._begin_object(page + 1)
        self._write(b"<</Length %d>>stream\n%s\nendstream\nendobj\n" % (len(drawing), drawing))
        self._begin_object(page + 2)
        self._write(
            b"<</Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceRGB/BitsPerComponent 8"
            b"/Filter/FlateDecode/Length %d 0 R>>stream\n" % (width, height, page + 3)
        )
        self._stream_begins = self._size
        self._compressor = zlib.compressobj(COMPRESSION)

    def pixels(self, data: bytes) -> None:
        self._write(self._compressor.compress(data))

    def end_page(self) -> None:
        self._write(self._compressor.flush())
        length = self._size - self._stream_begins
        self._write(b"\nendstream\nendobj\n")
        self._begin_object(self._page_object() + 3)
        self._write(b"%d\nendobj\n" % length)
        self._pages += 1

    def finish(self) -> None:
        """Write what makes it a file. :raise PdfTooLong:"""
        kids = b" ".join([b"%d 0 R" % (_FIRST_PAGE + _OBJECTS_PER_PAGE * number) for number in range(self._pages)])
        self._begin_object(1)
        self._write(b"<</Type/Catalog/Pages 2 0 R>>\nendobj\n")
        self._begin_object(2)
        self._write(b"<</Type/Pages/Count %d/Kids[%s]>>\nendobj\n" % (self._pages, kids))
        table = self._size
        self._write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(self._places) + 1))
        self._write(b"".join([b"%010d 00000 n \n" % self._places[number] for number in sorted(self._places)]))
        self._write(b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(self._places) + 1, table))

    def _page_object(self) -> int:
        return _FIRST_PAGE + _OBJECTS_PER_PAGE * self._pages

    def _points(self, pixels: int) -> bytes:
        return b"%.3f" % (pixels * POINTS_PER_INCH / self._dots_per_inch)

    def _begin_object(self, number: int) -> None:
        self._places[number] = self._size
        self._write(b"%d 0 obj\n" % number)

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._max_size:
            raise PdfTooLong(f"the document would be longer than {self._max_size} bytes")
        self._size += len(data)
        self._write_out(data)
