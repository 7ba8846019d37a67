"""Progress on a terminal: a spinner line for each step. rich is imported only once something takes long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from insula.cli.output import say
from insula.cli.step import SHOW_AFTER_S, Step
from insula.cli.text import visible

if TYPE_CHECKING:
    from rich.live import Live


class SpinnerLines:
    """A :class:`insula.cli.step.Display`. The lines are redrawn by a thread of rich's; reports scroll by above."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._live: Live | None = None
        self._timer: asyncio.TimerHandle | None = None

    def began(self, step: Step) -> None:
        self._steps.append(step)
        if self._live is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SHOW_AFTER_S, self._show)

    def changed(self, step: Step) -> None:
        """The next redraw shows it."""

    def ended(self, step: Step, report: str) -> None:
        self._steps.remove(step)
        if not self._steps:
            self._hide()
        if not report:
            return
        if self._live is None:
            say(report)
        else:
            self._live.console.print(visible(report))

    def close(self) -> None:
        self._hide()

    def _show(self) -> None:
        from insula.cli.rich_live import live_lines  # noqa: PLC0415 - rich is slow to import

        self._timer = None
        self._live = live_lines(lambda: tuple(self._steps))
        self._live.start()

    def _hide(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._live is not None:
            self._live.stop()
            self._live = None
