from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.gui.damage import MAX_RECTS, Damage
from insula.gui.geometry import Rect

RECT = st.builds(Rect, st.integers(-50, 100), st.integers(-50, 100), st.integers(-5, 60), st.integers(-5, 60))
BOUNDS = Rect(0, 0, 100, 80)


def pixels(rects: tuple[Rect, ...]) -> set[tuple[int, int]]:
    return {(x, y) for r in rects for x in range(r.x, r.right) for y in range(r.y, r.bottom)}


@given(st.lists(RECT, max_size=20))
def test_take_few_rectangles_cover_all_that_changed_within_bounds(rects: list[Rect]) -> None:
    """MC-43."""
    damage = Damage()
    for rect in rects:
        damage.add(rect)
    taken = damage.take(BOUNDS)
    assert len(taken) <= MAX_RECTS
    assert all(BOUNDS.contains(rect) for rect in taken)
    changed = tuple(rect.intersection(BOUNDS) for rect in rects if not rect.is_empty)
    assert pixels(changed) <= pixels(taken)
    assert damage.take(BOUNDS) == ()


def test_a_hundred_thousand_changes_keep_a_handful() -> None:
    """MC-43."""
    damage = Damage()
    for number in range(100_000):
        damage.add(Rect(number % 97, number % 79, 3, 2))
    assert len(damage._rects) <= MAX_RECTS


def test_change_inside_another_adds_nothing() -> None:
    damage = Damage()
    damage.add(Rect(10, 10, 5, 5))
    damage.add(Rect(0, 0, 50, 50))
    damage.add(Rect(20, 20, 5, 5))
    assert damage.take(BOUNDS) == (Rect(0, 0, 50, 50),)
