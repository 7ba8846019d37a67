"""What windows of a qube may not cover on a real desktop: panels, prompts, notices, others' frames (MC-38)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.gui.control import Configure
from insula.gui.geometry import POPUP_FRAME, WINDOW_FRAME, Frame, Rect
from insula.policy.agent import Question, Remark
from insula.testing.desktop import Desktop, Picture, desktop
from insula.testing.gui_guest import ScriptedGuest, scripted_guests
from insula.testing.prompt_program import running_prompt
from insula_proto import gui

pytestmark = pytest.mark.desktop

BLUE, RED, GREEN, PINK, WHITE, PANEL = 0x3465A4, 0xCC0000, 0x30C040, 0xF0A0C0, 0xFFFFFF, 0x123456
DOCK = Rect(0, 0, 900, 40)
WORK, MAIL = Rect(50, 100, 300, 200), Rect(500, 100, 300, 200)

PANEL_PROGRAM = """\
import struct, sys, xcffib, xcffib.xproto as x
connection = xcffib.connect()
core, screen = connection.core, connection.get_setup().roots[0]
left, top, width, height, colour = map(int, sys.argv[1:])
window = connection.generate_id()
core.CreateWindow(24, window, screen.root, left, top, width, height, 0, 1, screen.root_visual, x.CW.BackPixel, [colour])
atom = lambda name: core.InternAtom(False, len(name), name).reply().atom
numbers = lambda name, kind, *values: core.ChangeProperty(0, window, atom(name), atom(kind), 32, len(values), values)
numbers("_NET_WM_WINDOW_TYPE", "ATOM", atom("_NET_WM_WINDOW_TYPE_DOCK"))
numbers("WM_NORMAL_HINTS", "WM_SIZE_HINTS", 5, left, top, *[0] * 15)
numbers("_NET_WM_STRUT", "CARDINAL", 0, 0, height, 0)
core.MapWindow(window)
connection.flush()
while True:
    connection.wait_for_event()
"""


@contextlib.contextmanager
def panel(screen: Desktop, place: Rect, colour: int) -> Iterator[None]:
    words = map(str, (place.x, place.y, place.width, place.height, colour))
    process = subprocess.Popen([sys.executable, "-c", PANEL_PROGRAM, *words], env=screen.environment)
    try:
        wait_shown(screen, place, colour)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(900, 600) as shown, panel(shown, DOCK, PANEL):
        yield shown


@pytest.fixture
def guests(screen: Desktop) -> Iterator[tuple[ScriptedGuest, ScriptedGuest]]:
    """Two qubes side by side; the first has the focus."""
    with scripted_guests(screen, ("work", BLUE), ("mail", RED)) as (_, [work, mail]):
        work.window(1, WORK, GREEN)
        mail.window(1, MAIL, WHITE)
        for guest, place, name in ((mail, MAIL, "mail"), (work, WORK, "work")):
            screen.window(rf"\[{name}\]")
            guest.wait_for(gui.Painted(1))
            go_to(screen, guest, place)
        yield work, mail
    screen.wait(lambda: not screen.windows(r"\["), "a window stays")


def part(picture: Picture, rect: Rect) -> Picture:
    return picture.part(rect.x, rect.y, rect.width, rect.height)


def wait_shown(screen: Desktop, rect: Rect, colour: int) -> None:
    screen.park()
    screen.wait(lambda: part(screen.picture(), rect).share(colour) == 1.0, f"not all of {rect} is {colour:#08x}")


def go_to(screen: Desktop, guest: ScriptedGuest, place: Rect) -> None:
    screen.click(place.x + 5, place.bottom - 5)
    guest.wait_for(gui.Focus(1, True))


def frame_is_whole(picture: Picture, place: Rect, frame: Frame, colour: int) -> bool:
    outer = frame.around(place)
    sides = [
        Rect(outer.x, outer.y, frame.left, outer.height),
        Rect(place.right, outer.y, frame.right, outer.height),
        Rect(outer.x, outer.y, outer.width, frame.top),
        Rect(outer.x, place.bottom, outer.width, frame.bottom),
    ]
    # (The name of the qube and the title are drawn on it, in black or white.)
    ink = (colour, 0, WHITE)
    return all(sum(part(picture, side).share(each) for each in ink) > 0.7 for side in sides) and all(
        part(picture, side).share(colour) > 0.5 for side in sides
    )


def popup_at(screen: Desktop, guest: ScriptedGuest, asked: Rect, number: int = 2) -> Rect:
    """Where a menu of pink comes that is asked for at that place."""
    guest.listen().clear()
    guest.window(number, asked, PINK, popup=True, parent=1)
    guest.wait(lambda: gui.Painted(number) in guest.heard)
    screen.park()
    screen.wait(
        lambda: part(screen.picture(), place_of(guest, number, otherwise=asked)).share(PINK) == 1.0,
        "the menu is not shown",
    )
    return place_of(guest, number, otherwise=asked)


def place_of(guest: ScriptedGuest, number: int, *, otherwise: Rect) -> Rect:
    """Where the guest was last told that this window is, if it was told since its list was cleared."""
    told = [m for m in guest.of(gui.Configure) if m.window == number]
    return Rect(told[-1].x, told[-1].y, told[-1].width, told[-1].height) if told else otherwise


def test_menu_over_the_panel_comes_below_it(screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]) -> None:
    work, _ = guests
    place = popup_at(screen, work, Rect(100, 10, 120, 60))
    assert POPUP_FRAME.around(place).y == DOCK.bottom
    picture = screen.picture()
    assert part(picture, DOCK).share(PANEL) == 1.0
    assert frame_is_whole(picture, place, POPUP_FRAME, BLUE)


@pytest.mark.parametrize("dx", [-160, -120, -60, -10, 20])
def test_menu_never_covers_another_qubes_frame(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest], dx: int
) -> None:
    """It may lie over the other's content, as menus do."""
    work, _ = guests
    before = screen.picture()
    assert frame_is_whole(before, MAIL, WINDOW_FRAME, RED)
    asked = Rect(MAIL.x + dx, MAIL.y + 40, 120, 60)
    place = popup_at(screen, work, asked)
    assert not any(POPUP_FRAME.around(place).overlaps(Rect(x, MAIL.y, 4, 200)) for x in (MAIL.x - 4, MAIL.right))
    after = screen.picture()
    assert frame_is_whole(after, MAIL, WINDOW_FRAME, RED)
    assert frame_is_whole(after, place, POPUP_FRAME, BLUE)
    if POPUP_FRAME.around(asked).x >= MAIL.x:
        assert place == asked


