"""Pictures of the screen for the user: what is in one, and its name. Pure, but for finding a free name.

Only the user's own programs can take one, as with any desktop; a qube sees nothing but its own X server (MC-38). Two
things are painted over. A picture of a *window* has nothing of others in it: what lies above it and belongs to another
qube, or to the host, is blank. And no picture has the mark of the host (:mod:`insula.manager.host_mark`) in it, which a
qube that is given the picture could imitate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from insula.gui.cover import visible
from insula.gui.geometry import Rect

SUFFIX = ".png"
MAX_OF_A_SECOND = 100
"""Pictures with the same time in their names."""
MIN_REGION = 4
"""Pixels of a side; what is less was a click."""


@dataclass(frozen=True)
class ShotWindow:
    """A window that can be seen."""

    place: Rect
    """With its frame."""
    qube: str
    """Whose it is; empty: the host's."""
    is_managed: bool
    """Else a menu, a notice or the like."""
    has_mark: bool = False
    """Whether it shows the mark of the host."""


@dataclass(frozen=True)
class Shot:
    """What a picture shows."""

    area: Rect
    blank: tuple[Rect, ...] = ()
    """What is painted over, in the screen's coordinates."""


class NothingToShow(Exception):
    """The message says why."""


def of_screen(screen: Rect, windows: Sequence[ShotWindow]) -> Shot:
    """All of it. ``windows``: topmost first, as everywhere here."""
    return Shot(screen, tuple(_marks(windows)))


def of_region(region: Rect, screen: Rect, windows: Sequence[ShotWindow]) -> Shot:
    """:raise NothingToShow: too small, or not on the screen."""
    area = region.intersection(screen)
    if min(area.width, area.height) < MIN_REGION:
        raise NothingToShow("no region was chosen")
    return Shot(area, tuple(_marks(windows)))


def of_qube(qube: str, screen: Rect, windows: Sequence[ShotWindow]) -> Shot:
    """Its topmost window. :raise NothingToShow: it has none on the screen."""
    for window in windows:
        if window.qube == qube and window.is_managed:
            return of_window(window, screen, windows)
    raise NothingToShow(f"no window of {qube} can be seen")


def of_window(window: ShotWindow, screen: Rect, windows: Sequence[ShotWindow]) -> Shot:
    """One of ``windows``. :raise NothingToShow: it lies outside the screen."""
    area = window.place.intersection(screen)
    if area.is_empty:
        raise NothingToShow("the window is not on the screen")
    above = windows[: windows.index(window)]
    others = [each.place for each in above if each.qube != window.qube or not each.qube]
    return Shot(area, (*others, *_marks(windows)))


def window_at(x: int, y: int, windows: Sequence[ShotWindow]) -> ShotWindow | None:
    """The managed window that can be seen there."""
    for window in windows:
        if window.place.contains(Rect(x, y, 1, 1)):
            return window if window.is_managed else None
    return None


def region(start: tuple[int, int], end: tuple[int, int]) -> Rect:
    """Between two corners, both in it."""
    left, top = min(start[0], end[0]), min(start[1], end[1])
    return Rect(left, top, abs(start[0] - end[0]) + 1, abs(start[1] - end[1]) + 1)


def _marks(windows: Sequence[ShotWindow]) -> Iterator[Rect]:
    """What can be seen of windows with the mark."""
    for number, window in enumerate(windows):
        if window.has_mark:
            yield from visible(window.place, [above.place for above in windows[:number]])


def free_path(folder: Path, now: datetime) -> Path:
    """A file that is not there. :raise FileExistsError: there are many of this second."""
    stem = f"Screenshot {now:%Y-%m-%d %H-%M-%S}"
    for number in range(1, MAX_OF_A_SECOND + 1):
        path = folder / f"{stem}{f' {number}' if number > 1 else ''}{SUFFIX}"
        if not path.exists():
            return path
    raise FileExistsError(f"{folder} has {MAX_OF_A_SECOND} pictures of this second")
