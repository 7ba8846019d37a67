"""What goes to standard output: tables for people, lines for pipes, JSON for programs.

On a terminal tables have colours (rich); in a pipe they are the same columns as plain text, and rich is not even
imported, which keeps scripts quick. Cells are plain text, never markup, and are made safe here once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TextIO

from insula.cli.table import COLUMN_GAP, Cell, Column
from insula.cli.text import visible

STATE_STYLES = {
    "Running": "green",
    "Paused": "yellow",
    "Suspended": "yellow",
    "Transient": "cyan",
    "Halting": "cyan",
    "Halted": "dim",
    "Dying": "red",
    "Crashed": "bold red",
}


def state_cell(state: str) -> Cell:
    return Cell(state, STATE_STYLES.get(state, ""))


def label_cell(label: str, colors: dict[str, str]) -> Cell:
    """``colors``: label → ``0xRRGGBB``, as the Admin API gives them."""
    color = colors.get(label, "")
    return Cell(label, swatch="#" + color[2:] if color.startswith("0x") and len(color) == 8 else "")


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def print_json(value: object) -> None:
    """One document. Keys keep the order they are given in; characters outside ASCII are escaped."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def print_json_line(value: object) -> None:
    """One document a line, for streams."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_line(untrusted_text: str) -> None:
    sys.stdout.write(visible(untrusted_text) + "\n")


def print_text(text: str) -> None:
    """Several lines that were made safe already."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def flush() -> None:
    """For output that somebody follows."""
    sys.stdout.flush()


def say(message: str) -> None:
    """A line for the person at the terminal; not data."""
    sys.stderr.write(visible(message) + "\n")
    sys.stderr.flush()


def print_failure(message: str, hint: str = "") -> None:
    """``insula: error: …`` and, where there is one, ``hint: …``, on standard error."""
    sys.stderr.write(f"insula: error: {visible(message)}\n")
    if hint:
        sys.stderr.write(f"hint: {visible(hint)}\n")
    sys.stderr.flush()


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
    """A table without lines around it; nothing but the titles if there are no rows."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        from insula.cli.rich_table import print_rich_table  # noqa: PLC0415 - rich is slow to import

        print_rich_table(columns, cells)
    else:
        _print_plain(columns, cells)


def _print_plain(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    lines = [[column.title for column in columns], *([visible(cell.text) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = [
            text.rjust(width) if column.right else text.ljust(width)
            for column, text, width in zip(columns, line, widths, strict=True)
        ]
        sys.stdout.write(COLUMN_GAP.join(padded).rstrip() + "\n")
