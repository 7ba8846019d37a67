"""The keyboard of the qube's X server: laid out as the host's, so that the same key gives the same letter.

The host names the layout (XKB names); ``setxkbmap`` has the server load it. Which of several layouts is active comes
with each key, as the group in X's modifier mask, and is set before the key is pressed.
"""

from __future__ import annotations

import io
import os
import struct

import xcffib

from insula_agent.gui.display import BadRequest, Display
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_proto.gui import Keyboard

PROGRAM = "/usr/bin/setxkbmap"
_NAMES = "_XKB_RULES_NAMES"
"""Property of the root window: rules, model, layout, variant, options, each with a NUL."""
_USE_EXTENSION, _LATCH_LOCK_STATE = 0, 5
_KEY = xcffib.ExtensionKey("XKEYBOARD")
"""Kept for good: libxcb holds on to its memory."""
_CORE_KEYBOARD = 0x100
_GROUP_SHIFT, _GROUP_MASK = 13, 3


class _Xkb(xcffib.Extension):  # type: ignore[misc] # xcffib has no types
    """Two requests of XKB; xcffib's whole module takes a third of a second to load in an emulated machine."""

    def use(self) -> None:
        self.send_request(_USE_EXTENSION, io.BytesIO(struct.pack("=xx2xHH", 1, 0)))

    def lock_group(self, group: int) -> None:
        body = struct.pack("=xx2xHBBBBBxxBH", _CORE_KEYBOARD, 0, 0, 1, group, 0, 0, 0)
        self.send_request(_LATCH_LOCK_STATE, io.BytesIO(body))


class KeyboardLayout:
    def __init__(self, display: Display, name: str) -> None:
        """``name``: of the display, for programs."""
        self._display = display
        self._name = name
        self._xkb = _Xkb(display.connection, _KEY)
        self._group = 0
        self._running = 0
        self._xkb.use()

    def set(self, wanted: Keyboard) -> None:
        """Lay it out so, if it is not."""
        given = [part.decode("ascii", "replace") for part in (wanted.layout, wanted.variant, wanted.options)]
        if self._names()[2:5] == given or not given[0]:
            return
        self._reap()
        # (Options are added to those that are there; an empty one drops them first.)
        words = [PROGRAM, "-layout", given[0], "-variant", given[1], "-option", "", "-option", given[2]]
        environment = {"DISPLAY": self._name, "PATH": "/usr/bin:/bin"}
        try:
            self._running = os.posix_spawn(PROGRAM, words, environment)
        except OSError as error:
            log(f"{PROGRAM}: {error}")

    def _names(self) -> list[str]:
        try:
            value = self._display.property(self._display.root, _NAMES)
        except BadRequest:
            value = b""
        return [part.decode("ascii", "replace") for part in value.split(b"\0")]

    def _reap(self) -> None:
        if self._running:
            os.waitpid(self._running, 0)
            self._running = 0

    def changed(self) -> None:
        """The server has another layout."""
        self._display.read_modifiers()
        self._group = -1
        self._reap()

    def take_state(self, state: int) -> None:
        """Before a key: make the group that of the host's modifier mask."""
        group = state >> _GROUP_SHIFT & _GROUP_MASK
        if group != self._group:
            self._group = group
            self._xkb.lock_group(group)
