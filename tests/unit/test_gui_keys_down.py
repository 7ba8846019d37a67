"""Releases of keys that are real, and those that belong to repeating."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.backend.keys_down import NO_REPEAT_MS, KeysDown

A, B = 38, 56


class Server:
    def __init__(self, *down: int) -> None:
        self.down = set(down)
        self.asked = 0

    def held(self) -> set[int]:
        self.asked += 1
        return self.down


def test_key_pressed_and_released_here_is_up_and_nobody_is_asked() -> None:
    server = Server()
    keys = KeysDown(server.held)
    assert keys.gain() == frozenset()
    server.asked = 0
    for stamp in (1000, 1100, 1200):
        keys.press(A, stamp, is_repeat=False)
        assert keys.is_release(A, stamp + NO_REPEAT_MS - 1)
    assert server.asked == 0


def test_key_that_was_held_before_the_focus_came_is_not_released_by_its_repeating() -> None:
    """MC-45: also where Qt knows none of the pairs."""
    server = Server(A)
    keys = KeysDown(server.held)
    assert keys.gain() == {A}
    for stamp in range(1000, 2000, 33):
        assert not keys.is_release(A, stamp)
        keys.press(A, stamp, is_repeat=False)
    server.down.clear()
    assert keys.is_release(A, 2033)
    keys.press(A, 2100, is_repeat=False)
    server.down.add(A)
    assert keys.is_release(A, 2150), "pressed here, and quickly released"


@pytest.mark.parametrize("is_known", [True, False])
def test_key_that_repeats_here_is_released_once(is_known: bool) -> None:
    server = Server()
    keys = KeysDown(server.held)
    keys.gain()
    server.down.add(A)
    keys.press(A, 1000, is_repeat=False)
    for stamp in range(1660, 2600, 33):
        if not is_known:
            assert not keys.is_release(A, stamp)
        keys.press(A, stamp, is_repeat=is_known)
    server.down.clear()
    assert keys.is_release(A, 2633)


def test_what_was_down_is_forgotten_with_the_focus() -> None:
    server = Server(A)
    keys = KeysDown(server.held)
    keys.gain()
    keys.lose()
    server.down.clear()
    keys.gain()
    keys.press(A, 1000, is_repeat=False)
    server.down.add(A)
    assert keys.is_release(A, 1050)


@given(held=st.sets(st.sampled_from([A, B])), pairs=st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 200))))
def test_no_key_that_is_down_all_the_while_is_ever_released(held: set[int], pairs: list[tuple[int, int]]) -> None:
    server = Server(*held)
    keys = KeysDown(server.held)
    keys.gain()
    stamp = 1000
    for code, passed in pairs:
        stamp += passed
        if code in held:
            assert not keys.is_release(code, stamp)
        keys.press(code, stamp, is_repeat=False)
        if code not in held:
            assert keys.is_release(code, stamp + 1)
