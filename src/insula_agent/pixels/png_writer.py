"""A PNG made of RGBA pixels (RFC 2083): header, compressed rows, end; written as the pixels come."""

from __future__ import annotations

import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSION = 6
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NO_FILTER = b"\0"
_RGBA_8 = (8, 6, 0, 0, 0)
"""Bits a channel, colour with alpha, and the only compression, filters and order that are used."""
_BYTES_PER_PIXEL = 4


class PngWriter:
    """``write`` takes bytes of the file, in order. Exactly 4·width·height bytes of :meth:`pixels` must come."""

    def __init__(
        self, write: Callable[[bytes], object], width: int, height: int, *, compression: int = COMPRESSION
    ) -> None:
        self._write = write
        self._row_size = width * _BYTES_PER_PIXEL
        self._rest = b""
        self._compressor = zlib.compressobj(compression)
        self._write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *_RGBA_8))

    def pixels(self, data: bytes) -> None:
        rows = self._rest + data
        whole = len(rows) - len(rows) % self._row_size
        for begin in range(0, whole, self._row_size):
            self._data(self._compressor.compress(_NO_FILTER + rows[begin : begin + self._row_size]))
        self._rest = rows[whole:]

    def finish(self) -> None:
        self._data(self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _data(self, compressed: bytes) -> None:
        if compressed:
            self._chunk(b"IDAT", compressed)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        checksum = zlib.crc32(kind + data)
        self._write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))
