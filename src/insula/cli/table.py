"""What a table consists of, however it is printed."""

from __future__ import annotations

from dataclasses import dataclass

COLUMN_GAP = "  "
SWATCH = "●"


@dataclass(frozen=True)
class Cell:
    """One cell of a table. ``text`` may be anything: it is escaped when printed."""

    text: str
    style: str = ""
    """A rich style, for terminals."""
    swatch: str = ""
    """``#rrggbb``: a dot of this colour before the text, for terminals. The text itself keeps the terminal's
    colour, because black on black says nothing."""


@dataclass(frozen=True)
class Column:
    title: str
    right: bool = False
    """Numbers are aligned to the right."""
