"""Invariant: any bytes in any split give pages in bounds with exactly their pixels, or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula_proto import limits, pixels
from insula_proto.errors import RemoteProtocolError
from insula_proto.pixels import PageEnded, PageStarted, PixelDecoder, PixelsReceived

SEEDS = [b"1\n1 1\nabc", b"2\n1 2\nabcdef3 1\nabcdefghi", b"10000\n10000 10000\n", b"0\n", b"1\n1 1\nabcd"]


def fuzz_one(data: bytes) -> None:
    decoder = PixelDecoder(pixels.RGB)
    missing = 0
    try:
        for piece in harness.pieces(data):
            for event in decoder.receive(piece):
                if isinstance(event, PageStarted):
                    assert missing == 0
                    assert 1 <= event.width <= limits.PIXELS_MAX_SIDE
                    assert 1 <= event.height <= limits.PIXELS_MAX_SIDE
                    missing = event.width * event.height * pixels.RGB
                elif isinstance(event, PixelsReceived):
                    missing -= len(event.data)
                    assert missing >= 0
                elif isinstance(event, PageEnded):
                    assert missing == 0
        decoder.end()
    except RemoteProtocolError:
        return
    assert missing == 0


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
