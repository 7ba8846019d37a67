"""Which application the user means, by a few letters: what is listed, in which order, and what is selected. Pure.

What qubes say of their applications is text; whose each is, and in which colour, is the host's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from insula.manager.menu import Entry

MAX_LISTED = 200
"""Rows; who sees so many types another letter."""
PAGE = 8
"""Rows that a page key moves by."""


@dataclass(frozen=True)
class View:
    """What is shown."""

    rows: tuple[Entry, ...]
    selected: int
    """Index of a row; -1: there is none."""
    left_out: int
    """How many more match."""

    @property
    def chosen(self) -> Entry | None:
        return self.rows[self.selected] if self.rows else None


class Launcher:
    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)
        self._view = self._listed("", None)

    @property
    def view(self) -> View:
        return self._view

    def typed(self, text: str) -> View:
        """This is what has been typed so far. The selection stays on its application as long as that is listed and
        nothing fits better."""
        self._view = self._listed(text, self._view.chosen if not text.strip() else None)
        return self._view

    def move(self, by: int) -> View:
        """The selection, by so many rows; it stops at the ends."""
        if self._view.rows:
            last = len(self._view.rows) - 1
            self._view = self._with_selected(min(max(self._view.selected + by, 0), last))
        return self._view

    def select(self, row: int) -> View:
        """By the pointer."""
        if 0 <= row < len(self._view.rows):
            self._view = self._with_selected(row)
        return self._view

    def _with_selected(self, row: int) -> View:
        return View(self._view.rows, row, self._view.left_out)

    def _listed(self, text: str, keep: Entry | None) -> View:
        words = text.lower().split()
        found = sorted(
            (entry for entry in self._entries if entry.matches(words)), key=lambda entry: _distance(entry, words)
        )
        rows = tuple(found[:MAX_LISTED])
        selected = rows.index(keep) if keep in rows else 0 if rows else -1
        return View(rows, selected, len(found) - len(rows))


def _distance(entry: Entry, words: Sequence[str]) -> int:
    """How far a match is from what one types first: the beginning of a name or of one of its words. (Sorting keeps the
    order of those as far.)"""
    names = (entry.name.lower(), entry.qube.lower())
    parts = [part for name in names for part in (name, *name.replace("-", " ").split())]
    return sum(not any(part.startswith(word) for part in parts) for word in words)
