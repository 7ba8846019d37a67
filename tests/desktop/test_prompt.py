"""The prompt on a real screen: what is typed and clicked when, and what is seen (MC-24, MC-32, MC-40)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.model.labels import BUILTIN_LABELS
from insula.policy.agent import Notice, Notification, Question, Resolution
from insula.testing.desktop import Desktop, Picture, Window, desktop
from insula.testing.prompt_program import MARK, TITLE, WAIT_S, PromptProgram, running_prompt

pytestmark = pytest.mark.desktop

RED = BUILTIN_LABELS["red"].color
YELLOW = BUILTIN_LABELS["yellow"].color
ICONS = {
    "untrusted": "appvm-red",
    "personal": "appvm-yellow",
    "vault": "appvm-black",
    "work": "appvm-blue",
    "@dispvm:web": "dispvm-orange",
}
QUESTION = Question("untrusted", "qubes.Filecopy", "+", ("personal", "vault", "work", "@dispvm:web"), "work", ICONS)
MANY = Question(
    "personal", "qubes.Gpg", "+", ("finance", "mail", "personal-web", "shop", "vault", "web", "work"), None, ICONS
)
SHORT = Question("personal", "qubes.Gpg", "+", ("vault", "work"), None, ICONS)
ARM_DELAY_S = 1.0
"""What is promised, not what is set."""
OTHER_MARK = "fedcba9876543210\n"


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1024, 768) as shown:
        yield shown


@pytest.fixture
def prompt(screen: Desktop, tmp_path: Path) -> Iterator[PromptProgram]:
    with running_prompt(screen, tmp_path) as program:
        yield program


def test_mc32_clicks_before_the_delay_is_over_do_nothing_and_begin_it_anew(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    window = prompt.settled()
    # Quicker than the delay, as somebody who clicks away in a game; one program: no start of another is between.
    pause_ms = round(ARM_DELAY_S * 200)
    prompt.screen.do("mousemove", *prompt.allow_button(window), "click", "--repeat", 15, "--delay", pause_ms, 1)
    assert asking.is_open
    clicked_last = time.monotonic()
    prompt.armed()
    assert time.monotonic() - clicked_last > ARM_DELAY_S / 2
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_enter_never_allows(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    prompt.armed()
    prompt.screen.key("Return", "KP_Enter", "Tab", "Return", "Tab", "Return", "Tab", "Return")
    # Had any of these allowed, the answer would not be that of Escape.
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_mc32_typing_while_it_appears_goes_nowhere(prompt: PromptProgram) -> None:
    """Somebody writes a letter, with the words and keys that would choose another target and allow it."""
    typing = prompt.start(["xdotool", "type", "--delay", "20", "vault\t\t\t  \n va\t\t  " * 8])
    asking = prompt.ask(QUESTION)
    assert typing.wait(WAIT_S) == 0
    assert asking.is_open
    window = prompt.armed()
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_key_held_down_since_before_does_nothing(prompt: PromptProgram) -> None:
    prompt.screen.do("keydown", "space")
    try:
        asking = prompt.ask(QUESTION)
        prompt.settled()
        time.sleep(2 * ARM_DELAY_S)  # it repeats all the time
        assert asking.is_open
    finally:
        prompt.screen.do("keyup", "space")
    prompt.armed()
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_mc32_lost_focus_disarms_and_the_click_that_brings_it_back_allows_nothing(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    window = prompt.armed()
    other = prompt.cover(window)
    prompt.screen.activate(other.number)
    prompt.screen.wait(lambda: not prompt.is_enabled(prompt.allow_button(window)), "it is still armed")
    prompt.screen.click(*prompt.allow_button(window))
    prompt.screen.wait(lambda: prompt.screen.focused() == window.number, "the focus did not come back")
    assert asking.is_open
    prompt.armed()
    assert asking.is_open
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_other_window_does_not_cover_it(prompt: PromptProgram) -> None:
    prompt.ask(QUESTION)
    window = prompt.armed()
    before = prompt.picture(window)
    other = prompt.cover(window)
    prompt.screen.activate(other.number)
    prompt.screen.do("windowraise", other.number)
    outside = (window.x - 10, window.y + 30)
    prompt.screen.wait(lambda: prompt.screen.picture().pixel(*outside) == 0x00FF00, "the other one is not shown")
    prompt.screen.wait(lambda: not prompt.is_enabled(prompt.allow_button(window)), "it is still armed")
    after = prompt.picture(window)
    assert after.share(0x00FF00) == 0.0
    told = (0, 0, window.width, 160)  # mark, source, what it asks: the rest shows that it is not armed
    assert after.part(*told).difference(before.part(*told)) == 0.0


def test_mc32_next_question_does_not_take_the_second_click_of_two(prompt: PromptProgram) -> None:
    first, second, third = prompt.ask(QUESTION), prompt.ask(QUESTION), prompt.ask(QUESTION)
    window = prompt.armed()
    x, y = prompt.allow_button(window)
    prompt.screen.do("mousemove", x, y, "click", "--repeat", "3", "--delay", "50", "1")
    assert first.answer() == b"allow:work"
    assert second.is_open
    assert prompt.armed() == window
    prompt.screen.click(*prompt.deny_button(window))
    assert second.answer() == b"deny"
    assert third.is_open


def test_mc32_no_button_moves_when_another_question_comes_or_is_withdrawn(prompt: PromptProgram) -> None:
    """A guest takes a question back at the moment of a click on "Deny all": Allow must not come there."""
    first = prompt.ask(QUESTION)
    alone = prompt.armed()
    assert not prompt.is_enabled(prompt.deny_all_button(alone)), "it is shown though nothing waits"
    other = prompt.ask(QUESTION)
    prompt.screen.wait(lambda: prompt.is_enabled(prompt.deny_all_button(alone)), "it is not shown")
    assert prompt.armed() == alone
    other.close()
    prompt.screen.wait(lambda: not prompt.is_enabled(prompt.deny_all_button(alone)), "it is still shown")
    assert prompt.armed() == alone
    prompt.screen.click(*prompt.deny_all_button(alone))
    assert first.is_open
    other = prompt.ask(QUESTION)
    prompt.screen.wait(lambda: prompt.is_enabled(prompt.deny_all_button(alone)), "it is not shown")
    prompt.screen.click(*prompt.deny_all_button(alone))
    assert (first.answer(), other.answer()) == (b"deny", b"deny")


def test_mc24_prompt_disappears_with_its_caller(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    prompt.armed()
    asking.close()
    prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")


def test_deny_works_at_once_and_closing_the_window_denies(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    prompt.screen.click(*prompt.deny_button(prompt.settled()))
    assert asking.answer() == b"deny"
    prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")
    asking = prompt.ask(QUESTION)
    prompt.settled()
    prompt.screen.key("alt+F4")  # which openbox takes, and asks the window to close
    assert asking.answer() == b"deny"


def test_target_chosen_by_mouse_is_the_answer(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    window = prompt.armed()
    prompt.screen.click(*prompt.row(window, 3, 4))
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:@dispvm:web"


def test_double_click_on_a_target_chooses_and_does_not_allow(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    window = prompt.armed()
    x, y = prompt.row(window, 1, 4)
    prompt.screen.do("mousemove", x, y, "click", "--repeat", "2", "--delay", "30", "1")
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_by_keyboard_alone_filter_choose_allow(prompt: PromptProgram) -> None:
    asking = prompt.ask(MANY)
    window = prompt.settled()
    status = (window.x + 22, window.y + window.height - 50, 150, 26)
    unarmed = prompt.screen.picture().part(*status)
    prompt.screen.wait(lambda: prompt.screen.picture().part(*status).difference(unarmed) > 0, "it is not armed")
    prompt.screen.type("wor")
    prompt.screen.key("Down", "Tab", "Tab", "space")
    assert asking.answer() == b"allow:work"


def test_by_keyboard_alone_from_a_short_list(prompt: PromptProgram) -> None:
    asking = prompt.ask(SHORT)
    window = prompt.settled()
    status = (window.x + 22, window.y + window.height - 50, 150, 26)
    unarmed = prompt.screen.picture().part(*status)
    prompt.screen.wait(lambda: prompt.screen.picture().part(*status).difference(unarmed) > 0, "it is not armed")
    prompt.screen.key("Down", "Down", "Tab", "Tab", "space")
    assert asking.answer() == b"allow:work"


def test_nothing_selected_cannot_be_allowed(prompt: PromptProgram) -> None:
    asking = prompt.ask(MANY)
    window = prompt.settled()
    time.sleep(1.5 * ARM_DELAY_S)
    assert not prompt.is_enabled(prompt.allow_button(window))
    prompt.screen.click(*prompt.allow_button(window))
    prompt.screen.key("Tab", "Tab", "Tab", "space", "Escape")
    assert asking.answer() == b"deny"


def test_frame_has_the_colour_of_the_source_on_all_sides(prompt: PromptProgram) -> None:
    for question, rgb in ((QUESTION, RED), (MANY, YELLOW)):
        asking = prompt.ask(question)
        window = prompt.settled()
        picture = prompt.picture(window)
        below_mark = window.height - 58
        for part in (
            picture.part(0, 58, 6, below_mark),
            picture.part(window.width - 6, 58, 6, below_mark),
            picture.part(0, window.height - 6, window.width, 6),
        ):
            assert part.share(rgb) == 1.0
        asking.close()
        prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")


def test_mc40_mark_is_that_of_this_computer_and_no_other(screen: Desktop, tmp_path: Path) -> None:
    pictures = []
    for number, mark in enumerate((MARK, MARK, OTHER_MARK)):
        with running_prompt(screen, tmp_path / str(number), mark) as program:
            program.ask(QUESTION)
            window = program.armed()
            pictures.append(program.picture(window).part(0, 0, window.width, 58))
            command = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{program.process.pid}/environ").read_bytes()
            assert mark.strip().encode() not in command + environment
    assert pictures[0].difference(pictures[1]) == 0.0
    assert pictures[0].part(16, 10, 38, 38).difference(pictures[2].part(16, 10, 38, 38)) > 0.1


def test_twice_the_pixels_where_the_screen_is_fine(screen: Desktop, tmp_path: Path) -> None:
    with running_prompt(screen, tmp_path, QT_SCALE_FACTOR="1.5") as program:
        program.ask(QUESTION)
        window = program.settled()
        assert window.width == 840
        assert program.picture(window).part(0, 87, 9, window.height - 87).share(RED) == 1.0


def test_notice_takes_no_focus_and_goes_by_itself(prompt: PromptProgram) -> None:
    other = prompt.cover(Window(0, 40, 40, 0, 0))
    prompt.screen.activate(other.number)
    assert prompt.ask(Notice(Resolution.DENY, "qubes.Gpg", "+", "untrusted", "vault")).answer() == b""
    notice = prompt.screen.window("^Insula$")
    assert notice.x > 600
    assert notice.y > 500
    assert prompt.screen.focused() == other.number
    prompt.screen.wait(lambda: not prompt.screen.windows("^Insula$"), "it is still there")


def told(
    title: str, text: str = "", number: int = 1, source: str = "untrusted", *, is_urgent: bool = False
) -> Notification:
    return Notification(source, ICONS[source], number, is_urgent, title, text)


def border(picture: Picture, window: Window) -> set[int]:
    """Colours of the six pixels around a window's edge, its band left out."""
    part = picture.part(window.x, window.y, window.width, window.height)
    sides = [part.part(0, 0, 6, part.height), part.part(part.width - 6, 0, 6, part.height)]
    sides.append(part.part(0, part.height - 6, part.width, 6))
    return {side.pixel(x, y) for side in sides for x in range(side.width) for y in range(side.height)}


