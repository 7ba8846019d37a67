"""The host's screens in the qube's X server: monitors with their sizes, and how many dots there are to the inch.

Xvfb's one screen was made as large as the host's; it can become smaller, not larger. Within it RandR's monitors lie as
the host's do, so that programs maximise, centre and open menus within one. Programs read the dots from the resource
``Xft.dpi``.
"""

from __future__ import annotations

from insula_agent.gui.display import BadRequest, Display
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula_proto.gui import Screens

_NAME = "HOST-{}"


class Monitors:
    def __init__(self, display: Display) -> None:
        self._display = display
        self._randr: Any = None
        self._shown: tuple[tuple[int, ...], ...] = ()
        self._dpi = 0

    def set(self, wanted: Screens) -> None:
        """Be like the host's."""
        if wanted.dpi != self._dpi:
            self._dpi = wanted.dpi
            self._display.add_resource("Xft.dpi", str(wanted.dpi))
        if wanted.monitors == self._shown:
            return
        self._shown, before = wanted.monitors, self._shown
        try:
            self._place(before)
        except BadRequest as error:
            log(f"the host's screens cannot be told to programs: {error}")

    def _place(self, before: tuple[tuple[int, ...], ...]) -> None:
        # Late: for one screen of the size there is from the start, nothing of it is needed.
        from xcffib import randr  # noqa: PLC0415

        display = self._display
        if self._randr is None:
            self._randr = display.connection(randr.key)
            self._randr.QueryVersion(1, 5).reply()
        width = max(x + width for x, _, width, *_ in self._shown)
        height = max(y + height for _, y, _, height, *_ in self._shown)
        largest = self._randr.GetScreenSizeRange(display.root).reply()
        width, height = min(width, largest.max_width), min(height, largest.max_height)
        dots = max(1, self._dpi)
        geometry = display.core.GetGeometry(display.root).reply()
        if (geometry.width, geometry.height) != (width, height):
            self._randr.SetScreenSizeChecked(
                display.root, width, height, round(width * 25.4 / dots), round(height * 25.4 / dots)
            ).check()
        for number in range(len(self._shown), len(before)):
            self._randr.DeleteMonitor(display.root, display.atom(_NAME.format(number)))
        for number, (x, y, *rest) in enumerate(self._shown):
            info = randr.MonitorInfo.synthetic(
                display.atom(_NAME.format(number)), number == 0, False, 0, x, y, *rest, []
            )  # fmt: skip
            self._randr.SetMonitorChecked(display.root, info).check()
