"""Playbooks of input: MC-44 and MC-45."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.clipboard import QubeClipboard
from insula.gui.desktop import (
    Activate,
    AskPaste,
    ButtonChanged,
    Command,
    Event,
    FocusGained,
    FocusLost,
    KeyChanged,
    PointerCrossed,
    PointerMoved,
    Send,
    StartCopy,
)
from insula.gui.keyboard import Keyboard
from insula.gui.settings import ALT, CONTROL, SHIFT, SUPER, Sequence, Settings
from insula_proto import gui
from insula_proto.gui import Message

SETTINGS = Settings("work", 0x3465A4)
NUM_LOCK, CAPS_LOCK = 16, 2
A, B, C, V = 38, 56, 54, 55
KEYMAP_OF_NOTHING = gui.KeymapNotify(0, bytes(32))
ICON = 77
"""Number of a window that lies in the tray."""


def keyboard(settings: Settings = SETTINGS) -> Keyboard:
    return Keyboard(settings, QubeClipboard(1000), lambda window: window == ICON)


def focused(settings: Settings = SETTINGS) -> Keyboard:
    made = keyboard(settings)
    made.happened(FocusGained(1), 0.0)
    return made


def press(code: int, window: int = 1, *, symbol: str = "", state: int = 0, repeat: bool = False) -> KeyChanged:
    return KeyChanged(window, True, code, symbol, state, 5, 6, repeat, 100)


def release(code: int, window: int = 1) -> KeyChanged:
    return KeyChanged(window, False, code, "", 0, 5, 6, False, 101)


def sent(commands: list[Command]) -> list[Message]:
    return [command.message for command in commands if isinstance(command, Send)]


def play(machine: Keyboard, *events: Event) -> list[Message]:
    return [message for event in events for message in sent(machine.happened(event, 0.0))]


def test_focus_lets_go_of_all_keys_before_it_says_so() -> None:
    assert play(keyboard(), FocusGained(1)) == [KEYMAP_OF_NOTHING, gui.Focus(1, True)]


def test_key_of_the_focused_window_arrives() -> None:
    assert play(focused(), press(A, state=CONTROL), release(A)) == [
        gui.Key(1, True, 5, 6, CONTROL, A),
        gui.Key(1, False, 5, 6, 0, A),
    ]


def test_key_without_focus_or_of_another_window_does_not_arrive() -> None:
    """MC-44."""
    assert play(keyboard(), press(A), release(A)) == []
    assert play(focused(), press(A, 2), release(A, 2)) == []
    machine = focused()
    play(machine, FocusLost(1))
    assert play(machine, press(A), release(A)) == []


def test_keys_held_when_the_focus_goes_are_released_in_the_old_window_before_it_loses_it() -> None:
    """MC-45."""
    machine = focused()
    play(machine, press(A), press(B), release(A), ButtonChanged(1, True, 1, 0, 3, 4))
    assert play(machine, FocusLost(1)) == [
        gui.Key(1, False, 5, 6, 0, B),
        gui.Button(1, False, 5, 6, 0, 1),
        gui.Focus(1, False),
    ]


def test_key_pressed_elsewhere_neither_repeats_nor_is_released_here() -> None:
    """MC-45."""
    assert play(focused(), press(A, repeat=True), press(A, repeat=True), release(A)) == []


def test_key_that_was_down_when_the_focus_came_is_unknown_until_it_was_released() -> None:
    """MC-45: a desktop that shows its repetitions as new presses."""
    machine = keyboard()
    play(machine, FocusGained(1, frozenset({A})))
    assert play(machine, press(A), press(A, repeat=True), release(A)) == []
    assert play(machine, press(A)) == [gui.Key(1, True, 5, 6, 0, A)]
    play(machine, FocusGained(2, frozenset({V})))
    assert play(machine, press(V, 2, symbol="v", state=CONTROL | SHIFT)) == []


def test_key_held_over_a_change_of_focus_and_back_repeats_nowhere() -> None:
    """MC-45."""
    machine = focused()
    play(machine, press(A))
    assert gui.Key(1, False, 5, 6, 0, A) in play(machine, FocusLost(1))
    assert play(machine, FocusGained(1), press(A, repeat=True), release(A)) == [KEYMAP_OF_NOTHING, gui.Focus(1, True)]
    assert play(machine, press(A)) == [gui.Key(1, True, 5, 6, 0, A)]


def test_repetition_of_a_key_pressed_here_arrives() -> None:
    machine = focused()
    play(machine, press(A))
    assert play(machine, press(A, repeat=True)) == [gui.Key(1, True, 5, 6, 0, A)]


def test_focus_that_goes_straight_to_another_window_of_the_qube_is_lost_by_the_first() -> None:
    machine = focused()
    play(machine, press(A))
    assert play(machine, FocusGained(2)) == [
        gui.Key(1, False, 5, 6, 0, A),
        gui.Focus(1, False),
        KEYMAP_OF_NOTHING,
        gui.Focus(2, True),
    ]
    assert play(machine, FocusLost(1)) == []
    assert machine.focused == 2


def test_hidden_window_has_no_focus() -> None:
    machine = focused()
    play(machine, press(A))
    assert sent(machine.hidden(1)) == [gui.Key(1, False, 5, 6, 0, A), gui.Focus(1, False)]
    assert machine.hidden(1) == []


@pytest.mark.parametrize("code", [0, 7, 256, -1, 2**31])
def test_impossible_key_code_does_not_arrive(code: int) -> None:
    assert play(focused(), press(code)) == []


# --- copy and paste --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", [0, NUM_LOCK, CAPS_LOCK, NUM_LOCK | CAPS_LOCK])
def test_keys_that_copy_start_a_copy_and_do_not_arrive(locks: int) -> None:
    machine = focused()
    event = press(C, symbol="c", state=CONTROL | SHIFT | locks)
    assert machine.happened(event, 0.0) == [StartCopy(1, 100), Send(gui.ClipboardRequest(1))]
    assert play(machine, replace(event, is_repeat=True), release(C)) == []
    assert play(machine, press(C), release(C)) == [gui.Key(1, True, 5, 6, 0, C), gui.Key(1, False, 5, 6, 0, C)]


def test_keys_that_paste_ask_for_it_and_do_not_arrive() -> None:
    """MC-53."""
    machine = focused()
    assert machine.happened(press(V, symbol="v", state=CONTROL | SHIFT), 0.0) == [AskPaste(1, 100)]
    assert play(machine, release(V)) == []


@pytest.mark.parametrize("state", [0, CONTROL, SHIFT, CONTROL | SHIFT | ALT, CONTROL | SHIFT | SUPER])
def test_other_modifiers_are_an_ordinary_key(state: int) -> None:
    assert play(focused(), press(V, symbol="v", state=state)) == [gui.Key(1, True, 5, 6, state, V)]


def test_keys_that_copy_without_focus_do_nothing() -> None:
    """MC-53."""
    for machine in (keyboard(), focused()):
        for symbol in "cv":
            assert machine.happened(press(C, 2, symbol=symbol, state=CONTROL | SHIFT), 0.0) == []


def test_repetition_of_the_keys_that_copy_pressed_elsewhere_does_nothing() -> None:
    """MC-45, MC-53: the sequence held down while the focus changes."""
    assert focused().happened(press(V, symbol="v", state=CONTROL | SHIFT, repeat=True), 0.0) == []


def test_sequences_are_the_users_choice_and_can_be_none() -> None:
    machine = focused(replace(SETTINGS, copy=None, paste=Sequence(SUPER, "v")))
    assert sent(machine.happened(press(C, symbol="c", state=CONTROL | SHIFT), 0.0)) != []
    assert machine.happened(press(V, symbol="v", state=SUPER), 0.0) == [AskPaste(1, 100)]


# --- pointer ---------------------------------------------------------------------------------------------------------


def test_pointer_reaches_any_window_of_the_qube_the_user_works_in() -> None:
    assert play(
        focused(), PointerCrossed(2, True, 0, 1, 2), PointerMoved(2, 0, 3, 4), PointerCrossed(2, False, 0, 9, 9)
    ) == [
        KEYMAP_OF_NOTHING,
        gui.Crossing(2, True, 1, 2, 0),
        gui.Motion(2, 3, 4, 0),
        gui.Crossing(2, False, 9, 9, 0),
    ]


def test_pointer_over_a_window_of_another_qube_is_not_told() -> None:
    """MC-44."""
    assert play(keyboard(), PointerCrossed(1, True, 0, 1, 2), PointerMoved(1, 0, 3, 4)) == []


def test_click_into_another_qube_is_how_the_user_goes_there_and_nothing_else() -> None:
    """MC-44."""
    machine = keyboard()
    assert machine.happened(ButtonChanged(1, True, 1, 0, 3, 4), 0.0) == [Activate(1)]
    assert machine.happened(ButtonChanged(1, False, 1, 0, 3, 4), 0.0) == []
    for wheel in (4, 5, 6, 7):
        assert machine.happened(ButtonChanged(1, True, wheel, 0, 3, 4), 0.0) == []


def test_icon_in_the_tray_is_clicked_without_focus_and_gets_no_keys() -> None:
    made = keyboard()
    assert made.happened(ButtonChanged(ICON, True, 1, 0, 5, 6), 0.0) == [Send(gui.Button(ICON, True, 5, 6, 0, 1))]
    assert made.happened(ButtonChanged(ICON, False, 1, 256, 5, 6), 0.0) == [Send(gui.Button(ICON, False, 5, 6, 256, 1))]
    assert made.happened(PointerMoved(ICON, 0, 5, 6), 0.0) == []
    assert made.happened(press(A, ICON), 0.0) == []
    assert made.focused is None


def test_icon_that_goes_under_a_pressed_button_releases_it() -> None:
    made = keyboard()
    made.happened(ButtonChanged(ICON, True, 3, 0, 5, 6), 0.0)
    assert made.hidden(ICON) == [Send(gui.Button(ICON, False, 0, 0, 0, 3))]
    assert made.hidden(ICON) == []


def test_button_is_released_where_it_is_let_go_within_the_qube() -> None:
    machine = focused()
    play(machine, ButtonChanged(1, True, 1, 0, 3, 4))
    assert play(machine, ButtonChanged(2, False, 1, 256, 7, 8)) == [gui.Button(2, False, 7, 8, 256, 1)]
    assert play(machine, ButtonChanged(2, False, 1, 0, 7, 8)) == []


@pytest.mark.parametrize("button", [0, 33, -1, 2**31])
def test_impossible_button_does_not_arrive(button: int) -> None:
    assert play(focused(), ButtonChanged(1, True, button, 0, 3, 4)) == []


def test_far_pointer_and_odd_state_fit_the_wire() -> None:
    machine = focused()
    [motion] = play(machine, PointerMoved(1, 2**40, 2**31, -(2**31)))
    assert motion == gui.Motion(1, 32767, -32767, 0)


# --- any order -------------------------------------------------------------------------------------------------------

WINDOW = st.sampled_from([1, 2])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(FocusGained, WINDOW),
    st.builds(FocusLost, WINDOW),
    st.builds(
        KeyChanged,
        WINDOW,
        st.booleans(),
        st.sampled_from([A, B, C]),
        st.sampled_from(["", "c", "v"]),
        st.sampled_from([0, CONTROL | SHIFT]),
        st.just(0),
        st.just(0),
        st.booleans(),
        st.integers(0, 1000),
    ),
    st.builds(ButtonChanged, WINDOW, st.booleans(), st.sampled_from([1, 4]), st.just(0), st.just(0), st.just(0)),
)


@given(st.lists(EVENTS, max_size=40))
def test_any_order_nothing_stays_pressed_and_nothing_is_pressed_without_focus(events: list[Event]) -> None:
    """MC-44, MC-45."""
    machine = keyboard()
    focus: int | None = None
    down: set[tuple[str, int]] = set()
    for event in [*events, FocusLost(1), FocusLost(2)]:
        for message in sent(machine.happened(event, 0.0)):
            if isinstance(message, gui.Focus):
                assert (focus is None) == message.is_in
                assert not down
                focus = message.window if message.is_in else None
            elif isinstance(message, (gui.Key, gui.Button)):
                thing = ("key", message.code) if isinstance(message, gui.Key) else ("button", message.button)
                assert focus is not None
                if isinstance(message, gui.Key):
                    assert message.window == focus
                if message.is_press:
                    assert thing not in down or isinstance(event, (KeyChanged, ButtonChanged))
                    down.add(thing)
                else:
                    assert thing in down
                    down.discard(thing)
    assert focus is None
    assert not down
