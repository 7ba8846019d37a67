"""Windows of guests on a real X server with a real window manager, looked at pixel by pixel."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
from collections.abc import Iterator

import pytest

from insula.gui.geometry import POPUP_FRAME, WINDOW_FRAME, Frame, Rect
from insula.testing.desktop import Desktop, Picture, desktop
from insula.testing.gui_guest import ScriptedGuest, scripted_guest
from insula_proto import gui

pytestmark = pytest.mark.desktop

BLUE, RED = 0x3465A4, 0xCC0000
GREEN, PINK, WHITE = 0x30C040, 0xF0A0C0, 0xFFFFFF
PLACE = Rect(100, 100, 400, 300)
A, C, V, CONTROL_KEY, SHIFT_KEY = 38, 54, 55, 37, 50


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(900, 600) as shown:
        yield shown


@pytest.fixture
def guest(screen: Desktop) -> Iterator[ScriptedGuest]:
    with scripted_guest(screen, "work", BLUE) as made:
        yield made
    screen.wait(lambda: not screen.windows(r"\[work\]"), "the window stays")


def content(screen: Desktop, qube: str = "work") -> Rect:
    """Where the content of the qube's window is on the screen."""
    window = screen.window(rf"\[{qube}\]")
    return WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))


def is_shown(picture: Picture, place: Rect, colour: int) -> bool:
    part = picture.part(place.x, place.y, place.width, place.height)
    return (part.width, part.height) == (place.width, place.height) and part.share(colour) == 1.0


def wait_painted(screen: Desktop, place: Rect, colour: int) -> None:
    screen.park()
    screen.wait(lambda: is_shown(screen.picture(), place, colour), f"not all of {place} is {colour:#08x}")


def frame_is_whole(picture: Picture, place: Rect, frame: Frame, colour: int) -> bool:
    """Whether no pixel next to the content is anything but the qube's colour, and most of the frame is."""
    outer = frame.around(place)
    ring = [(x, y) for x in (place.x - 1, place.right) for y in range(place.y - 1, place.bottom + 1)]
    ring += [(x, y) for y in (place.y - 1, place.bottom) for x in range(place.x - 1, place.right + 1)]
    sides = [
        Rect(outer.x, outer.y, frame.left, outer.height),
        Rect(place.right, outer.y, frame.right, outer.height),
        Rect(outer.x, outer.y, outer.width, frame.top),
        Rect(outer.x, place.bottom, outer.width, frame.bottom),
    ]
    parts = [picture.part(side.x, side.y, side.width, side.height) for side in sides]
    return all(picture.pixel(*at) == colour for at in ring) and all(part.share(colour) > 0.5 for part in parts)


def test_window_has_its_pixels_its_place_and_its_qubes_frame(screen: Desktop, guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, GREEN)
    guest.say(gui.Title(1, b"a letter"))
    assert content(screen) == PLACE
    wait_painted(screen, PLACE, GREEN)
    assert screen.windows(r"\[work\] a letter")
    assert frame_is_whole(screen.picture(), PLACE, WINDOW_FRAME, BLUE)


def test_only_what_the_guest_reports_as_changed_is_painted(screen: Desktop, guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, GREEN)
    wait_painted(screen, PLACE, GREEN)
    guest.fill(1, PINK)
    guest.say(gui.Damage(1, 50, 60, 70, 80))
    guest.wait_for(gui.Painted(1))
    changed = Rect(150, 160, 70, 80)
    wait_painted(screen, changed, PINK)
    picture = screen.picture().part(PLACE.x, PLACE.y, PLACE.width, PLACE.height)
    assert picture.share(PINK) == pytest.approx(70 * 80 / (400 * 300))
    assert picture.share(GREEN) == pytest.approx(1 - 70 * 80 / (400 * 300))


