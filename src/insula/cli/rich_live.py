"""The moving picture of several steps, by rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from insula.cli.step import Step
from insula.cli.text import seconds_text

REFRESH_PER_S = 8


def live_lines(steps: Callable[[], Sequence[Step]]) -> Live:
    """A line with a spinner and the time taken for each of ``steps()``, on standard error. Not started yet."""
    spinner = Spinner("dots")

    def picture() -> Table:
        table = Table.grid(padding=(0, 1))
        for step in steps():
            table.add_row(spinner, Text(step.line), Text(seconds_text(step.seconds), style="dim"))
        return table

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    return Live(get_renderable=picture, console=console, transient=True, refresh_per_second=REFRESH_PER_S)
