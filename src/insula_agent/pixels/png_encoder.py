"""``python3 -I -S …/pixels/png_encoder.py``: a size and RGBA pixels on standard input, a PNG on standard output."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent.pixels.png_writer import PngWriter
from insula_proto import pixels
from insula_proto.errors import RemoteProtocolError
from insula_proto.pixels import PageStarted, PixelDecoder, PixelsReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

FAST = 1
"""Compression: somebody waits, and the file does not stay."""
READ_SIZE = 1 << 16


def encode(source: BinaryIO, sink: BinaryIO) -> None:
    """:raise RemoteProtocolError: not a size and that many pixels. :raise OSError:"""
    decoder, writer = PixelDecoder(pixels.RGBA, pages=1), None
    while data := source.read(READ_SIZE):
        for event in decoder.receive(data):
            if isinstance(event, PageStarted):
                writer = PngWriter(sink.write, event.width, event.height, compression=FAST)
            elif isinstance(event, PixelsReceived):
                assert writer is not None
                writer.pixels(event.data)
    decoder.end()
    assert writer is not None
    writer.finish()
    sink.flush()


def main() -> int:
    try:
        encode(sys.stdin.buffer, sys.stdout.buffer)
    except (RemoteProtocolError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