@pytest.mark.parametrize(
    ("popup", "flags", "size"),
    [
        *itertools.product([False], [0, 1, 2], [(400, 300), (20, 5), (1, 1)]),
        *itertools.product([True], [0, 1], [(400, 300), (1, 1), (40, 3)]),
    ],
)
def test_frame_is_there_whatever_a_window_is_and_however_it_is_painted(
    screen: Desktop, guest: ScriptedGuest, popup: bool, flags: int, size: tuple[int, int]
) -> None:
    """MC-37: with a picture that is larger than the window, damage beyond it, and without any picture."""
    guest.window(9, Rect(300, 300, 300, 200), WHITE)
    at = content(screen)
    screen.click(at.x + 5, at.y + 5)
    guest.wait_for(gui.Focus(9, True))
    width, height = size
    guest.say(gui.Create(1, 100, 100, width, height, 0, popup), gui.WindowHints(1, 1))
    guest.say(gui.WindowFlags(1, flags, 0), gui.Map(1, 0, popup))
    guest.picture(1, width + 50, height + 50, PINK)
    guest.say(gui.Damage(1, 0, 0, 2**31, 2**31))
    guest.wait_for(gui.Painted(1))
    screen.park()
    frame = POPUP_FRAME if popup else WINDOW_FRAME
    asked = Rect(100, 100, width, height)

    def is_framed() -> bool:
        picture = screen.picture()
        found = Rect(100, 100, width, height)
        if not popup:
            # (A window manager has a smallest size, and with the flag it is maximised.)
            [place] = [
                WINDOW_FRAME.inside(Rect(w.x, w.y, w.width, w.height))
                for w in screen.windows(r"\[work\]")
                if (w.x, w.y) != (at.x - WINDOW_FRAME.left, at.y - WINDOW_FRAME.top)
            ]
            found = place
        if flags != 1 or popup:
            assert found.width >= asked.width
        return frame_is_whole(picture, found, frame, BLUE) and picture.pixel(found.x, found.y) == PINK

    screen.wait(is_framed, "the frame is not whole")


def test_window_without_a_picture_is_its_background_in_its_frame(screen: Desktop, guest: ScriptedGuest) -> None:
    """MC-37."""
    guest.say(gui.Create(1, 100, 100, 400, 300), gui.WindowHints(1, 1), gui.Map(1))
    assert content(screen) == PLACE
    wait_painted(screen, PLACE, WHITE)
    assert frame_is_whole(screen.picture(), PLACE, WINDOW_FRAME, BLUE)


def test_imitation_of_another_qubes_frame_lies_inside_the_true_one(screen: Desktop, guest: ScriptedGuest) -> None:
    """MC-37, MC-39."""
    guest.window(1, PLACE, RED)
    guest.say(gui.Title(1, b"[bank] payment"))
    guest.put(1, Rect(4, 22, 392, 274), WHITE)
    guest.say(gui.Damage(1, 0, 0, 400, 300))
    inner = Rect(104, 122, 392, 274)
    wait_painted(screen, inner, WHITE)
    picture = screen.picture()
    assert frame_is_whole(picture, inner, WINDOW_FRAME, RED)
    assert frame_is_whole(picture, PLACE, WINDOW_FRAME, BLUE)
    assert screen.windows(r"^\[work\] \[bank\] payment$")
    assert not screen.windows(r"^\[bank\]")


def test_window_the_user_moves_and_the_guest_moves_back_and_forth(screen: Desktop, guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, GREEN)
    window = screen.window(r"\[work\]")
    screen.do("windowsize", "--sync", window.number, 508, 426)
    guest.wait(lambda: any((m.width, m.height) == (500, 400) for m in guest.of(gui.Configure)))
    told = guest.of(gui.Configure)[-1]
    guest.say(told)
    guest.picture(1, 500, 400, PINK)
    place = content(screen)
    assert (place.width, place.height) == (500, 400)
    wait_painted(screen, place, PINK)
    guest.say(gui.Configure(1, 200, 150, 300, 200))
    screen.wait(lambda: content(screen) == Rect(200, 150, 300, 200), "the guest's move was not made")