def test_mc50_notification_of_a_qube_has_its_frame_and_name_and_not_the_mark_of_the_host(prompt: PromptProgram) -> None:
    screen = prompt.screen
    other = prompt.cover(Window(0, 40, 40, 0, 0))
    screen.activate(other.number)
    imitation = "<b>Insula asks</b>\nvault asks to use your keys.\n<a href='https://x'>Allow</a>"
    assert prompt.ask(told("Insula", imitation, is_urgent=True)).answer() == b""
    window = screen.window("^Insula: untrusted$")
    screen.park()
    screen.wait(lambda: border(screen.picture(), window) == {RED}, "the frame is not the qube's")
    band = screen.picture().part(window.x, window.y, window.width, 40)
    assert band.share(RED) > 0.7
    assert band.share(0x161A22) == 0.0, "the ground of the host's own notices"
    assert screen.focused() == other.number
    assert prompt.ask(Notice(Resolution.DENY, "qubes.Gpg", "+", "untrusted", "vault")).answer() == b""
    notice = screen.window("^Insula$")
    screen.wait(lambda: screen.window("^Insula: untrusted$").y < notice.y, "the notice is not below")
    moved = screen.window("^Insula: untrusted$")
    assert moved.y + moved.height <= notice.y
    screen.click(*moved.centre)
    screen.wait(lambda: not screen.windows("^Insula: "), "a click does not put it away")


