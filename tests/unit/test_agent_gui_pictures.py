from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.gui.pictures import Memory, Place

SIZE = 64 * 4096
SIDES = st.tuples(st.integers(1, 200), st.integers(1, 200))


@given(st.lists(SIDES | st.integers(0, 20), max_size=60))
def test_places_lie_within_the_memory_on_pages_and_never_over_each_other(steps: list[tuple[int, int] | int]) -> None:
    """A size takes a place, a number gives one back."""
    memory = Memory(SIZE)
    taken: list[tuple[Place, int]] = []
    for step in steps:
        if isinstance(step, int):
            if taken:
                memory.give_back(taken.pop(step % len(taken))[0])
        else:
            place = memory.take(*step)
            if place is not None:
                taken.append((place, 4 * step[0] * step[1]))
        for place, size in taken:
            assert 0 <= place.start < place.end <= SIZE
            assert place.start % 4096 == place.end % 4096 == 0
            assert place.end - place.start >= size
        ordered = sorted((place.start, place.end) for place, _ in taken)
        assert all(first[1] <= second[0] for first, second in pairwise(ordered))
        assert memory.taken == sum(end - start for start, end in ordered)


def test_full_memory_refuses_and_has_room_again_when_something_is_given_back() -> None:
    memory = Memory(3 * 4096)
    places = [memory.take(32, 32) for _ in range(3)]
    assert memory.take(1, 1) is None
    assert places[1] is not None
    memory.give_back(places[1])
    assert memory.take(64, 32) is None
    again = memory.take(32, 32)
    assert again is not None
    assert again.start == 4096


def test_place_given_back_twice_is_an_error() -> None:
    memory = Memory(SIZE)
    place = memory.take(10, 10)
    assert place is not None
    memory.give_back(place)
    with pytest.raises(ValueError, match="not in list"):
        memory.give_back(place)
