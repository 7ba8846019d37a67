"""Moving pictures by rich: the lines of several steps, and a page that fills the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from insula.cli.rich_table import rich_table
from insula.cli.step import Step
from insula.cli.table import Cell, Column
from insula.cli.text import seconds_text, visible

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


Draw = Callable[[str, Sequence[Column], Sequence[Sequence[Cell | str]]], None]
"""Shows a line and a table below it instead of what was there."""


@contextlib.contextmanager
def live_page() -> Iterator[Draw]:
    """The whole terminal for one table that changes; what was on it before comes back at the end of the block."""
    console = Console(markup=False, highlight=False, emoji=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw(headline: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
            cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
            live.update(Group(Text(visible(headline)), Text(), rich_table(columns, cells)), refresh=True)

        yield draw