def test_notification_takes_the_place_of_the_one_of_its_number_and_is_withdrawn(prompt: PromptProgram) -> None:
    """(Urgent ones: those stay long enough for a busy machine.)"""
    screen = prompt.screen
    prompt.ask(told("10 %", is_urgent=True))
    first = screen.window("^Insula: untrusted$")
    prompt.ask(told("20 %", "almost\nas\nlong\nagain", is_urgent=True))
    screen.wait(
        lambda: [window.height > first.height for window in screen.windows("^Insula: ")] == [True], "not in its place"
    )
    prompt.ask(told("another", number=2, is_urgent=True))
    prompt.ask(told("of another", source="personal", is_urgent=True))
    screen.wait(lambda: len(screen.windows("^Insula: ")) == 3, "not three")
    prompt.ask(told("and one more", source="work", is_urgent=True))
    screen.window("^Insula: work$")
    screen.wait(lambda: len(screen.windows("^Insula: ")) == 3, "the oldest did not go")
    prompt.ask(told("", source="personal"))
    screen.wait(lambda: not screen.windows("^Insula: personal$"), "it was not taken away")
    assert len(screen.windows("^Insula: ")) == 2


def test_second_program_leaves_it_to_the_first(prompt: PromptProgram) -> None:
    second = prompt.start([sys.executable, "-m", "insula.cli.main", "prompt"])
    assert second.wait(WAIT_S) == 0
    asking = prompt.ask(QUESTION)
    prompt.armed()
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_program_that_is_told_to_end_ends_and_leaves_the_question_unanswered(prompt: PromptProgram) -> None:
    asking = prompt.ask(QUESTION)
    prompt.armed()
    prompt.process.terminate()
    assert prompt.process.wait(WAIT_S) == 0
    assert asking.answer() == b""


