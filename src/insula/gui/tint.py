"""A guest's icon in its qube's colour (MC-40). Pure.

Each pixel keeps how light it is, and takes hue and saturation of the label: so shapes can be told apart, and no program
can look like one of another qube, or of the host. Nearly black and nearly white have no hue to be seen, so the ends of
the scale are cut off. The icon lies on a ground in the label's own colour, as far as it is transparent.
"""

from __future__ import annotations

import colorsys
import functools

from insula.gui.desktop import Icon

DARKEST, LIGHTEST = 0.2, 0.8
"""Of a label with a hue; one without (grey, black) gets :data:`GREY_RANGE` around its own lightness."""
GREY_RANGE = 0.5
PLAIN_SIDE = 16
"""Pixels of an icon for windows that have none."""
_OPAQUE = 0xFF


@functools.lru_cache(maxsize=8)
def _scale(colour: int) -> tuple[bytes, ...]:
    """Blue, green and red for each lightness from 0 to 255 (as of HSL)."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*((colour >> shift & 0xFF) / 255 for shift in (16, 8, 0)))
    low, high = DARKEST, LIGHTEST
    if saturation == 0:
        low = lightness * (1 - GREY_RANGE)
        high = low + GREY_RANGE
    steps = []
    for level in range(256):
        red, green, blue = colorsys.hls_to_rgb(hue, low + (high - low) * level / 255, saturation)
        steps.append(bytes(round(255 * part) for part in (blue, green, red)))
    return tuple(steps)


def tinted(icon: Icon, colour: int) -> bytes:
    """Pixels to show: blue, green, red, 255 for each, row by row; ``colour``: of the label, ``0xRRGGBB``."""
    scale = _scale(colour)
    ground = (colour & 0xFF, colour >> 8 & 0xFF, colour >> 16)
    source, shown = icon.pixels, bytearray()
    for at in range(0, len(source), 4):
        blue, green, red, alpha = source[at : at + 4]
        pixel = scale[(max(blue, green, red) + min(blue, green, red)) // 2]
        if alpha != _OPAQUE:
            pixel = bytes(
                (part * alpha + under * (255 - alpha)) // 255 for part, under in zip(pixel, ground, strict=True)
            )
        shown += pixel
        shown.append(_OPAQUE)
    return bytes(shown)


PLAIN = Icon(PLAIN_SIDE, PLAIN_SIDE, bytes(4 * PLAIN_SIDE * PLAIN_SIDE))
"""For a window that has no icon: nothing but the ground."""
