"""The host's screens in the qube's X server: monitors with their sizes, and how many dots there are to the inch.

Xvfb has one screen of the size it was started with. Within it RandR's monitors lie as the host's do, so that programs
maximise, centre and open menus within one; the first of them takes the place of the one that stands for all of it.
Programs read the dots from the resource ``Xft.dpi``.
"""

from __future__ import annotations

import io
import struct

import xcffib

from insula_agent.gui.display import BadRequest, Display
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula_proto.gui import Screens

_NAME = "HOST-{}"
_KEY = xcffib.ExtensionKey("RANDR")
"""Kept for good: libxcb holds on to its memory."""
_RESOURCES, _SET_MONITOR, _DELETE_MONITOR = 25, 43, 44


class _Resources(xcffib.Reply):  # type: ignore[misc] # xcffib has no types
    """What outputs there are."""

    def __init__(self, unpacker: Any) -> None:
        xcffib.Reply.__init__(self, unpacker)
        crtcs, outputs = unpacker.unpack("xx2x4x8xHH4x8x")
        numbers = list(xcffib.List(unpacker, "I", crtcs + outputs))
        self.outputs = numbers[crtcs:]


class _ResourcesCookie(xcffib.Cookie):  # type: ignore[misc]
    reply_type = _Resources


class _RandR(xcffib.Extension):  # type: ignore[misc]
    """Requests of RandR 1.5 (``randrproto.txt``); xcffib's own module takes long to load."""

    def outputs(self, root: int) -> list[int]:
        """:raise BadRequest:"""
        request = io.BytesIO(struct.pack("=xx2xI", root))
        return list(self.send_request(_RESOURCES, request, _ResourcesCookie, is_checked=True).reply().outputs)

    def set_monitor(self, root: int, name: int, place: tuple[int, ...], outputs: list[int]) -> None:
        """``place``: x, y, width, height in pixels, width and height in millimetres. The first one has the outputs."""
        head = struct.pack("=xx2xIIBBHhhHHII", root, name, bool(outputs), False, len(outputs), *place)
        self.send_request(_SET_MONITOR, io.BytesIO(head + struct.pack(f"={len(outputs)}I", *outputs)))

    def delete_monitor(self, root: int, name: int) -> None:
        self.send_request(_DELETE_MONITOR, io.BytesIO(struct.pack("=xx2xII", root, name)))


class Monitors:
    def __init__(self, display: Display) -> None:
        self._display = display
        self._randr = _RandR(display.connection, _KEY)
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
        if not before and [place[:4] for place in self._shown] == [(0, 0, *self._size)]:
            return  # so it is from the start
        try:
            outputs = self._randr.outputs(display.root)
        except BadRequest as error:
            log(f"the host's screens cannot be told to programs: {error}")
            return
        for number in range(before):
            self._randr.delete_monitor(display.root, display.atom(_NAME.format(number)))
        for number, place in enumerate(self._shown):
            name = display.atom(_NAME.format(number))
            self._randr.set_monitor(display.root, name, place, [] if number else outputs[:1])