def test_mc32_prompt_comes_up_over_a_full_screen_window(prompt: PromptProgram) -> None:
    other = prompt.cover(Window(0, 20, 20, 0, 0), is_full_screen=True)
    prompt.screen.activate(other.number)
    prompt.screen.click(500, 400)  # somebody is at work in it
    prompt.screen.wait(lambda: prompt.screen.picture().share(0x00FF00) > 0.95, "it does not fill the screen")
    asking = prompt.ask(QUESTION)
    window = prompt.armed()
    assert prompt.picture(window).share(0x00FF00) == 0.0
    prompt.screen.click(*prompt.deny_button(window))
    assert asking.answer() == b"deny"


def test_mc32_buttons_do_not_come_under_the_pointer(prompt: PromptProgram) -> None:
    """Somebody is told to click in a certain place in a moment."""
    asking = prompt.ask(QUESTION)
    places = (prompt.allow_button(prompt.settled()), prompt.deny_button(prompt.settled()))
    asking.close()
    for x, y in places:
        prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")
        prompt.screen.do("mousemove", x, y)
        asking = prompt.ask(QUESTION)
        window = prompt.settled()
        assert not window.y + window.height - 80 <= y < window.y + window.height + 20
        time.sleep(1.5 * ARM_DELAY_S)
        prompt.screen.do("click", 1)
        assert asking.is_open
        asking.close()