def test_frame_that_lies_under_the_qubes_own_window_may_be_covered(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]
) -> None:
    work, _ = guests
    window = screen.window(r"\[work\]")
    screen.do("windowmove", "--sync", window.number, 400, 60)
    screen.do("windowraise", window.number)
    work.wait(lambda: bool(work.of(gui.Configure)))
    asked = Rect(MAIL.x - 60, MAIL.y + 40, 120, 60)
    assert popup_at(screen, work, asked) == asked


def test_no_menu_lies_over_a_prompt_and_none_comes_between_it_and_the_user(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest], tmp_path: Path
) -> None:
    """MC-32."""
    work, _ = guests
    menu = popup_at(screen, work, Rect(150, 160, 120, 90))
    with running_prompt(screen, tmp_path) as prompt:
        prompt.ask(Question("mail", "qubes.Gpg", "+", ("vault",), None, {}))
        window = prompt.settled()
        # It has the focus, so the menu is gone.
        screen.wait(lambda: part(screen.picture(), menu).share(PINK) == 0.0, "the menu stays")
        # The user goes back to work's window, the prompt stays above; the guest tries to cover it.
        shown = prompt.picture(window)
        screen.click(WORK.x + 5, WORK.bottom - 5)
        work.wait(lambda: work.of(gui.Focus)[-1:] == [gui.Focus(1, True)])
        # Its menu comes back: where it was, or elsewhere if the prompt is there now (of which the guest may have
        # been told as soon as the prompt was there).
        screen.wait(
            lambda: part(screen.picture(), place_of(work, 2, otherwise=menu)).share(PINK) == 1.0, "the menu stays away"
        )
        assert prompt.picture(window).share(PINK) == 0.0
        work.listen().clear()
        asked = Rect(window.x + 10, window.y + 10, 200, 60)
        work.window(3, asked, PINK, popup=True, parent=1)
        work.wait(lambda: gui.Painted(3) in work.heard)
        assert [m.window for m in work.of(gui.Configure)] == [3]
        picture = prompt.picture(window)
        assert picture.share(PINK) == 0.0
        assert picture.difference(shown) < 0.1  # (its buttons are grey or black)


def test_notice_in_the_corner_says_who_holds_how_much_and_no_menu_covers_it(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest], tmp_path: Path
) -> None:
    work, _ = guests
    with running_prompt(screen, tmp_path) as prompt:
        prompt.ask(Remark("", "7 bytes copied from work"))
        notice = screen.window("^Insula$")
        rect = Rect(notice.x, notice.y, notice.width, notice.height)
        screen.park()
        screen.wait(lambda: part(screen.picture(), rect).share(0xFFFFFF) < 1.0, "the notice is not painted")
        place = popup_at(screen, work, Rect(rect.x + 20, rect.y + 20, 100, 40))
        assert not POPUP_FRAME.around(place).overlaps(rect)
        assert part(screen.picture(), rect).share(PINK) == 0.0
        screen.click(rect.x + 50, rect.y + 20)  # puts it away
        screen.wait(lambda: not screen.windows("^Insula$"), "the notice stays")


def test_new_window_of_a_qube_in_the_background_comes_under_the_one_the_user_works_in(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]
) -> None:
    _, mail = guests
    mail.window(2, Rect(100, 150, 400, 300), PINK)
    mail.wait(lambda: len(screen.windows(r"\[mail\]")) == 2)
    wait_shown(screen, Rect(400, 320, 90, 100), PINK)
    wait_shown(screen, WORK, GREEN)
    picture = screen.picture()
    assert frame_is_whole(picture, WORK, WINDOW_FRAME, BLUE)


