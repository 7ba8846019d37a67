"""What has changed in a picture since it was last painted, in few rectangles (MC-43)."""

from __future__ import annotations

from insula.gui.geometry import Rect

MAX_RECTS = 8
"""Above it one rectangle around all: painting some pixels twice costs less than a list without end."""


class Damage:
    def __init__(self) -> None:
        self._rects: list[Rect] = []

    def add(self, rect: Rect) -> None:
        """Note a change; an empty rectangle is none."""
        if rect.is_empty or any(known.contains(rect) for known in self._rects):
            return
        self._rects = [known for known in self._rects if not rect.contains(known)]
        self._rects.append(rect)
        if len(self._rects) > MAX_RECTS:
            around = self._rects[0]
            for known in self._rects[1:]:
                around = around.union(known)
            self._rects = [around]

    def take(self, bounds: Rect) -> tuple[Rect, ...]:
        """Return what has changed within ``bounds``, and forget all."""
        rects, self._rects = self._rects, []
        clipped = (rect.intersection(bounds) for rect in rects)
        return tuple(rect for rect in clipped if not rect.is_empty)

    def clear(self) -> None:
        self._rects = []

    def __bool__(self) -> bool:
        return bool(self._rects)
