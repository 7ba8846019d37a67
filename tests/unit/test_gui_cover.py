"""What popups may not cover (MC-38), pixel by pixel on a small desktop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.gui import cover
from insula.gui.cover import NOTHING, Pane, protected, ring, visible, without_docks
from insula.gui.geometry import Rect

SMALL = st.builds(Rect, st.integers(-4, 12), st.integers(-4, 12), st.integers(0, 9), st.integers(0, 9))
PANES = st.lists(st.builds(Pane, SMALL, SMALL | st.just(NOTHING), st.booleans()), max_size=7)
PIXELS = [Rect(x, y, 1, 1) for x in range(-5, 22) for y in range(-5, 22)]


@given(SMALL, SMALL)
def test_ring_is_the_outer_without_the_inner_each_pixel_once(outer: Rect, inner: Rect) -> None:
    parts = ring(outer, inner)
    for pixel in PIXELS:
        expected = outer.overlaps(pixel) and not inner.overlaps(pixel)
        assert sum(part.overlaps(pixel) for part in parts) == expected


@given(PANES)
def test_protected_is_what_can_be_seen_of_others_frames_each_pixel(panes: list[Pane]) -> None:
    found = protected(panes)
    for pixel in PIXELS:
        top = next((pane for pane in panes if pane.outer.overlaps(pixel)), None)
        expected = top is not None and not top.is_own and not top.inner.overlaps(pixel)
        assert any(rect.overlaps(pixel) for rect in found) == expected


def test_more_than_can_be_kept_protects_more_never_less() -> None:
    """A desktop that is cut into thousands of pieces."""
    holes = [Rect(3 * column, 3 * row, 1, 1) for row in range(40) for column in range(40)]
    parts = visible(Rect(0, 0, 120, 120), holes)
    assert len(parts) <= cover.MAX_PROTECTED
    for pixel in (Rect(1, 1, 1, 1), Rect(118, 118, 1, 1), Rect(60, 61, 1, 1)):
        assert any(part.overlaps(pixel) for part in parts)
    panes = [Pane(hole, is_own=True) for hole in holes] + [Pane(Rect(0, 0, 120, 120))] * 50
    assert len(protected(panes)) <= cover.MAX_PROTECTED + 50


def test_panels_are_taken_from_the_screen_they_are_on() -> None:
    left, right = Rect(0, 0, 1000, 800), Rect(1000, 0, 1000, 800)
    top, bottom, side = Rect(0, 0, 1000, 30), Rect(1000, 760, 1000, 40), Rect(1950, 0, 50, 800)
    assert without_docks(left, (top, bottom, side)) == Rect(0, 30, 1000, 770)
    assert without_docks(right, (top, bottom, side)) == Rect(1000, 0, 950, 760)
    # What fills the screen is no panel, and what is elsewhere takes nothing.
    assert without_docks(left, (Rect(0, 0, 1000, 800), Rect(5000, 0, 10, 10))) == left


@given(SMALL, st.lists(SMALL, max_size=5))
def test_panels_leave_a_part_of_the_screen(area: Rect, docks: list[Rect]) -> None:
    left = without_docks(area, docks)
    assert left.is_empty or area.contains(left)