def test_window_in_the_background_cannot_move_over_another_ones_frame(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]
) -> None:
    work, mail = guests
    # Mail's window lies above work's, but the user works in work's: click-to-focus without raising.
    screen.do("windowraise", screen.window(r"\[mail\]").number)
    mail.listen().clear()
    mail.say(gui.Configure(1, WORK.x + 50, WORK.y + 50, 300, 200))
    mail.wait_for(gui.Configure(1, MAIL.x, MAIL.y, MAIL.width, MAIL.height))
    screen.park()
    picture = screen.picture()
    assert part(picture, WORK).share(GREEN) == 1.0
    assert frame_is_whole(picture, WORK, WINDOW_FRAME, BLUE)
    assert not work.of(gui.Focus)


def test_maximised_window_leaves_the_panel(screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]) -> None:
    """MC-37: it asked for the whole screen."""
    work, _ = guests
    work.say(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0))
    work.wait_for(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0))
    screen.wait(lambda: screen.window(r"\[work\]").width > 800, "it is not maximised")
    screen.park()
    assert part(screen.picture(), DOCK).share(PANEL) == 1.0


LOCK_PROGRAM = """\
import sys, xcffib, xcffib.xproto as x
connection = xcffib.connect()
core, screen = connection.core, connection.get_setup().roots[0]
window = connection.generate_id()
size = screen.width_in_pixels, screen.height_in_pixels
mask = x.CW.BackPixel | x.CW.OverrideRedirect
core.CreateWindow(24, window, screen.root, 0, 0, *size, 0, 1, screen.root_visual, mask, [int(sys.argv[1]), 1])
core.MapWindow(window)
connection.flush()
while core.GrabKeyboard(True, window, 0, x.GrabMode.Async, x.GrabMode.Async).reply().status:
    pass
print("locked", flush=True)
while True:
    connection.wait_for_event()
"""
LOCKED = 0x203040


@contextlib.contextmanager
def locked(screen: Desktop) -> Iterator[None]:
    """As a screen locker does it: a window over everything, and the keyboard."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK_PROGRAM, str(LOCKED)], env=screen.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_nothing_of_a_qube_is_seen_while_the_screen_is_locked(
    screen: Desktop, guests: tuple[ScriptedGuest, ScriptedGuest]
) -> None:
    """MC-48: windows, menus, full screen, attention and moves, of the qube the user worked in and of another one."""
    work, mail = guests
    whole = Rect(0, 0, 890, 590)  # (the pointer is in the last corner)
    with locked(screen):
        screen.park()
        assert part(screen.picture(), whole).share(LOCKED) == 1.0
        for guest in (work, mail):
            guest.window(5, Rect(200, 200, 200, 100), PINK)
            guest.window(6, Rect(300, 250, 100, 100), PINK, popup=True, parent=1)
            guest.say(
                gui.WindowFlags(1, gui.FLAG_ATTENTION | gui.FLAG_FULLSCREEN, 0), gui.Configure(5, 10, 60, 500, 400)
            )
            guest.say(gui.Title(1, b"look at me"))
        for _ in range(4):
            for guest in (work, mail):
                guest.say(gui.Unmap(5), gui.Map(5))
            assert part(screen.picture(), whole).share(LOCKED) == 1.0
        screen.wait(lambda: bool(screen.windows(r"\[work\] look at me")), "the guest was not heard")
        assert part(screen.picture(), whole).share(LOCKED) == 1.0
    screen.wait(lambda: part(screen.picture(), whole).share(LOCKED) == 0.0, "it stays locked")


def test_full_screen_with_the_users_leave_keeps_its_frame_and_a_prompt_comes_above_it(
    screen: Desktop, tmp_path: Path
) -> None:
    """MC-32, MC-37."""
    work = Configure("work", BLUE, allows_fullscreen=True)
    with scripted_guests(screen, work) as (_, [guest]), running_prompt(screen, tmp_path) as prompt:
        guest.window(1, WORK, GREEN)
        screen.window(r"\[work\]")
        guest.wait_for(gui.Painted(1))
        go_to(screen, guest, WORK)
        guest.say(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0))
        place = WINDOW_FRAME.inside(Rect(0, 0, 900, 600))
        guest.wait(lambda: any((m.width, m.height) == (place.width, place.height) for m in guest.of(gui.Configure)))
        guest.say(guest.of(gui.Configure)[-1])
        guest.picture(1, place.width, place.height, GREEN)
        screen.park()
        screen.wait(lambda: frame_is_whole(screen.picture(), place, WINDOW_FRAME, BLUE), "its frame is not whole")
        assert part(screen.picture(), Rect(place.x, place.y, place.width - 20, place.height - 20)).share(GREEN) == 1.0
        prompt.ask(Question("mail", "qubes.Gpg", "+", ("vault",), None, {}))
        window = prompt.settled()
        screen.wait(lambda: prompt.picture(window).share(GREEN) < 0.01, "the prompt lies under the full screen")
        guest.say(gui.WindowFlags(1, 0, gui.FLAG_FULLSCREEN))
