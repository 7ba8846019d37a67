"""The pure parts of the agent's windows; the rest is seen on a real X server, in tests/desktop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.geometry import Rect
from insula_agent.gui.windows import cut, united
from insula_proto import gui, gui_wire

NUMBERS = st.tuples(st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 100), st.integers(1, 100))


@given(st.text(max_size=200))
def test_cut_title_is_whole_characters_that_fit_the_wire(text: str) -> None:
    title = cut(text.encode(), 128)
    assert text.partition("\0")[0].startswith(title.decode())
    gui_wire.encode(gui.Title(1, title))


@given(st.binary(max_size=200))
def test_cut_any_bytes_fit_the_wire(data: bytes) -> None:
    gui_wire.encode(gui.Title(1, cut(data, 128)))
    gui_wire.encode(gui.WindowClass(1, cut(data, 64), cut(data, 64)))


@pytest.mark.parametrize("text", ["", "plain", "x" * 127, "Editor – ü", "☃" * 42])
def test_cut_leaves_what_fits(text: str) -> None:
    assert cut(text.encode(), 128) == text.encode()


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_united_is_the_smallest_rectangle_around_all(rects: list[tuple[int, int, int, int]]) -> None:
    around = None
    expected = Rect(*rects[0])
    for rect in rects:
        around = united(around, rect)
        expected = expected.union(Rect(*rect))
    assert around == (expected.x, expected.y, expected.width, expected.height)
