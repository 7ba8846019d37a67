"""The screen of a machine without agent: any bytes give rows on the screen, or the one documented error."""

from __future__ import annotations

import struct

import harness

from insula.gui import rfb
from insula.gui.rfb import Client, Ready, Resized, Rows
from insula_proto.errors import RemoteProtocolError

HELLO = b"RFB 003.008\n\1\1" + bytes(4) + struct.pack(">HH16xI", 40, 30, 4) + b"QEMU"
SEEDS = [
    HELLO + struct.pack(">BxHHHHHi", 0, 1, 1, 2, 2, 2, rfb.RAW) + bytes(16),
    HELLO + struct.pack(">BxHHHHHi", 0, 1, 0, 0, 50, 60, rfb.DESKTOP_SIZE),
    HELLO + struct.pack(">BxHHHHHi", 0, 1, 0, 0, 50, 60, rfb.EXTENDED_DESKTOP_SIZE) + b"\1\0\0\0" + bytes(16),
    HELLO + struct.pack(">BxHHHHHi", 0, 1, 0, 0, 0, 0, rfb.EXTENDED_KEYS) + b"\2" + struct.pack(">B3xI", 3, 2) + b"hi",
]
LONGEST = 65536
"""Bytes of a row."""


def fuzz_one(data: bytes) -> None:
    client = Client()
    width = height = 0
    try:
        for piece in harness.pieces(data):
            for event in client.receive(piece):
                if isinstance(event, (Ready, Resized)):
                    width, height = event.width, event.height
                elif isinstance(event, Rows):
                    assert event.x + event.width <= width
                    assert event.y < height
                    assert len(event.pixels) == 4 * event.width
    except RemoteProtocolError:
        return
    assert client.held <= LONGEST


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
