"""What a qube's windows may, from features.

They are ``gui-NAME`` of the qube or its template, else ``gui-default-NAME`` of dom0. Names and values are the published
ones (gui-protocol §11). A value that cannot be does not keep windows from being shown: what stands in its place is the
default, which never allows more, and the problem is told.

========================= ======================================================================
``allow-fullscreen``      the qube's programs may take the whole screen
``override-redirect``     ``disable``: menus and tooltips are shown as windows
``allow-utf8-titles``     other scripts than ASCII in titles
``secure-copy-sequence``  keys like ``Ctrl-Shift-c``, or ``none``
``secure-paste-sequence`` the same
``max-clipboard-size``    bytes that may be copied from it or pasted into it
``max-clipboard-image``   pixels of an image that may be, as above; 0: no images (ours)
``window-background-color`` of a window without picture: ``0xRRGGBB``, or ``white`` and the like
========================= ======================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from insula.gui.control import Configure
from insula.gui.settings import COPY_KEYS, DEFAULT_CLIPBOARD, MIN_CLIPBOARD, PASTE_KEYS, WHITE, Sequence
from insula_proto import limits

PREFIX = "gui-"
DEFAULT_PREFIX = "gui-default-"
FALSE = ("", "0", "false", "no", "none")
_COLOURS = {"white": WHITE, "black": 0, "gray": 0x808080, "grey": 0x808080}
_COLOUR = re.compile(r"(?:0x|#)([0-9A-Fa-f]{6})")

Find = Callable[[str], str | None]
"""Value of a feature by its whole name, or None."""
Value = TypeVar("Value")


def configure(qube: str, colour: int, of_qube: Find, of_host: Find) -> tuple[Configure, tuple[str, ...]]:
    """What the process that shows the windows of ``qube`` is told, and what was wrong with features.

    ``of_qube`` looks at the qube and its template, ``of_host`` at dom0.
    """
    problems: list[str] = []

    def value(name: str, default: Value, parse: Callable[[str], Value]) -> Value:
        for feature, find in ((PREFIX + name, of_qube), (DEFAULT_PREFIX + name, of_host)):
            text = find(feature)
            if text is not None:
                try:
                    return parse(text)
                except ValueError as error:
                    problems.append(f"{feature}: {error}")
        return default

    made = Configure(
        qube,
        colour,
        allows_fullscreen=value("allow-fullscreen", False, _flag),
        allows_popups=value("override-redirect", True, _allows_popups),
        allows_utf8=value("allow-utf8-titles", False, _flag),
        clipboard_limit=value("max-clipboard-size", DEFAULT_CLIPBOARD, _clipboard),
        image_limit=value("max-clipboard-image", limits.GUI_MAX_IMAGE_PIXELS, _image),
        background=value("window-background-color", WHITE, _colour),
        copy=value("secure-copy-sequence", COPY_KEYS, _keys),
        paste=value("secure-paste-sequence", PASTE_KEYS, _keys),
    )
    return made, tuple(problems)


def _flag(text: str) -> bool:
    return text.lower() not in FALSE


def _allows_popups(text: str) -> bool:
    if text not in ("allow", "disable", "disabled"):
        raise ValueError(f"allow or disable, not {text[:20]!a}")
    return text == "allow"


def _clipboard(text: str) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if not MIN_CLIPBOARD <= number <= limits.GUI_MAX_CLIPBOARD:
        raise ValueError(f"{MIN_CLIPBOARD} to {limits.GUI_MAX_CLIPBOARD} bytes, not {text[:20]!a}")
    return number


def _image(text: str) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if not 0 <= number <= limits.GUI_MAX_IMAGE_PIXELS:
        raise ValueError(f"0 to {limits.GUI_MAX_IMAGE_PIXELS} pixels, not {text[:20]!a}")
    return number


def _colour(text: str) -> int:
    if text.lower() in _COLOURS:
        return _COLOURS[text.lower()]
    match = _COLOUR.fullmatch(text)
    if match is None:
        raise ValueError(f"a colour like 0x3465a4, not {text[:20]!a}")
    return int(match[1], 16)


def _keys(text: str) -> str:
    Sequence.parse(text)
    return text
