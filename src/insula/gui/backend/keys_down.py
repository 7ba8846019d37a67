"""Which releases of keys are real.

Of a key that repeats X sends releases too, each with a press behind it, and Qt knows the pair only if it has read both.
Who is asked then is the display server: is the key still down? That takes a way there and back, which a key that was
just pressed in the window is spared, for none repeats so soon. Pure but for that question.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

NO_REPEAT_MS = 100
"""Milliseconds within which no key repeats for the first time; people type the next one after as long."""


class KeysDown:
    """Keys of one window. ``held``: X codes of the keys that are down now, wherever they were pressed."""

    def __init__(self, held: Callable[[], Collection[int]]) -> None:
        self._held = held
        self._down: set[int] = set()
        """Since the focus came, or before; not released, whatever came in between."""
        self._pressed: dict[int, int] = {}
        """Those of them that were pressed here and have not repeated, and when, by the server's clock."""

    def gain(self) -> frozenset[int]:
        """The focus has come; return the keys that are down already."""
        held = frozenset(self._held())
        self._down = set(held)
        self._pressed.clear()
        return held

    def lose(self) -> None:
        self._down.clear()
        self._pressed.clear()

    def press(self, code: int, stamp_ms: int, *, is_repeat: bool) -> None:
        """``is_repeat``: as far as Qt knows. A key that was down repeats, too: the release of that may come at once."""
        if code not in self._down and not is_repeat:
            self._pressed[code] = stamp_ms
        self._down.add(code)

    def is_release(self, code: int, stamp_ms: int) -> bool:
        """Whether the key is up, now that Qt tells of a release of it that is none of a pair it knows."""
        pressed_at = self._pressed.pop(code, None)
        is_quick = pressed_at is not None and 0 <= stamp_ms - pressed_at < NO_REPEAT_MS
        if not is_quick and code in self._held():
            return False
        self._down.discard(code)
        return True