def test_popup_is_at_its_offset_above_its_window_and_gone_with_the_focus(screen: Desktop, guest: ScriptedGuest) -> None:
    """MC-38."""
    guest.window(1, PLACE, GREEN)
    at = content(screen)
    screen.click(at.x + 5, at.y + 5)
    guest.wait_for(gui.Focus(1, True))
    menu = Rect(150, 160, 120, 90)
    guest.window(2, menu, PINK, popup=True, parent=1)
    wait_painted(screen, menu, PINK)
    assert frame_is_whole(screen.picture(), menu, POPUP_FRAME, BLUE)
    with scripted_guest(screen, "mail", RED) as other:
        other.window(1, Rect(600, 100, 200, 150), WHITE)
        place = content(screen, "mail")
        screen.click(place.x + 50, place.y + 50)
        other.wait_for(gui.Focus(1, True))
        wait_painted(screen, PLACE, GREEN)


def icon_of(screen: Desktop, window: int) -> set[int]:
    """The colours of what the desktop shows as a window's icon."""
    told = subprocess.run(
        ["xprop", "-id", str(window), "-f", "_NET_WM_ICON", "32c", "-notype", "_NET_WM_ICON"],
        env=screen.environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    numbers = [int(word) for word in re.findall(r"\d+", told.partition("=")[2])]
    return {number & 0xFFFFFF for number in numbers[2 : 2 + numbers[0] * numbers[1]]}


def test_icon_is_in_the_qubes_colour_whatever_the_guest_gives(screen: Desktop, guest: ScriptedGuest) -> None:
    """MC-40: a window without icon has one too; the icon of a red qube comes out blue."""
    guest.window(1, PLACE, GREEN)
    window = screen.window(r"\[work\]")
    assert icon_of(screen, window.number) == {BLUE}
    guest.say(gui.Icon(1, 32, 32, b"\x00\x00\xcc\xff" * 512 + b"\xff\xff\xff\xff" * 512))
    screen.wait(lambda: len(icon_of(screen, window.number)) == 2, "the icon does not change")
    for colour in icon_of(screen, window.number):
        red, green, blue = colour >> 16, colour >> 8 & 255, colour & 255
        assert blue > green > red


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(screen: Desktop, guest: ScriptedGuest) -> Iterator[ScriptedGuest]:
    """A second qube beside the first; both have a window, the first has focus."""
    guest.window(1, Rect(50, 100, 300, 200), GREEN)
    with scripted_guest(screen, "mail", RED) as made:
        made.window(1, Rect(500, 100, 300, 200), PINK)
        content(screen, "mail")
        go_to(screen, guest, "work")
        yield made


def go_to(screen: Desktop, qube: ScriptedGuest, name: str) -> None:
    place = content(screen, name)
    screen.click(place.x + 20, place.y + 20)
    qube.wait_for(gui.Focus(1, True))


def test_keys_and_clicks_reach_the_focused_window_with_its_own_coordinates(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-44."""
    other.listen().clear()
    place = content(screen)
    screen.click(place.x + 30, place.y + 40, 3)
    guest.wait_for(gui.Button(1, True, 30, 40, 0, 3))
    guest.wait_for(gui.Button(1, False, 30, 40, 0x400, 3))
    screen.key("a")
    guest.wait_for(gui.Key(1, True, 30, 40, 0, A))
    guest.wait_for(gui.Key(1, False, 30, 40, 0, A))
    assert other.of(gui.Key, gui.Button, gui.Motion, gui.Focus) == []


def test_pointer_that_leaps_out_of_a_window_has_left_it(screen: Desktop, guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, GREEN)
    place = content(screen)
    screen.click(place.x + 30, place.y + 40)
    guest.wait_for(gui.Button(1, False, 30, 40, 0x100, 1))
    screen.do("mousemove", place.x + 50, place.y + 60)
    guest.wait(lambda: any(message.x == 50 for message in guest.of(gui.Motion)))
    screen.park()
    guest.wait(lambda: any(not message.is_enter for message in guest.of(gui.Crossing)), "it has not left")


def test_key_held_while_the_focus_changes_is_released_in_the_old_qube_and_unknown_in_the_new(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-45: auto-repeat goes on all the while."""
    screen.do("keydown", "a")
    try:
        guest.wait(lambda: len(guest.of(gui.Key)) >= 3, "no auto-repeat")
        go_to(screen, other, "mail")
        guest.wait_for(gui.Focus(1, False))
        screen.do("key", "b")
        other.wait(lambda: len(other.of(gui.Key)) >= 2)
    finally:
        screen.do("keyup", "a")
    screen.key("b")
    other.wait(lambda: len(other.of(gui.Key)) >= 4)
    assert {message.code for message in other.of(gui.Key)} == {56}
    # (wait_for has forgotten the release, which came before the loss of focus.)
    assert guest.of(gui.Key) == []


def test_keys_held_are_released_before_the_focus_is_lost(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-45."""
    screen.do("keydown", "a")
    try:
        guest.wait(lambda: bool(guest.of(gui.Key)))
        go_to(screen, other, "mail")
        guest.wait(lambda: gui.Focus(1, False) in guest.heard)
    finally:
        screen.do("keyup", "a")
    said = guest.of(gui.Key, gui.Focus)
    assert said[-1] == gui.Focus(1, False)
    assert said[-2].is_press is False  # type: ignore[attr-defined]


def test_new_window_of_a_qube_in_the_background_does_not_take_the_focus(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-44."""
    before = screen.focused()
    other.window(2, Rect(500, 350, 200, 150), WHITE)
    other.say(gui.WindowFlags(2, gui.FLAG_ATTENTION, 0))
    other.wait_for(gui.Painted(2))
    screen.key("a")
    guest.wait(lambda: bool(guest.of(gui.Key)))
    assert screen.focused() == before
    assert other.of(gui.Key, gui.Focus) == []


def test_keys_that_copy_and_paste_do_not_reach_the_guest(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-53."""
    screen.key("ctrl+shift+c")
    guest.wait_for(gui.ClipboardRequest(1))
    screen.key("ctrl+shift+v")
    screen.key("a")
    guest.wait(lambda: any(m.code == A for m in guest.of(gui.Key)))
    assert {m.code for m in guest.of(gui.Key)} <= {A, CONTROL_KEY, SHIFT_KEY}
    assert other.of(gui.ClipboardRequest, gui.ClipboardData) == []


def test_users_close_is_a_wish_the_window_stays_until_the_guest_goes(screen: Desktop, guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, GREEN)
    window = screen.window(r"\[work\]")
    screen.activate(window.number)
    screen.key("alt+F4")
    guest.wait_for(gui.Close(1))
    assert screen.windows(r"\[work\]")
    guest.say(gui.Destroy(1))
    guest.wait_for(gui.Destroy(1))
    screen.wait(lambda: not screen.windows(r"\[work\]"), "the window stays")


# --- ends ------------------------------------------------------------------------------------------------------------


def test_guest_that_goes_takes_its_windows_with_it_and_nobody_elses(screen: Desktop) -> None:
    with scripted_guest(screen, "work", BLUE) as guest, scripted_guest(screen, "mail", RED) as other:
        guest.window(1, Rect(50, 100, 300, 200), GREEN)
        other.window(1, Rect(500, 100, 300, 200), PINK)
        wait_painted(screen, Rect(500, 100, 300, 200), PINK)
        assert guest.hang_up() == 0
        screen.wait(lambda: not screen.windows(r"\[work\]"), "its window stays")
        assert is_shown(screen.picture(), Rect(500, 100, 300, 200), PINK)


def test_guest_that_breaks_the_protocol_is_shown_no_more(screen: Desktop) -> None:
    """MC-12, MC-41."""
    with scripted_guest(screen, "work", BLUE) as guest:
        guest.window(1, PLACE, GREEN)
        content(screen)
        guest.say_raw(struct.pack("<III", gui.Destroy.kind, 77, 0))
        assert guest.process.wait(120) == 0
        screen.wait(lambda: not screen.windows(r"\[work\]"), "its window stays")


def test_flood_of_one_guest_leaves_the_other_its_screen(
    screen: Desktop, guest: ScriptedGuest, other: ScriptedGuest
) -> None:
    """MC-43: damage as fast as it can be written; the other's frames are answered all the same."""
    flood = guest._end.send(gui.Damage(1, 0, 0, 300, 200)) * 2000
    for n in range(20):
        guest.say_raw(flood)
        other.fill(1, WHITE if n % 2 else PINK)
        other.say(gui.Damage(1, 0, 0, 300, 200))
        other.wait_for(gui.Painted(1))
    wait_painted(screen, Rect(500, 100, 300, 200), WHITE)
