"""``python -m insula.testing.gui_painter WIDTH HEIGHT [PER_SECOND]``: a program whose whole window changes.

With each key press, or that often by itself.

Its two pictures are noise, which no encoder can make smaller, with a block in the middle that is black in one and white
in the other.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time
from typing import Any

import xcffib
import xcffib.xproto

TITLE = "painter"
BLOCK = 32
"""Pixels of a side of the block."""
_BAND = 200_000
"""Bytes of picture in one request."""
_Z_PIXMAP = 2


def picture(width: int, height: int, block: int) -> bytearray:
    """Noise with a block of that brightness in the middle, four bytes a pixel."""
    pixels = bytearray(random.Random(block).randbytes(4 * width * height))
    for row in range((height - BLOCK) // 2, (height + BLOCK) // 2):
        start = 4 * (row * width + (width - BLOCK) // 2)
        pixels[start : start + 4 * BLOCK] = bytes([block]) * (4 * BLOCK)
    return pixels


class Painter:
    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._connection: Any = xcffib.connect(os.environ["DISPLAY"])
        core = self._connection.core
        screen = self._connection.get_setup().roots[0]
        self._window, self._gc = self._connection.generate_id(), self._connection.generate_id()
        mask = xcffib.xproto.EventMask.KeyPress | xcffib.xproto.EventMask.Exposure
        core.CreateWindow(
            screen.root_depth, self._window, screen.root, 20, 40, width, height, 0, 1, screen.root_visual,
            xcffib.xproto.CW.EventMask, [mask],
        )  # fmt: skip
        core.ChangeProperty(0, self._window, xcffib.xproto.Atom.WM_NAME, 31, 8, len(TITLE), TITLE)
        core.ChangeProperty(0, self._window, xcffib.xproto.Atom.WM_CLASS, 31, 8, 16, b"painter\0Painter\0")
        core.CreateGC(self._gc, self._window, xcffib.xproto.GC.GraphicsExposures, [0])
        self._pictures = [self._upload(screen.root_depth, picture(width, height, block)) for block in (0, 255)]
        self._shown = 0
        core.MapWindow(self._window)
        self._connection.flush()

    def _upload(self, depth: int, pixels: bytearray) -> int:
        width, height = self._size
        pixmap = int(self._connection.generate_id())
        self._connection.core.CreatePixmap(depth, pixmap, self._window, width, height)
        rows = max(1, _BAND // (4 * width))
        for top in range(0, height, rows):
            count = min(rows, height - top)
            part = bytes(pixels[4 * width * top : 4 * width * (top + count)])
            self._connection.core.PutImage(
                _Z_PIXMAP, pixmap, self._gc, width, count, 0, top, 0, depth, len(part), part
            )  # fmt: skip
        return pixmap

    def _paint(self) -> None:
        width, height = self._size
        self._connection.core.CopyArea(self._pictures[self._shown], self._window, self._gc, 0, 0, 0, 0, width, height)
        self._connection.flush()

    def animate(self, per_second: float) -> None:
        """Until the X server goes; a picture that is late is not made up for."""
        while True:
            start = time.monotonic()
            while self._connection.poll_for_event() is not None:
                pass
            self._shown ^= 1
            self._paint()
            time.sleep(max(0.0, start + 1 / per_second - time.monotonic()))

    def run(self) -> None:
        """Until the X server goes."""
        poll = select.poll()
        poll.register(self._connection.get_file_descriptor(), select.POLLIN)
        while True:
            while (event := self._connection.poll_for_event()) is not None:
                if isinstance(event, xcffib.xproto.KeyPressEvent):
                    self._shown ^= 1
                self._paint()
            poll.poll()


if __name__ == "__main__":
    painter = Painter(int(sys.argv[1]), int(sys.argv[2]))
    if len(sys.argv) > 3:
        painter.animate(float(sys.argv[3]))
    painter.run()
