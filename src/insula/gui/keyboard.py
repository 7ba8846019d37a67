"""Input on its way to a qube. Pure.

The desktop says which window has focus; no guest has a word for it (MC-44). Keys go to that window and to no other.
What was pressed elsewhere does not arrive here, neither its repetitions nor its release; what was pressed here is
released here when the focus goes (MC-45). The pointer reaches a window only while the user works in its qube; a click
into one of another qube is how the user goes there. An icon in the tray gets clicks without that: it never has focus.

The two sequences that copy and paste never arrive: their last key, its repetitions and its release are the host's.
"""

from __future__ import annotations

from collections.abc import Callable

from insula.gui.clipboard import QubeClipboard
from insula.gui.desktop import (
    Activate,
    ButtonChanged,
    Command,
    Event,
    FocusGained,
    FocusLost,
    KeyChanged,
    PointerCrossed,
    PointerMoved,
    Send,
)
from insula.gui.settings import Settings
from insula_proto import gui

MIN_CODE = 8
MAX_CODE = 255
"""X key codes; others do not exist."""
MAX_BUTTON = 32
"""X button numbers a mouse may have."""
_WHEEL = range(4, 8)
_NO_KEYS = bytes(32)
_STATE_MASK = 0x7FFF
"""X's modifier and button bits, and the keyboard's group."""
_FURTHEST = 0x7FFF
"""Pixels from a window's corner that are reported: X coordinates have 16 bits."""


def _near(position: int) -> int:
    return min(max(position, -_FURTHEST), _FURTHEST)


class Keyboard:
    """Keyboard, pointer and focus of one qube."""

    def __init__(self, settings: Settings, clipboard: QubeClipboard, is_icon: Callable[[int], bool]) -> None:
        """``is_icon``: whether a window lies in the tray."""
        self._is_icon = is_icon
        self._settings = settings
        self._clipboard = clipboard
        self.focused: int | None = None
        self._keys: set[int] = set()
        """Pressed here, not released yet."""
        self._held_back: set[int] = set()
        """Pressed here, but the host's."""
        self._foreign: set[int] = set()
        """Down when the focus came: pressed elsewhere."""
        self._buttons: set[int] = set()
        self._last = (0, 0, 0)
        """State and pointer of the last key, for releases nobody made."""

    def happened(self, event: Event, now: float) -> list[Command]:
        """Take an event about a window that is shown."""
        if isinstance(event, FocusGained):
            return self._gained(event)
        if isinstance(event, FocusLost):
            return self._lost(event.window)
        if isinstance(event, KeyChanged):
            return self._key(event, now)
        if isinstance(event, ButtonChanged):
            return self._button(event)
        if isinstance(event, PointerMoved) and self.focused is not None:
            x, y = _near(event.x), _near(event.y)
            return [Send(gui.Motion(event.window, x, y, event.state & _STATE_MASK))]
        if isinstance(event, PointerCrossed) and self.focused is not None:
            has_focus = event.window == self.focused
            x, y, state = _near(event.x), _near(event.y), event.state & _STATE_MASK
            crossing = Send(gui.Crossing(event.window, event.is_enter, x, y, state, has_focus=has_focus))
            keymap = Send(gui.KeymapNotify(gui.NO_WINDOW, self._keymap()))
            return [keymap, crossing] if event.is_enter else [crossing]
        return []

    def hidden(self, window: int) -> list[Command]:
        """A window has gone from the desktop: it has no focus any more. An icon may go under a button that is down."""
        if self.focused is None and self._buttons:
            held = sorted(self._buttons)
            self._buttons.clear()
            return [Send(gui.Button(window, False, 0, 0, 0, button)) for button in held]
        return self._lost(window)

    def _keymap(self) -> bytes:
        """Keys that are down for this qube, a bit each."""
        keymap = bytearray(_NO_KEYS)
        for code in self._keys:
            keymap[code // 8] |= 1 << code % 8
        return bytes(keymap)

    def _gained(self, event: FocusGained) -> list[Command]:
        window = event.window
        before = self._lost(self.focused) if self.focused is not None and self.focused != window else []
        if self.focused == window:
            return []
        self.focused = window
        self._foreign = set(event.held)
        return [*before, Send(gui.KeymapNotify(gui.NO_WINDOW, _NO_KEYS)), Send(gui.Focus(window, True))]

    def _lost(self, window: int) -> list[Command]:
        if window != self.focused:
            return []
        state, x, y = self._last
        released: list[Command] = [Send(gui.Key(window, False, x, y, state, code)) for code in sorted(self._keys)]
        released += [Send(gui.Button(window, False, x, y, state, button)) for button in sorted(self._buttons)]
        self._keys.clear()
        self._held_back.clear()
        self._foreign.clear()
        self._buttons.clear()
        self.focused = None
        return [*released, Send(gui.Focus(window, False))]

    def _key(self, event: KeyChanged, now: float) -> list[Command]:
        if event.window != self.focused or not MIN_CODE <= event.code <= MAX_CODE:
            return []
        if event.code in self._foreign:
            if not event.is_press:
                self._foreign.discard(event.code)
            return []
        if not event.is_press:
            if event.code in self._held_back:
                self._held_back.discard(event.code)
                return []
            if event.code not in self._keys:
                return []
            self._keys.discard(event.code)
            return [self._forward(event)]
        if event.code in self._held_back:
            return []
        if event.is_repeat:
            # (One that nobody pressed here was pressed elsewhere.)
            return [self._forward(event)] if event.code in self._keys else []
        if self._settings.copy is not None and self._settings.copy.matches(event.state, event.symbol):
            self._held_back.add(event.code)
            return self._clipboard.copy(event.window, event.stamp, now)
        if self._settings.paste is not None and self._settings.paste.matches(event.state, event.symbol):
            self._held_back.add(event.code)
            return self._clipboard.paste(event.window, event.stamp, now)
        self._keys.add(event.code)
        return [self._forward(event)]

    def _forward(self, event: KeyChanged) -> Command:
        self._last = (event.state & _STATE_MASK, _near(event.x), _near(event.y))
        state, x, y = self._last
        return Send(gui.Key(event.window, event.is_press, x, y, state, event.code))

    def _button(self, event: ButtonChanged) -> list[Command]:
        if not 1 <= event.button <= MAX_BUTTON:
            return []
        is_wheel = event.button in _WHEEL
        if not event.is_press:
            if event.button not in self._buttons:
                return []
            self._buttons.discard(event.button)
            return [self._forward_button(event)]
        if self.focused is None and not self._is_icon(event.window):
            # The click is the user's way into this qube. It does nothing else there: whoever clicked saw the window as
            # one of another qube's surroundings, and focus may be refused.
            return [] if is_wheel else [Activate(event.window)]
        self._buttons.add(event.button)
        return [self._forward_button(event)]

    def _forward_button(self, event: ButtonChanged) -> Command:
        x, y = _near(event.x), _near(event.y)
        return Send(gui.Button(event.window, event.is_press, x, y, event.state & _STATE_MASK, event.button))
