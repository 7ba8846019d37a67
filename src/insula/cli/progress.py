"""Lines of progress on standard error: a spinner with the time taken on a terminal, plain lines elsewhere.

Nothing is drawn for what is done within :data:`insula.cli.step.SHOW_AFTER_S`. A step that ends leaves one line ("work
started in 3.2 s"), so what happened stays on the screen and in logs. Steps may run in parallel, one line each. For
use inside a running event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from insula.cli.output import is_terminal, say
from insula.cli.step import SHOW_AFTER_S, Display, Step
from insula.cli.text import seconds_text

PLAIN_GAP_S = 2.0
"""Without a terminal a step that changes quickly gives a line this often."""
PLAIN_REPEAT_S = 30.0
"""Without a terminal a long step reports again after this time, so that a log shows it is alive."""


class Board:
    """Where the steps of one command are shown."""

    def __init__(self, display: Display) -> None:
        self._display = display

    @contextlib.contextmanager
    def step(self, subject: str, doing: str, done: str = "") -> Iterator[Step]:
        """Show ``subject: doing`` while the block runs, then ``subject done in …`` unless it raised."""
        step = Step(self._display, subject, doing, done)
        self._display.began(step)
        report = ""
        try:
            yield step
            report = step.report
        finally:
            self._display.ended(step, report)


@contextlib.contextmanager
def board() -> Iterator[Board]:
    """Progress for one command; gone from the screen when the block ends, however it ends."""
    display = _terminal_display() if is_terminal(sys.stderr) else PlainDisplay()
    try:
        yield Board(display)
    finally:
        display.close()


def _terminal_display() -> Display:
    from insula.cli.spinner_lines import SpinnerLines  # noqa: PLC0415 - only with a terminal

    return SpinnerLines()


class PlainDisplay:
    """Lines, for logs and pipes."""

    def __init__(self) -> None:
        self._timers: dict[Step, asyncio.TimerHandle] = {}
        self._shown: dict[Step, float] = {}
        """When each step last gave a line."""

    def began(self, step: Step) -> None:
        self._arm(step, SHOW_AFTER_S)

    def changed(self, step: Step) -> None:
        due = self._shown[step] + PLAIN_GAP_S if step in self._shown else SHOW_AFTER_S
        if step.seconds >= due:
            self._timers[step].cancel()
            self._show(step)

    def ended(self, step: Step, report: str) -> None:
        self._timers.pop(step).cancel()
        if report:
            say(report)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _arm(self, step: Step, delay: float) -> None:
        self._timers[step] = asyncio.get_running_loop().call_later(delay, self._show, step)

    def _show(self, step: Step) -> None:
        say(step.line if step not in self._shown else f"{step.line} ({seconds_text(step.seconds)})")
        self._shown[step] = step.seconds
        self._arm(step, PLAIN_REPEAT_S)
