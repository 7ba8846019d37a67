"""Places for pictures in the frame memory.

First fit over the gaps between what is taken: a few dozen windows, so a list is quick enough, and what is freed is used
again from the front, so that pages that were never touched stay so.
"""

from __future__ import annotations

from insula_proto import gui_wire, limits


class Place:
    """Where a picture is, from its first to before its last byte."""

    __slots__ = ("end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end


class Memory:
    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: list[Place] = []
        """In order of their places."""

    def take(self, width: int, height: int) -> Place | None:
        """Return a place for a picture of that size; None: there is no room."""
        wanted = -(-gui_wire.picture_size(width, height) // limits.GUI_PAGE) * limits.GUI_PAGE
        start = 0
        for index, place in enumerate(self._taken):
            if place.start - start >= wanted:
                return self._insert(index, start, wanted)
            start = place.end
        return self._insert(len(self._taken), start, wanted) if self._size - start >= wanted else None

    def _insert(self, index: int, start: int, size: int) -> Place:
        place = Place(start, start + size)
        self._taken.insert(index, place)
        return place

    def give_back(self, place: Place) -> None:
        """:raise ValueError: it is not taken."""
        self._taken.remove(place)

    @property
    def taken(self) -> int:
        """Bytes."""
        return sum([place.end - place.start for place in self._taken])
