from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.geometry import (
    POPUP_FRAME,
    WINDOW_FRAME,
    Desk,
    Frame,
    Rect,
    clamp_content,
    is_off_screen,
    place_popup,
    place_window,
)

ANY = st.integers(-(2**31), 2**32)
POSITION = st.integers(-20000, 20000)
SIDE = st.integers(1, 17000)
PLACE = st.builds(Rect, POSITION, POSITION, SIDE, SIDE)
AREA = st.builds(Rect, st.integers(-3000, 3000), st.integers(-2000, 2000), st.integers(0, 4000), st.integers(0, 3000))
SMALL = st.builds(Rect, POSITION, POSITION, st.integers(1, 400), st.integers(1, 400))
NEAR = st.builds(Rect, st.integers(-100, 2000), st.integers(-100, 1200), st.integers(1, 400), st.integers(1, 400))
DESK = st.builds(Desk, st.lists(AREA, max_size=3).map(tuple), st.lists(NEAR, max_size=3).map(tuple))
SCREEN = Desk((Rect(0, 30, 1280, 770),))


CELLS = st.builds(Rect, st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 5), st.integers(0, 5))


def cells(rect: Rect) -> set[tuple[int, int]]:
    return {(x, y) for x in range(rect.x, rect.right) for y in range(rect.y, rect.bottom)}


@given(CELLS, CELLS)
def test_without_is_what_lies_in_one_and_not_in_the_other_once(rect: Rect, other: Rect) -> None:
    parts = rect.without(other)
    assert len(parts) <= 4
    assert sum(part.area for part in parts) == len(cells(rect) - cells(other))
    assert set().union(*map(cells, parts)) == cells(rect) - cells(other)


@given(ANY, ANY, ANY, ANY)
def test_clamp_any_numbers_give_a_possible_window(x: int, y: int, width: int, height: int) -> None:
    """MC-35."""
    place = clamp_content(x, y, width, height)
    assert 1 <= place.width <= 16384
    assert 1 <= place.height <= 6144
    assert abs(place.x) <= 16384
    assert abs(place.y) <= 6144


@given(ANY, ANY)
def test_clamp_possible_window_is_unchanged(x: int, y: int) -> None:
    place = clamp_content(x % 1000, y % 1000, 1 + x % 500, 1 + y % 500)
    assert place == Rect(x % 1000, y % 1000, 1 + x % 500, 1 + y % 500)


@given(PLACE, DESK)
def test_window_anywhere_a_part_of_its_title_stays_on_a_screen(place: Rect, desk: Desk) -> None:
    """MC-38."""
    placed = place_window(place, desk)
    assert (placed.width, placed.height) == (place.width, place.height)
    outer = WINDOW_FRAME.around(placed)
    title = Rect(outer.x, outer.y, outer.width, WINDOW_FRAME.top)
    big_enough = [area for area in desk.usable if area.height >= WINDOW_FRAME.top and area.width >= 64]
    if len(big_enough) == len(desk.usable) and desk.usable:
        seen = [title.intersection(area) for area in desk.usable]
        assert any(part.height == WINDOW_FRAME.top and part.width >= min(64, outer.width) for part in seen)
        assert len(desk.usable) > 1 or place_window(placed, desk) == placed


def test_window_where_it_can_be_seen_is_not_moved() -> None:
    assert place_window(Rect(100, 100, 400, 300), SCREEN) == Rect(100, 100, 400, 300)


def test_window_under_the_panel_comes_below_it() -> None:
    assert place_window(Rect(100, 0, 400, 300), SCREEN) == Rect(100, 52, 400, 300)


@given(PLACE | SMALL, DESK)
def test_popup_anywhere_lies_wholly_on_one_screen_over_nothing_protected_or_nowhere(place: Rect, desk: Desk) -> None:
    """MC-38: its frame cannot be pushed off the screen, it cannot cover a panel, prompt or another qube's frame."""
    placed = place_popup(place, desk)
    if placed is None:
        return
    outer = POPUP_FRAME.around(placed)
    assert any(area.contains(outer) for area in desk.areas)
    assert not any(outer.overlaps(rect) for rect in desk.protected)
    assert placed.width <= place.width
    assert placed.height <= place.height
    assert place_popup(placed, desk) == placed


@pytest.mark.parametrize(
    ("place", "placed"),
    [
        (Rect(100, 100, 200, 100), Rect(100, 100, 200, 100)),
        (Rect(-50, 100, 200, 100), Rect(2, 100, 200, 100)),
        (Rect(1200, 750, 200, 100), Rect(1078, 687, 200, 100)),
        (Rect(100, 100, 200, 770), Rect(100, 32, 200, 755)),
        (Rect(0, 30, 1280, 770), None),
        (Rect(0, 30, 1153, 694), None),
        (Rect(64, 40, 1152, 700), Rect(64, 40, 1152, 700)),
    ],
)
def test_popup_is_moved_or_cut_to_the_screen_and_refused_when_as_large_as_one(place: Rect, placed: Rect | None) -> None:
    assert place_popup(place, SCREEN) == placed


def test_popup_over_something_protected_goes_beside_it() -> None:
    prompt = Rect(500, 300, 300, 200)
    desk = Desk(SCREEN.areas, (prompt,))
    placed = place_popup(Rect(480, 350, 100, 50), desk)
    assert placed == Rect(398, 350, 100, 50)
    everything = Desk(SCREEN.areas, (Rect(0, 0, 1280, 800),))
    assert place_popup(Rect(480, 350, 100, 50), everything) is None


@given(PLACE)
def test_no_screen_windows_stay_popups_are_nowhere(place: Rect) -> None:
    """MC-46."""
    for desk in (Desk(()), Desk((Rect(0, 0, 0, 0),)), Desk((Rect(0, 0, -5, 100),))):
        assert place_window(place, desk) == place
        assert place_popup(place, desk) is None
        assert is_off_screen(place, desk)


@given(SMALL, st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_frame_lies_around_its_content_everywhere(place: Rect, left: int, top: int, right: int, bottom: int) -> None:
    frame = Frame(left, top, right, bottom)
    assert frame.inside(frame.around(place)) == place
    assert frame.around(place).contains(place)


@given(SMALL, SMALL)
def test_intersection_is_in_both_and_union_around_both(first: Rect, second: Rect) -> None:
    both = first.intersection(second)
    assert both.is_empty or (first.contains(both) and second.contains(both))
    assert first.union(second).contains(first)
    assert first.union(second).contains(second)
    assert first.overlaps(second) == second.overlaps(first)
