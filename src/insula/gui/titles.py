"""What is shown of a title that a guest chose (MC-39).

The name of the qube stands before it, set by the host; what follows is the guest's word, one line of printable
characters. Other scripts than ASCII are shown only where that was asked for: every script a guest can choose is more
code, of the font renderer, that it can reach.
"""

from __future__ import annotations

import unicodedata

MAX_MARKS = 2
"""Combining marks on one character; more pile up over lines above and below."""
MAX_NAME = 64
"""Characters of a class, after the qube's name."""
_ELLIPSIS = "…"


def _is_shown(character: str, marks: int) -> bool:
    category = unicodedata.category(character)
    if category.startswith("M"):
        return marks < MAX_MARKS
    # No controls and formats (direction overrides, joiners), surrogates, private or unassigned ones, line separators.
    return not category.startswith("C") and category not in ("Zl", "Zp")


def _visible_utf8(untrusted_text: bytes) -> str:
    shown: list[str] = []
    marks = 0
    for character in untrusted_text.decode("utf-8", "replace"):
        is_mark = unicodedata.category(character).startswith("M")
        # (A mark at the beginning would be drawn over the name of the qube.)
        is_shown = _is_shown(character, marks) and not (is_mark and not shown)
        marks = marks + 1 if is_mark else 0
        if is_shown:
            shown.append(" " if unicodedata.category(character) == "Zs" else character)
        elif not is_mark:
            shown.append("_")
    return "".join(shown)


def visible_ascii(untrusted_text: bytes) -> str:
    """Every byte that is no printable ASCII as ``_``; an ellipsis at the end, which many programs cut with, as dots."""
    ellipsis = _ELLIPSIS.encode()
    end = ""
    if untrusted_text.endswith(ellipsis):
        untrusted_text, end = untrusted_text.removesuffix(ellipsis), "..."
    return "".join([chr(byte) if 0x20 <= byte < 0x7F else "_" for byte in untrusted_text]) + end


def title(untrusted_text: bytes, *, allows_utf8: bool) -> str:
    """What is shown behind the qube's name."""
    return _visible_utf8(untrusted_text) if allows_utf8 else visible_ascii(untrusted_text)


def with_qube(qube: str, text: str) -> str:
    """For what the window manager shows: a title bar of its own, the list of windows."""
    return f"[{qube}] {text}" if text else f"[{qube}]"


def class_name(qube: str, untrusted_class: bytes) -> str:
    """The window class, by which programs of the desktop (a screen locker) know windows: never without the qube."""
    return f"{qube}:{visible_ascii(untrusted_class)[:MAX_NAME]}"
