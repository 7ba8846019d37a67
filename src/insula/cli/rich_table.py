"""Tables on a terminal, by rich. Apart because importing rich takes as long as a whole command without it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from insula.cli.table import COLUMN_GAP, SWATCH, Cell, Column
from insula.cli.text import visible


def print_rich_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print to standard output, as wide as the terminal; NO_COLOR is respected. Nothing in a cell is markup."""
    Console(markup=False, highlight=False, emoji=False).print(rich_table(columns, rows))


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table without lines around it. Nothing in a cell is markup."""
    table = Table(box=None, pad_edge=False, padding=(0, len(COLUMN_GAP), 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


def _text(cell: Cell) -> Text:
    text = Text()
    if cell.swatch:
        text.append(f"{SWATCH} ", style=cell.swatch)
    text.append(visible(cell.text), style=cell.style)
    return text
