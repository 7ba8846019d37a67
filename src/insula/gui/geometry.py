"""Rectangles, the frame the host draws around every window, and where windows of a guest may lie.

A window's *place* is its content, in pixels of the whole desktop: what the guest paints. The frame lies around it and
is the host's alone; place and frame together are the *outer* rectangle. The rules (MC-38): a part of an ordinary
window's title stays on a screen, so that it can be seen whose it is and be moved back; a popup lies wholly on one
screen, over nothing that is *protected* (panels, prompts, frames of other qubes), or is no popup.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from insula_proto import limits

MIN_VISIBLE = 64
"""Pixels of a title's width that stay on a screen, or all of a title that is narrower."""
POPUP_SHARE = 0.9
"""Part of a screen a popup may cover in both directions; a larger one could pass for the desktop itself."""


MAX_EDGES = 48
MAX_SPOTS = 256
"""Places that are tried for a popup, along as many edges of what is in its way: some milliseconds at most."""


@dataclass(frozen=True)
class Rect:
    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def is_empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def intersection(self, other: Rect) -> Rect:
        """The part both have; empty if there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Rect(x, y, max(0, right - x), max(0, bottom - y))

    def overlaps(self, other: Rect) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
            and not self.is_empty
            and not other.is_empty
        )

    def contains(self, other: Rect) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )

    def union(self, other: Rect) -> Rect:
        """The smallest rectangle around both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Rect(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)

    def without(self, other: Rect) -> list[Rect]:
        """What lies in this one and not in the other, in at most four parts."""
        cut = self.intersection(other)
        if cut.is_empty:
            return [] if self.is_empty else [self]
        parts = [
            Rect(self.x, self.y, self.width, cut.y - self.y),
            Rect(self.x, cut.bottom, self.width, self.bottom - cut.bottom),
            Rect(self.x, cut.y, cut.x - self.x, cut.height),
            Rect(cut.right, cut.y, self.right - cut.right, cut.height),
        ]
        return [part for part in parts if not part.is_empty]

    @property
    def area(self) -> int:
        return self.width * self.height if not self.is_empty else 0


@dataclass(frozen=True)
class Frame:
    """Pixels of host around the content."""

    left: int
    top: int
    right: int
    bottom: int

    def around(self, place: Rect) -> Rect:
        """The outer rectangle."""
        return Rect(
            place.x - self.left,
            place.y - self.top,
            place.width + self.left + self.right,
            place.height + self.top + self.bottom,
        )

    def inside(self, outer: Rect) -> Rect:
        """The content of an outer rectangle; at least one pixel."""
        return Rect(
            outer.x + self.left,
            outer.y + self.top,
            max(1, outer.width - self.left - self.right),
            max(1, outer.height - self.top - self.bottom),
        )


WINDOW_FRAME = Frame(4, 22, 4, 4)
"""The qube's name and the title are drawn above."""
POPUP_FRAME = Frame(2, 2, 2, 13)
"""The qube's name is drawn below: a menu that opens downwards covers nothing of what it belongs to."""
ICON_FRAME = Frame(2, 2, 2, 2)
"""Around an icon in the tray there is no room for a name."""


@dataclass(frozen=True)
class Monitor:
    place: Rect
    width_mm: int = 0
    height_mm: int = 0
    """Millimetres; 0: not known."""


@dataclass(frozen=True)
class Desk:
    """The screens as they are now."""

    areas: tuple[Rect, ...]
    """Of each screen, what panels leave. May be none: all screens are off."""
    protected: tuple[Rect, ...] = ()
    """What no popup may cover: panels, prompts, what can be seen of others' frames (``cover``)."""
    frame_s: float = 1 / 60
    """Seconds between two pictures of the screen."""
    monitors: tuple[Monitor, ...] = ()
    """The screens whole, for the qube's programs."""
    dpi: int = 96
    """Dots to the inch, for text."""

    @property
    def usable(self) -> tuple[Rect, ...]:
        return tuple(area for area in self.areas if not area.is_empty)


