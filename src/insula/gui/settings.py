"""What a qube's windows are told by the host at their start: who the qube is, and what it may."""

from __future__ import annotations

from dataclasses import dataclass

from insula_proto import limits

SHIFT = 1
CONTROL = 4
ALT = 8
SUPER = 64
"""X modifier bits (Shift, Control, Mod1, Mod4)."""
MODIFIERS = SHIFT | CONTROL | ALT | SUPER
"""Those that make a difference to a sequence of keys; the locks do not."""

MIN_CLIPBOARD = 256
DEFAULT_CLIPBOARD = 64000
WHITE = 0xFFFFFF


@dataclass(frozen=True)
class Sequence:
    """Keys held, and the one that is pressed then."""

    modifiers: int
    symbol: str

    def matches(self, state: int, symbol: str) -> bool:
        return symbol == self.symbol and state & MODIFIERS == self.modifiers


COPY = Sequence(CONTROL | SHIFT, "c")
PASTE = Sequence(CONTROL | SHIFT, "v")


@dataclass(frozen=True)
class Settings:
    qube: str
    colour: int
    """Of its label, ``0xRRGGBB``."""
    allows_fullscreen: bool = False
    allows_popups: bool = True
    allows_utf8: bool = False
    copy: Sequence | None = COPY
    paste: Sequence | None = PASTE
    clipboard_limit: int = DEFAULT_CLIPBOARD
    """Bytes that may be copied from it or pasted into it."""
    background: int = WHITE
    """Of a window that has no picture, ``0xRRGGBB``."""

    def __post_init__(self) -> None:
        """:raise ValueError:"""
        if not MIN_CLIPBOARD <= self.clipboard_limit <= limits.GUI_MAX_CLIPBOARD:
            raise ValueError(
                f"a clipboard has {MIN_CLIPBOARD} to {limits.GUI_MAX_CLIPBOARD} bytes, not {self.clipboard_limit}"
            )
