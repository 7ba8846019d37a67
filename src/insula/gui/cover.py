"""What popups of a qube may not cover: what can be seen of panels, prompts, and the frames of everybody else's windows.

Pure. A back end that can look at the desktop (X11) tells which windows lie where, topmost first; what of a frame lies
under another window is not to be seen, and may be covered. Where the desktop tells nobody (Wayland) it places popups
itself, within the screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from insula.gui.geometry import Rect

MAX_PROTECTED = 400
"""Rectangles; what would be more is not cut any further, so that more than is needed stays uncovered."""
NOTHING = Rect(0, 0, 0, 0)


@dataclass(frozen=True)
class Pane:
    """A window of the desktop that can be seen, as far as others do not lie above it."""

    outer: Rect
    """With all that its window manager and its host draw around it."""
    inner: Rect = NOTHING
    """What of it may be covered; empty: nothing, as of a panel or a prompt."""
    is_own: bool = False
    """Of the qube itself."""


def ring(outer: Rect, inner: Rect) -> tuple[Rect, ...]:
    """What of ``outer`` is not in ``inner``: above, below, left, right."""
    inner = inner.intersection(outer)
    if inner.is_empty:
        return () if outer.is_empty else (outer,)
    parts = (
        Rect(outer.x, outer.y, outer.width, inner.y - outer.y),
        Rect(outer.x, inner.bottom, outer.width, outer.bottom - inner.bottom),
        Rect(outer.x, inner.y, inner.x - outer.x, inner.height),
        Rect(inner.right, inner.y, outer.right - inner.right, inner.height),
    )
    return tuple(part for part in parts if not part.is_empty)


def visible(rect: Rect, above: Iterable[Rect], *, most: int = MAX_PROTECTED) -> list[Rect]:
    """The parts of ``rect`` under none of ``above``; if that takes more than ``most``, with some that are."""
    parts = [rect]
    for cover in above:
        if not any(part.overlaps(cover) for part in parts):
            continue
        cut = [piece for part in parts for piece in (ring(part, cover) if part.overlaps(cover) else (part,))]
        if len(cut) > most:
            return parts
        parts = cut
    return parts


def protected(panes: Sequence[Pane]) -> tuple[Rect, ...]:
    """What no popup of the qube may cover. ``panes``: topmost first."""
    found: list[Rect] = []
    above: list[Rect] = []
    for pane in panes:
        if not pane.is_own:
            for part in ring(pane.outer, pane.inner):
                found += visible(part, above, most=max(1, MAX_PROTECTED - len(found)))
        above.append(pane.outer)
    return tuple(found)


def without_docks(area: Rect, docks: Iterable[Rect]) -> Rect:
    """What panels at its edges leave of a screen. (Desktops tell it for all screens together, if at all.)"""
    for whole in docks:
        dock = whole.intersection(area)
        if dock.is_empty or dock.area * 2 > area.area:
            continue
        left, top, right, bottom = area.x, area.y, area.right, area.bottom
        if dock.width * area.height >= dock.height * area.width:  # it is wide, for this screen
            if dock.y - top <= bottom - dock.bottom:
                top = dock.bottom
            else:
                bottom = dock.y
        elif dock.x - left <= right - dock.right:
            left = dock.right
        else:
            right = dock.x
        area = Rect(left, top, right - left, bottom - top)
    return area
