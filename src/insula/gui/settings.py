"""What a qube's windows are told by the host at their start: who the qube is, and what it may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from insula_proto import limits

SHIFT = 1
CONTROL = 4
ALT = 8
SUPER = 64
"""X modifier bits (Shift, Control, Mod1, Mod4)."""
MODIFIERS = SHIFT | CONTROL | ALT | SUPER
"""Those that make a difference to a sequence of keys; the locks do not."""

_WORDS = {
    "shift": SHIFT,
    "ctrl": CONTROL,
    "alt": ALT,
    "mod1": ALT,
    "super": SUPER,
    "mod4": SUPER,
}
NO_KEYS = "none"
"""Instead of a sequence of keys: there is none."""
MAX_SEQUENCE = 40
"""Characters."""

MIN_CLIPBOARD = 256
DEFAULT_CLIPBOARD = 64000
WHITE = 0xFFFFFF


@dataclass(frozen=True)
class Sequence:
    """Keys held, and the one that is pressed then."""

    modifiers: int
    symbol: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """As people and published settings write it: ``Ctrl-Shift-c``, ``Mod4-v``, ``none``.

        :raise ValueError: no such keys, or some that people type: Shift and a letter are text.
        """
        if text.lower() == NO_KEYS:
            return None
        *words, symbol = text.lower().split("-") if len(text) <= MAX_SEQUENCE else [""]
        if len(symbol) != 1 or not "!" <= symbol <= "~" or not set(words) <= _WORDS.keys():
            raise ValueError(f"{text[:MAX_SEQUENCE]!a} is no sequence of keys like Ctrl-Shift-c")
        modifiers = 0
        for word in words:
            modifiers |= _WORDS[word]
        if not modifiers & ~SHIFT:
            raise ValueError(f"{text!a} would be pressed in the middle of a text; it needs Ctrl, Alt or Super")
        return cls(modifiers, symbol)

    def matches(self, state: int, symbol: str) -> bool:
        return symbol == self.symbol and state & MODIFIERS == self.modifiers


COPY_KEYS = "Ctrl-Shift-c"
PASTE_KEYS = "Ctrl-Shift-v"
COPY = Sequence.parse(COPY_KEYS)
PASTE = Sequence.parse(PASTE_KEYS)


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
    image_limit: int = limits.GUI_MAX_IMAGE_PIXELS
    """Pixels of an image that may be copied from it or pasted into it; 0: none may."""
    keyboard: str = ""
    """As the property ``keyboard_layout`` has it; empty: as the desktop says."""
    background: int = WHITE
    """Of a window that has no picture, ``0xRRGGBB``."""

    def __post_init__(self) -> None:
        """:raise ValueError:"""
        if not MIN_CLIPBOARD <= self.clipboard_limit <= limits.GUI_MAX_CLIPBOARD:
            raise ValueError(
                f"a clipboard has {MIN_CLIPBOARD} to {limits.GUI_MAX_CLIPBOARD} bytes, not {self.clipboard_limit}"
            )
        if not 0 <= self.image_limit <= limits.GUI_MAX_IMAGE_PIXELS:
            raise ValueError(f"an image has up to {limits.GUI_MAX_IMAGE_PIXELS} pixels, not {self.image_limit}")
