"""The desktop's tray, where it is one of X11 (System Tray Protocol 0.3): icons are put into it as windows of ours.

Trays that know only the newer protocol, by D-Bus, are not spoken to: what shows windows of a qube has no way to the
session's bus.
"""

from __future__ import annotations

from insula.gui.backend.xcb import Xcb

SELECTION = "_NET_SYSTEM_TRAY_S0"
_REQUEST_DOCK = 0
_NOBODY = 0


class Tray:
    def __init__(self, xcb: Xcb) -> None:
        self._xcb = xcb

    def _owner(self) -> int:
        reply = self._xcb.answer(self._xcb.ask("get_selection_owner", self._xcb.atom(SELECTION)))
        return int.from_bytes(reply[8:12], "little") if reply is not None else _NOBODY

    def dock(self, window: int) -> bool:
        """Ask for a place for a window that is not shown yet; the tray shows it. False: there is no tray."""
        owner = self._owner()
        if owner == _NOBODY:
            return False
        self._xcb.say(owner, "_NET_SYSTEM_TRAY_OPCODE", (0, _REQUEST_DOCK, window, 0, 0))
        self._xcb.flush()
        return True

    def place(self, window: int) -> tuple[int, int] | None:
        """Where its upper left corner is on the screen; None: it has gone."""
        reply = self._xcb.answer(self._xcb.ask("translate_coordinates", window, self._xcb.root, 0, 0))
        if reply is None:
            return None
        return int.from_bytes(reply[12:14], "little", signed=True), int.from_bytes(reply[14:16], "little", signed=True)
