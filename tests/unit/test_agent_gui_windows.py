"""The pure parts of the agent's windows; the rest is seen on a real X server, in tests/desktop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.gui.geometry import Rect
from insula_agent.gui.windows import united

NUMBERS = st.tuples(st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 100), st.integers(1, 100))


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_united_is_the_smallest_rectangle_around_all(rects: list[tuple[int, int, int, int]]) -> None:
    around = None
    expected = Rect(*rects[0])
    for rect in rects:
        around = united(around, rect)
        expected = expected.union(Rect(*rect))
    assert around == (expected.x, expected.y, expected.width, expected.height)
