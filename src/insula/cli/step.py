"""One piece of work that is being done, and what a display of such pieces must be able to do."""

from __future__ import annotations

import time
from typing import Protocol

from insula.cli.text import seconds_text, visible

SHOW_AFTER_S = 0.5
"""What is done within this time is not shown while it is done."""


class Step:
    """One piece of work, made by :meth:`Board.step`."""

    def __init__(self, display: Display, subject: str, doing: str, done: str) -> None:
        self._display = display
        self.subject = subject
        self.doing = doing
        self.done = done
        """What to report at the end, with the time taken; empty: nothing."""
        self.note = ""
        """What to report at the end instead, without a time ("was running already")."""
        self.fraction: float | None = None
        """0…1 where it is known."""
        self._began = time.monotonic()

    def update(self, doing: str | None = None, fraction: float | None = None) -> None:
        """Say what is being done now, and how much of it is done if that is known."""
        changed = doing is not None and doing != self.doing
        self.doing = self.doing if doing is None else doing
        self.fraction = None if fraction is None else min(max(fraction, 0.0), 1.0)
        if changed:
            self._display.changed(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def report(self) -> str:
        if self.note:
            return f"{self.subject} {self.note}"
        return f"{self.subject} {self.done} in {seconds_text(self.seconds)}" if self.done else ""

    @property
    def line(self) -> str:
        """What is going on, without the time."""
        percent = "" if self.fraction is None else f" {self.fraction:4.0%}"
        return visible(f"{self.subject}: {self.doing}") + percent


class Display(Protocol):
    def began(self, step: Step) -> None: ...

    def changed(self, step: Step) -> None: ...

    def ended(self, step: Step, report: str) -> None: ...

    def close(self) -> None: ...