def clamp_content(x: int, y: int, width: int, height: int) -> Rect:
    """Bring a guest's numbers into what a window may be, whatever they are (MC-35)."""
    return Rect(
        min(max(x, -limits.GUI_MAX_WIDTH), limits.GUI_MAX_WIDTH),
        min(max(y, -limits.GUI_MAX_HEIGHT), limits.GUI_MAX_HEIGHT),
        min(max(width, 1), limits.GUI_MAX_WIDTH),
        min(max(height, 1), limits.GUI_MAX_HEIGHT),
    )


def _nearest(outer: Rect, areas: Sequence[Rect]) -> Rect:
    """The screen most of it is on, else the one with the least way to it."""

    def distance(area: Rect) -> int:
        across = max(area.x - outer.right, outer.x - area.right, 0)
        down = max(area.y - outer.bottom, outer.y - area.bottom, 0)
        return across + down

    return min(areas, key=lambda area: (-outer.intersection(area).area, distance(area)))


def place_window(place: Rect, desk: Desk) -> Rect:
    """Return where an ordinary window goes that is to be at ``place``: there, or where its title can be seen."""
    if not desk.usable:
        return place
    outer = WINDOW_FRAME.around(place)
    area = _nearest(outer, desk.usable)
    visible = min(MIN_VISIBLE, outer.width)
    x = min(max(outer.x, area.x + visible - outer.width), area.right - visible)
    y = min(max(outer.y, area.y), max(area.y, area.bottom - WINDOW_FRAME.top))
    return Rect(place.x + x - outer.x, place.y + y - outer.y, place.width, place.height)


def is_off_screen(place: Rect, desk: Desk) -> bool:
    """Whether no pixel of the content is on a screen: programs put popups there that are not to be seen yet."""
    return not any(place.overlaps(area) for area in desk.usable)


def place_popup(place: Rect, desk: Desk) -> Rect | None:
    """Return where a popup goes that is to be at ``place``; None: nowhere, it cannot be a popup.

    It is cut to the screen, then moved as little as possible.
    """
    if not desk.usable:
        return None
    outer = POPUP_FRAME.around(place)
    area = _nearest(outer, desk.usable)
    if place.width > POPUP_SHARE * area.width and place.height > POPUP_SHARE * area.height:
        return None
    outer = Rect(outer.x, outer.y, min(outer.width, area.width), min(outer.height, area.height))
    smallest = POPUP_FRAME.around(Rect(0, 0, 1, 1))
    if outer.width < smallest.width or outer.height < smallest.height:
        return None
    spots = itertools.islice(_spots(_shifted(outer, area), area, desk.protected), MAX_SPOTS)
    spot = next((spot for spot in spots if _is_free(spot, desk.protected)), None)
    return None if spot is None else POPUP_FRAME.inside(spot)


def _shifted(outer: Rect, area: Rect) -> Rect:
    x = min(max(outer.x, area.x), area.right - outer.width)
    y = min(max(outer.y, area.y), area.bottom - outer.height)
    return Rect(x, y, outer.width, outer.height)


def _is_free(spot: Rect, protected: Iterable[Rect]) -> bool:
    return not any(spot.overlaps(rect) for rect in protected)


def _spots(outer: Rect, area: Rect, protected: Iterable[Rect]) -> Iterator[Rect]:
    """Places on the screen, nearest first: the place itself, and those that end at an edge of what is in the way."""
    xs, ys = {outer.x}, {outer.y}
    for rect in protected:
        xs |= {rect.x - outer.width, rect.right}
        ys |= {rect.y - outer.height, rect.bottom}
    across = sorted((abs(x - outer.x), x) for x in xs if area.x <= x <= area.right - outer.width)
    down = sorted((abs(y - outer.y), y) for y in ys if area.y <= y <= area.bottom - outer.height)
    way = sorted((dx + dy, x, y) for dx, x in across[:MAX_EDGES] for dy, y in down[:MAX_EDGES])
    return (Rect(x, y, outer.width, outer.height) for _, x, y in way)
