"""The tray of the qube's X server (System Tray Protocol 0.3, XEmbed 0.5): icons of programs, each in a window of ours.

The agent is the tray. An icon that asks to be docked is put into a small window, the *embedder*, and the host is told
of that one as of any window, and that it is an icon (DOCK); the host gives it a place and a size in its own tray. An
icon whose program takes it back loses its embedder.
"""

from __future__ import annotations

import xcffib
import xcffib.xproto

from insula_agent.gui import display as x11
from insula_agent.gui.display import Display
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SELECTION = "_NET_SYSTEM_TRAY_S0"
SIZE = 24
"""Pixels of an icon's side until the host has given it another."""
MAX_ICONS = 32
GROUND = 0x2E3436
"""Behind icons that are partly transparent."""
_REQUEST_DOCK = 0
"""``data.l[1]`` of _NET_SYSTEM_TRAY_OPCODE."""
_EMBEDDED_NOTIFY = 0
_VERSION = 0
_MAPPED = 1
"""Of _XEMBED_INFO: version and flags."""
_ATOMS = (
    SELECTION, "CARDINAL", "MANAGER", "_NET_SYSTEM_TRAY_OPCODE", "_NET_SYSTEM_TRAY_ORIENTATION", "_XEMBED",
    "_XEMBED_INFO",
)  # fmt: skip
"""Asked for beforehand: each is a way to the server and back, and later somebody waits for a first window."""
_CONFIG = xcffib.xproto.ConfigWindow
_SAVE, _FORGET = 0, 1
"""ChangeSaveSet: should we end, the icon is to outlive its embedder."""


class Tray:
    def __init__(self, display: Display, forget: Callable[[int], None]) -> None:
        """``forget``: a window that was one of the screen is an icon now."""
        self._display = display
        self._forget = forget
        self._embedders: dict[int, int] = {}
        """Icon → embedder; 0: it is not to be seen now."""
        for name in _ATOMS:
            display.atom(name)
        core = display.core
        self.window = int(display.connection.generate_id())
        core.CreateWindow(
            0, self.window, display.root, -10, -10, 1, 1, 0, xcffib.xproto.WindowClass.InputOnly, 0, 0, []
        )

    def start(self) -> None:
        """Be the tray, and say so: programs that are there already look for one then."""
        display = self._display
        display.set_numbers(self.window, "_NET_SYSTEM_TRAY_ORIENTATION", "CARDINAL", [0])
        display.core.SetSelectionOwner(self.window, display.atom(SELECTION), 0)
        self._say(
            display.root, "MANAGER", [0, display.atom(SELECTION), self.window, 0, 0], x11.EventMask.StructureNotify
        )

    def holds(self, embedder: int) -> bool:
        return embedder in self._embedders.values()

    def _say(self, window: int, kind: str, numbers: list[int], mask: int = 0) -> None:
        data = xcffib.xproto.ClientMessageData.synthetic(numbers, "IIIII")
        event = xcffib.xproto.ClientMessageEvent.synthetic(32, window, self._display.atom(kind), data)
        self._display.core.SendEvent(False, window, mask, event.pack())

    # --- events --------------------------------------------------------------------------------------------------

    def asked(self, event: Any) -> None:
        """A program's message for the tray. :raise BadRequest: its icon has gone."""
        if event.format != 32 or event.type != self._display.atom("_NET_SYSTEM_TRAY_OPCODE"):
            return
        _, opcode, icon, *_ = event.data.data32
        if opcode != _REQUEST_DOCK or icon in self._embedders or self.holds(icon):
            return
        if len(self._embedders) >= MAX_ICONS:
            log(f"more than {MAX_ICONS} icons in the tray")
            return
        mask = x11.EventMask.PropertyChange | x11.EventMask.StructureNotify
        self._display.core.ChangeWindowAttributesChecked(icon, x11.CW.EventMask, [mask]).check()
        self._embedders[icon] = 0
        self._forget(icon)
        self._show_or_hide(icon)

    def changed(self, icon: int) -> None:
        """A property of an icon, perhaps whether it is to be seen."""
        if icon in self._embedders:
            self._show_or_hide(icon)

    def gone(self, window: int) -> None:
        """A window was destroyed; an icon's embedder goes with it."""
        embedder = self._embedders.pop(window, 0)
        if embedder:
            self._display.core.DestroyWindow(embedder)

    def reparented(self, icon: int, parent: int) -> None:
        """A program that takes its icon out of the embedder takes it out of the tray."""
        if self._embedders.get(icon) and parent != self._embedders[icon]:
            self.gone(icon)

    def resized(self, embedder: int, width: int, height: int) -> None:
        """The host has given it a size: the icon fills it."""
        for icon, its in self._embedders.items():
            if its == embedder:
                values = [0, 0, width, height]
                mask = _CONFIG.X | _CONFIG.Y | _CONFIG.Width | _CONFIG.Height
                self._display.core.ConfigureWindow(icon, mask, values)

    # --- one icon ------------------------------------------------------------------------------------------------

    def _show_or_hide(self, icon: int) -> None:
        told = self._display.numbers(icon, "_XEMBED_INFO")
        is_wanted = len(told) < 2 or bool(told[1] & _MAPPED)
        if is_wanted and not self._embedders[icon]:
            self._embed(icon)
        elif not is_wanted and self._embedders[icon]:
            embedder, self._embedders[icon] = self._embedders[icon], 0
            core = self._display.core
            core.UnmapWindow(icon)
            core.ReparentWindow(icon, self._display.root, 0, 0)
            core.ChangeSaveSet(_FORGET, icon)
            core.DestroyWindow(embedder)

    def _embed(self, icon: int) -> None:
        core = self._display.core
        embedder = self._embedders[icon] = int(self._display.connection.generate_id())
        # Not the window manager's business: it would be asked before it is shown.
        values = [GROUND, 1, x11.EventMask.SubstructureNotify]
        mask = x11.CW.BackPixel | x11.CW.OverrideRedirect | x11.CW.EventMask
        input_output = xcffib.xproto.WindowClass.InputOutput
        core.CreateWindow(0, embedder, self._display.root, 0, 0, SIZE, SIZE, 0, input_output, 0, mask, values)
        core.ChangeSaveSet(_SAVE, icon)
        core.ReparentWindow(icon, embedder, 0, 0)
        self.resized(embedder, SIZE, SIZE)
        self._say(icon, "_XEMBED", [0, _EMBEDDED_NOTIFY, 0, embedder, _VERSION])
        core.MapWindow(icon)
        core.MapWindow(embedder)
