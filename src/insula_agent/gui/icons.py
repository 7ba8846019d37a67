"""Icons of windows (``_NET_WM_ICON``, EWMH), in a size that the host takes.

A program gives several: width, height and that many pixels each, one after another. Only the heads are read until the
best one is found: the largest that fits, else the smallest of the others, which is made smaller.
"""

from __future__ import annotations

from insula_proto import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ICONS = 16
"""That are looked at; programs give five."""
MAX_SIDE = 1024
"""Pixels of one that is looked at."""


def choose(read: Callable[[int, int], bytes]) -> tuple[int, int, int] | None:
    """``read`` returns a part of the property: from that word on (of 32 bits), that many.

    Return first word of the pixels, width and height of the best icon; None: there is none that can be used."""
    found = []
    at = 0
    for _ in range(MAX_ICONS):
        head = read(at, 2)
        if len(head) < 8:
            break
        width, height = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            break
        found.append((at + 2, width, height))
        at += 2 + width * height
    largest = limits.GUI_MAX_ICON
    fitting = [icon for icon in found if max(icon[1:]) <= largest]
    if fitting:
        return max(fitting, key=lambda icon: icon[1] * icon[2])
    return min(found, key=lambda icon: icon[1] * icon[2], default=None)


def scaled(pixels: bytes, width: int, height: int) -> tuple[int, int, bytes]:
    """Width, height and pixels, no larger than the host takes: every n-th pixel. They are as many as they should be."""
    step = -(-max(width, height) // limits.GUI_MAX_ICON)
    if step == 1:
        return width, height, pixels
    columns, rows = range(0, width, step), range(0, height, step)
    kept = [pixels[4 * (row * width + column) : 4 * (row * width + column) + 4] for row in rows for column in columns]
    return len(columns), len(rows), b"".join(kept)


def load(read: Callable[[int, int], bytes]) -> tuple[int, int, bytes] | None:
    """Width, height and pixels (blue, green, red, alpha) of a window's icon; None: it has none."""
    best = choose(read)
    if best is None:
        return None
    at, width, height = best
    pixels = read(at, width * height)
    return scaled(pixels, width, height) if len(pixels) == 4 * width * height else None
