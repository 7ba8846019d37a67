"""The host's screens in the qube's X server: monitors with their sizes, and how many dots there are to the inch.

Xvfb's one screen was made as large as the host's; it can become smaller, not larger. Within it RandR's monitors lie as
the host's do, so that programs maximise, centre and open menus within one. Programs read the dots from the resource
``Xft.dpi``.
"""

from __future__ import annotations

import io
import struct

import xcffib

from insula_agent.gui.display import Display

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_proto.gui import Screens

_NAME = "HOST-{}"
_SET_SCREEN_SIZE, _SET_MONITOR, _DELETE_MONITOR = 7, 43, 44
_MM_PER_INCH = 25.4


class _RandR(xcffib.Extension):  # type: ignore[misc] # xcffib has no types
    """Requests of RandR 1.5 that nobody answers (``randrproto.txt``); the xcffib of Debian 12 knows RandR without
    monitors only. One that the server refuses is left out: programs then see one large screen."""

    def set_screen_size(self, root: int, width: int, height: int, dpi: int) -> None:
        sizes = [round(pixels * _MM_PER_INCH / dpi) for pixels in (width, height)]
        self.send_request(_SET_SCREEN_SIZE, io.BytesIO(struct.pack("=xx2xIHHII", root, width, height, *sizes)))

    def set_monitor(self, root: int, name: int, place: tuple[int, ...], *, is_primary: bool) -> None:
        """``place``: x, y, width, height in pixels, width and height in millimetres."""
        body = struct.pack("=xx2xIIBBHhhHHII", root, name, is_primary, False, 0, *place)
        self.send_request(_SET_MONITOR, io.BytesIO(body))

    def delete_monitor(self, root: int, name: int) -> None:
        self.send_request(_DELETE_MONITOR, io.BytesIO(struct.pack("=xx2xII", root, name)))


class Monitors:
    def __init__(self, display: Display) -> None:
        self._display = display
        self._randr = _RandR(display.connection, xcffib.ExtensionKey("RANDR"))
        screen = display.screen
        self._size = (screen.width_in_pixels, screen.height_in_pixels)
        self._shown: tuple[tuple[int, ...], ...] = ()
        self._dpi = 0

    def set(self, wanted: Screens) -> None:
        """Be like the host's."""
        if wanted.dpi != self._dpi:
            self._dpi = wanted.dpi
            self._display.add_resource("Xft.dpi", str(wanted.dpi))
        if wanted.monitors != self._shown:
            before, self._shown = len(self._shown), wanted.monitors
            self._place(before)

    def _place(self, before: int) -> None:
        display = self._display
        size = (
            max(x + width for x, _, width, *_ in self._shown),
            max(y + height for _, y, _, height, *_ in self._shown),
        )
        if size != self._size:
            self._size = size
            self._randr.set_screen_size(display.root, *size, self._dpi)
        if len(self._shown) == 1 and before <= 1:
            return  # the screen itself is the one monitor there is
        for number in range(len(self._shown), before):
            self._randr.delete_monitor(display.root, display.atom(_NAME.format(number)))
        for number, place in enumerate(self._shown):
            self._randr.set_monitor(display.root, display.atom(_NAME.format(number)), place, is_primary=number == 0)
