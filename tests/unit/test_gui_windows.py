"""Playbooks of the window machine: this from the guest and the desktop in, these commands out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import windows
from insula.gui.desktop import (
    CloseRequested,
    Command,
    DeskChanged,
    Event,
    Exposed,
    FocusGained,
    Hide,
    Icon,
    Move,
    Moved,
    Obscured,
    Paint,
    Picture,
    Role,
    Send,
    SetCursor,
    SetHints,
    SetIcon,
    SetPicture,
    SetState,
    SetTitle,
    Show,
    SizeHints,
    State,
    StateChanged,
    Style,
    Tell,
    Undocked,
)
from insula.gui.geometry import POPUP_FRAME, Desk, Rect
from insula.gui.settings import Settings
from insula.gui.windows import (
    EARLY,
    EXPECTED_S,
    ICONS_BURST,
    MAX_DEPTH,
    MAX_SHOWN,
    MAX_WINDOWS,
    SHOWS_PER_SECOND,
    Windows,
)
from insula_proto import gui
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui import Message

SETTINGS = Settings("work", 0x3465A4)
SCREEN = Rect(0, 0, 1280, 800)
DESK = Desk((SCREEN,))
MEMORY = 64 << 20
PLACE = Rect(100, 100, 400, 300)


class Playbook:
    """Windows with a clock of their own."""

    def __init__(self, settings: Settings = SETTINGS, *, minor: int = 8, memory_size: int = MEMORY) -> None:
        self.windows = Windows(settings, DESK, memory_size=memory_size, minor=minor)
        self.now = 0.0

    def said(self, *messages: Message) -> list[Command]:
        for message in messages:
            self.windows.receive(message)
        return self.settle()

    def settle(self) -> list[Command]:
        self.now += 1.0
        return self.windows.settle(self.now)

    def happened(self, *events: object) -> list[Command]:
        for event in events:
            self.windows.happened(event)  # type: ignore[arg-type]
        return self.settle()

    def shown(self, number: int = 1, place: Rect = PLACE, *, popup: bool = False, parent: int = 0) -> None:
        self.said(create(number, place, popup=popup), gui.Map(number, parent, popup))
        self.happened(Exposed(number))

    def focused(self, number: int = 1) -> None:
        self.shown(number)
        self.windows.focus_changed(number)
        self.settle()


def create(number: int = 1, place: Rect = PLACE, *, popup: bool = False) -> Message:
    return gui.Create(number, place.x, place.y, place.width, place.height, 0, popup)


def configure(number: int, place: Rect, *, popup: bool = False) -> Message:
    return gui.Configure(number, place.x, place.y, place.width, place.height, popup)


def of(kind: type[Command], commands: list[Command]) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def sent(commands: list[Command]) -> list[Message]:
    return [command.message for command in commands if isinstance(command, Send)]


def show(commands: list[Command]) -> Show:
    [command] = of(Show, commands)
    assert isinstance(command, Show)
    return command


# --- life ------------------------------------------------------------------------------------------------------------


def test_created_window_is_not_shown_until_mapped() -> None:
    book = Playbook()
    assert book.said(create(), gui.Title(1, b"hello"), gui.WindowClass(1, b"XTerm", b"xterm")) == []
    assert book.said(gui.Map(1)) == [
        Show(1, Style.WINDOW, PLACE, "hello", "work:XTerm", "work:xterm", is_positioned=False, may_focus=False)
    ]


def test_unmapped_window_is_hidden_and_destroyed_one_acknowledged_after_it_is_hidden() -> None:
    book = Playbook()
    book.shown()
    assert book.said(gui.Unmap(1)) == [Hide(1)]
    book.said(gui.Map(1))
    assert book.said(gui.Destroy(1)) == [Hide(1), Send(gui.Destroy(1))]


def test_what_came_and_went_at_once_is_never_shown() -> None:
    """MC-43."""
    book = Playbook()
    assert book.said(create(), gui.Map(1), gui.Unmap(1), gui.Map(1), gui.Destroy(1)) == [Send(gui.Destroy(1))]


def test_number_can_be_used_again_after_destroy() -> None:
    book = Playbook()
    book.shown()
    commands = book.said(gui.Destroy(1), create(), gui.Map(1))
    assert [type(command) for command in commands] == [Hide, Send, Show]


def test_destroy_is_not_acknowledged_in_versions_without_that() -> None:
    book = Playbook(minor=4)
    book.shown()
    assert book.said(gui.Destroy(1)) == [Hide(1)]


def test_existing_number_created_again_refused() -> None:
    """MC-41."""
    book = Playbook()
    book.said(create())
    with pytest.raises(RemoteProtocolError):
        book.said(create())


ABOUT_A_WINDOW = [
    gui.Destroy(9),
    gui.Map(9),
    gui.Unmap(9),
    gui.Configure(9, 0, 0, 1, 1),
    gui.Damage(9, 0, 0, 1, 1),
    gui.Title(9, b""),
    gui.Dock(9),
    gui.WindowHints(9, 0),
    gui.WindowFlags(9, 0, 0),
    gui.WindowClass(9, b"", b""),
    gui.FramePicture(9, 1, 1, 0),
    gui.Cursor(9, 0),
]


@pytest.mark.parametrize("message", ABOUT_A_WINDOW)
def test_message_about_a_window_that_never_was_or_is_gone_refused(message: Message) -> None:
    """MC-41."""
    with pytest.raises(RemoteProtocolError):
        Playbook().said(message)
    book = Playbook()
    book.said(create(9), gui.Destroy(9))
    with pytest.raises(RemoteProtocolError):
        book.said(message)


def test_grants_are_refused_here() -> None:
    book = Playbook()
    book.said(create())
    with pytest.raises(RemoteProtocolError):
        book.said(gui.GrantPicture(1, 1, 1, (5,)))


def test_ten_thousand_windows_are_refused_and_hundreds_not_all_shown() -> None:
    """MC-43."""
    book = Playbook()
    commands = book.said(*[create(number) for number in range(1, MAX_WINDOWS + 1)])
    assert commands == []
    commands = book.said(*[gui.Map(number) for number in range(1, MAX_WINDOWS + 1)])
    assert len(of(Show, commands)) == MAX_SHOWN
    assert len(of(Tell, commands)) == 1
    assert book.said() == []
    commands = book.said(gui.Destroy(5))
    assert [type(command) for command in commands] == [Hide, Send, Show]
    book.said(create(MAX_WINDOWS + 1))
    with pytest.raises(RemoteProtocolError):
        book.said(create(MAX_WINDOWS + 2))


def test_windows_that_would_take_gigabytes_are_not_all_shown() -> None:
    """MC-35, MC-43: before anything is reserved for them."""
    book = Playbook()
    huge = Rect(100, 100, 16384, 6144)
    commands = book.said(*[create(n, huge) for n in range(1, 6)], *[gui.Map(n) for n in range(1, 6)])
    assert [c.window for c in commands if isinstance(c, Show)] == [1]
    assert len(of(Tell, commands)) == 1
    small = [create(n, Rect(0, 0, 4000, 4000)) for n in range(10, 20)]
    commands = book.said(*small, *[gui.Map(n) for n in range(10, 20)])
    assert [c.window for c in commands if isinstance(c, Show)] == [10, 11]
    commands = book.said(configure(10, Rect(100, 100, 16384, 6144)))
    assert of(Hide, commands) == [Hide(10)]


def test_windows_that_come_and_go_appear_no_faster_than_a_desktop_can_bear() -> None:
    """MC-43."""
    windows = Windows(SETTINGS, DESK, memory_size=MEMORY)
    windows.receive(create())
    shown = 0
    for n in range(1000):
        windows.receive(gui.Map(1))
        shown += len(of(Show, windows.settle(100.0 + n / 1000)))
        windows.receive(gui.Unmap(1))
    assert MAX_SHOWN < shown <= MAX_SHOWN + SHOWS_PER_SECOND + 1
    for _ in range(2):  # One may be due just now, another one is not.
        windows.receive(gui.Unmap(1))
        windows.receive(gui.Map(1))
        commands = windows.settle(101.0)
    assert not of(Show, commands)
    assert windows.wake_at == pytest.approx(101.0 + 1 / SHOWS_PER_SECOND)
    assert of(Show, windows.settle(101.001 + 1 / SHOWS_PER_SECOND))


def test_guests_wishes_change_a_window_once_for_each_picture_of_the_screen() -> None:
    """MC-43; what the desktop itself did is put right at once."""
    book = Playbook()
    book.shown()
    windows, now = book.windows, 100.0
    windows.receive(gui.Title(1, b"one"))
    assert windows.settle(now) == [SetTitle(1, "one")]
    windows.receive(gui.Title(1, b"two"))
    windows.receive(gui.WindowFlags(1, gui.FLAG_ATTENTION, 0))
    assert windows.settle(now + 0.001) == []
    assert windows.wake_at == pytest.approx(now + DESK.frame_s)
    windows.receive(gui.Title(1, b"three"))
    assert windows.settle(now + DESK.frame_s) == [SetTitle(1, "three"), SetState(1, State(wants_attention=True))]


def test_clear_hides_everything() -> None:
    book = Playbook()
    book.shown(1)
    book.shown(2)
    book.said(create(3))
    assert book.windows.clear() == [Hide(1), Hide(2)]
    assert book.settle() == []


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [Rect(-(2**31), -(2**31), 2**31 - 1, 2**31 - 1), Rect(2**31 - 1, 0, 1, 2**31 - 1)])
def test_impossible_sizes_and_places_are_clamped(place: Rect) -> None:
    """MC-35."""
    book = Playbook()
    clamped = show(book.said(create(1, place), gui.WindowHints(1, gui.HINT_USER_POSITION), gui.Map(1))).place
    assert clamped.width <= 16384
    assert clamped.height <= 6144
    assert clamped.y >= 0
    commands = book.said(configure(1, replace(place, x=5)))
    [told] = [message for message in sent(commands) if isinstance(message, gui.Configure)]
    assert (told.width, told.height) == (min(place.width, 16384), min(place.height, 6144))


def test_window_with_a_place_of_its_own_keeps_it_another_is_placed_by_the_desktop() -> None:
    book = Playbook()
    assert not show(book.said(create(), gui.Map(1))).is_positioned
    assert show(book.said(create(2), gui.WindowHints(2, gui.HINT_PROGRAM_POSITION), gui.Map(2))).is_positioned


def test_guests_move_is_carried_out_and_not_answered() -> None:
    book = Playbook()
    book.shown()
    place = Rect(200, 150, 500, 400)
    assert book.said(configure(1, place)) == [Move(1, place)]
    assert book.happened(Moved(1, place)) == []


def test_guest_that_moves_its_title_off_the_screen_is_moved_back_and_told() -> None:
    """MC-38."""
    book = Playbook()
    book.shown()
    back = Rect(100, 22, 400, 300)
    assert book.said(configure(1, Rect(100, -500, 400, 300))) == [Move(1, back), Send(configure(1, back))]


def test_users_move_is_told_once_and_the_answer_ends_it() -> None:
    book = Playbook()
    book.shown()
    place = Rect(300, 200, 400, 300)
    assert book.happened(Moved(1, place)) == [Send(configure(1, place))]
    assert book.said(configure(1, place)) == []
    assert book.said(configure(1, PLACE)) == [Move(1, PLACE)]


def test_while_the_guest_has_not_answered_it_is_told_nothing_more_and_the_users_place_wins() -> None:
    book = Playbook()
    book.shown()
    first, second = Rect(300, 200, 400, 300), Rect(310, 210, 400, 300)
    book.happened(Moved(1, first))
    assert book.happened(Moved(1, second)) == []
    assert book.said(configure(1, first)) == [Send(configure(1, second))]
    assert book.said(configure(1, PLACE)) == [Send(configure(1, second))]
    assert book.said(configure(1, second)) == []


def test_flood_of_moves_becomes_one() -> None:
    """MC-43."""
    book = Playbook()
    book.shown()
    commands = book.said(*[configure(1, Rect(100 + n % 500, 100, 400, 300)) for n in range(1000)])
    assert commands == [Move(1, Rect(100 + 999 % 500, 100, 400, 300))]


def test_screens_change_windows_come_back_onto_one() -> None:
    """MC-46."""
    book = Playbook()
    book.shown(1, Rect(2000, 100, 400, 300))
    book.windows.happened(Moved(1, Rect(2000, 100, 400, 300)))
    book.settle()
    small = Desk((Rect(0, 0, 800, 600),))
    back = Rect(740, 100, 400, 300)
    assert book.happened(DeskChanged(small)) == [Move(1, back), Send(configure(1, back))]
    for areas in ((), (Rect(0, 0, 0, 0),)):
        assert book.happened(DeskChanged(Desk(areas))) == []
    assert book.happened(DeskChanged(DESK)) == []


def test_icon_is_shown_once_for_each_change_and_again_with_its_window() -> None:
    book = Playbook()
    first, second = (gui.Icon(1, 1, 1, bytes([byte] * 4)) for byte in (1, 2))
    assert of(SetIcon, book.said(create(), first, gui.Map(1))) == [SetIcon(1, Icon(1, 1, first.pixels))]
    assert of(SetIcon, book.said(first)) == []
    assert of(SetIcon, book.said(second, gui.Icon(1, 0, 0, b""))) == [SetIcon(1, None)]
    book.said(second, gui.Unmap(1))
    assert of(SetIcon, book.said(gui.Map(1))) == [SetIcon(1, Icon(1, 1, second.pixels))]


def test_flood_of_icons_is_shown_now_and_then_and_the_last_one_at_last() -> None:
    """MC-43."""
    book = Playbook()
    book.shown()
    shown = []
    for n in range(1000):
        book.windows.receive(gui.Icon(1, 1, 1, n.to_bytes(4, "little")))
        shown += of(SetIcon, book.windows.settle(book.now))
    assert len(shown) == ICONS_BURST
    assert book.windows.wake_at is not None
    book.now = book.windows.wake_at
    assert of(SetIcon, book.windows.settle(book.now)) == [SetIcon(1, Icon(1, 1, (999).to_bytes(4, "little")))]


# --- popups ----------------------------------------------------------------------------------------------------------

MENU = Rect(150, 150, 120, 200)


def test_popup_of_the_qube_the_user_works_in_is_shown_as_one_where_it_wants() -> None:
    book = Playbook()
    book.focused()
    assert book.said(create(2, MENU, popup=True), gui.Map(2, 0, True)) == [
        Show(2, Style.POPUP, MENU, "", "work:", parent=1, is_positioned=True, may_focus=False)
    ]


def test_popup_of_another_qube_is_an_ordinary_window_without_focus() -> None:
    """MC-37, MC-38, MC-44: nothing of a qube in the background comes over what the user looks at."""
    book = Playbook()
    book.shown()
    command = show(book.said(create(2, MENU, popup=True), gui.Map(2, 0, True)))
    assert command.style is Style.WINDOW
    assert not command.may_focus


def test_popups_go_with_the_focus_and_come_back_with_it() -> None:
    """MC-38."""
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=True)
    book.windows.focus_changed(None)
    assert book.settle() == [Hide(2)]
    book.windows.focus_changed(1)
    assert show(book.settle()).style is Style.POPUP


@pytest.mark.parametrize("place", [SCREEN, Rect(-10, -10, 1300, 820), Rect(0, 0, 1200, 780)])
def test_popup_as_large_as_the_screen_is_a_window_and_the_user_is_told_once(place: Rect) -> None:
    """MC-37."""
    book = Playbook()
    book.focused()
    commands = book.said(create(2, place, popup=True), gui.Map(2, 0, True))
    assert show(commands).style is Style.WINDOW
    assert len(of(Tell, commands)) == 1
    assert of(Tell, book.said(create(3, place, popup=True), gui.Map(3, 0, True))) == []


PANEL = Rect(0, 300, 1280, 40)


def test_popup_goes_beside_what_is_protected_and_out_of_its_way_when_it_comes() -> None:
    """MC-38."""
    book = Playbook()
    book.focused()
    book.happened(DeskChanged(Desk((SCREEN,), (PANEL,))))
    command = show(book.said(create(2, MENU, popup=True), gui.Map(2, 0, True)))
    assert command.style is Style.POPUP
    assert command.place == Rect(150, 300 - POPUP_FRAME.bottom - 200, 120, 200)
    notice = Rect(140, 0, 200, 300)
    [move] = of(Move, book.happened(DeskChanged(Desk((SCREEN,), (PANEL, notice)))))
    assert isinstance(move, Move)
    assert not any(POPUP_FRAME.around(move.place).overlaps(rect) for rect in (PANEL, notice))


def test_windows_stay_where_the_user_has_them_when_only_others_move() -> None:
    book = Playbook()
    book.focused()
    book.happened(Moved(1, Rect(-380, 500, 400, 300)))
    assert of(Move, book.happened(DeskChanged(Desk((SCREEN,), (PANEL,))))) == []
    assert of(Move, book.happened(DeskChanged(Desk((Rect(0, 0, 1280, 799),), (PANEL,))))) != []


def test_window_in_the_background_does_not_move_over_what_is_not_its_own() -> None:
    """MC-38."""
    book = Playbook()
    book.shown()
    book.happened(DeskChanged(Desk((SCREEN,), (Rect(600, 0, 40, 800),))))
    over = Rect(500, 100, 400, 300)
    commands = book.said(configure(1, over))
    assert of(Move, commands) == []
    assert sent(commands) == [configure(1, PLACE)]
    book.said(configure(1, PLACE))
    assert of(Move, book.said(configure(1, Rect(700, 100, 400, 300)))) != []
    # Where the user works, programs move their windows as anywhere.
    book.windows.focus_changed(1)
    assert of(Move, book.said(configure(1, over))) != []


def test_first_window_after_the_user_started_a_program_is_expected_without_having_focus() -> None:
    """MC-44."""
    book = Playbook()
    book.windows.expect(book.now)
    first = show(book.said(create(1), gui.Map(1)))
    assert (first.is_expected, first.may_focus) == (True, False)
    assert not show(book.said(create(2), gui.Map(2))).is_expected
    book.windows.expect(book.now)
    book.now += EXPECTED_S
    assert not show(book.said(create(3), gui.Map(3))).is_expected


def test_only_messages_that_place_something_over_others_ask_for_a_look() -> None:
    book = Playbook()
    popup_map, move = gui.Map(2, 0, True), configure(1, MENU)
    book.shown()
    assert not book.windows.depends_on_others(popup_map)
    assert book.windows.depends_on_others(move)
    book.windows.focus_changed(1)
    assert book.windows.depends_on_others(popup_map)
    assert not book.windows.depends_on_others(move)
    assert not book.windows.depends_on_others(gui.Map(2, 0, False))
    assert not book.windows.has_popups
    book.shown(2, MENU, popup=True)
    assert book.windows.depends_on_others(configure(2, PLACE))
    assert book.windows.has_popups
    book.windows.focus_changed(None)
    book.settle()
    assert not book.windows.has_popups
    assert book.windows.depends_on_others(FocusGained(1))
    assert not book.windows.depends_on_others(Exposed(1))


def test_popup_that_grows_over_the_screen_becomes_a_window() -> None:
    """MC-37: hidden, changed, shown; there is never a moment with neither frame."""
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=True)
    commands = book.said(configure(2, SCREEN, popup=True))
    assert [type(command) for command in commands] == [Tell, Hide, Show, Send]
    assert show(commands).style is Style.WINDOW
    assert show(commands).place.y >= 22


def test_popup_partly_off_the_screen_is_brought_back_with_its_frame_and_the_guest_told() -> None:
    """MC-38."""
    book = Playbook()
    book.focused()
    commands = book.said(create(2, Rect(1250, 790, 120, 200), popup=True), gui.Map(2, 0, True))
    placed = show(commands).place
    assert SCREEN.contains(POPUP_FRAME.around(placed))
    assert sent(commands) == [configure(2, placed, popup=True)]


def test_popup_moved_by_anybody_to_where_it_must_not_be_is_moved_back() -> None:
    """MC-38."""
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=True)
    [move, told] = book.happened(Moved(2, Rect(-60, 150, 120, 200)))
    assert move == Move(2, Rect(2, 150, 120, 200))
    assert told == Send(configure(2, Rect(2, 150, 120, 200), popup=True))


def test_popup_over_a_prompt_goes_elsewhere_when_the_prompt_appears() -> None:
    """MC-32, MC-38."""
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=True)
    prompt = Rect(100, 100, 300, 300)
    commands = book.happened(DeskChanged(Desk((SCREEN,), (prompt,))))
    [move] = of(Move, commands)
    assert isinstance(move, Move)
    assert not POPUP_FRAME.around(move.place).overlaps(prompt)


def test_popup_wholly_off_the_screen_is_not_shown_until_it_comes_onto_it() -> None:
    book = Playbook()
    book.focused()
    assert book.said(create(2, Rect(-5000, -5000, 100, 100), popup=True), gui.Map(2, 0, True)) == []
    assert show(book.said(configure(2, MENU, popup=True))).place == MENU


def test_popups_forbidden_for_a_qube_are_windows() -> None:
    book = Playbook(replace(SETTINGS, allows_popups=False))
    book.focused()
    assert show(book.said(create(2, MENU, popup=True), gui.Map(2, 0, True))).style is Style.WINDOW


@pytest.mark.parametrize("popup", [False, True])
def test_what_a_window_is_cannot_change_while_it_is_shown(popup: bool) -> None:
    """MC-37: neither by MAP again nor by CONFIGURE nor by DOCK."""
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=popup)
    assert book.said(gui.Map(2, 0, not popup), configure(2, MENU, popup=not popup), gui.Dock(2)) == []
    book.said(gui.Unmap(2))
    style = show(book.said(gui.Map(2, 0, not popup))).style
    assert style is (Style.WINDOW if popup else Style.POPUP)


# --- the tray --------------------------------------------------------------------------------------------------------


def dock(number: int) -> tuple[Message, ...]:
    return create(number), gui.Dock(number), gui.Map(number, 0, True)


def test_icon_is_shown_once_without_focus_and_can_neither_be_moved_nor_hidden_by_the_guest() -> None:
    """MC-38, MC-44."""
    book = Playbook()
    book.focused()
    shown = show(book.said(*dock(2)))
    assert (shown.style, shown.may_focus, shown.parent) == (Style.ICON, False, None)
    assert book.said(gui.Unmap(2), gui.Map(2), gui.WindowFlags(2, gui.FLAG_FULLSCREEN, 0)) == []
    place = Rect(3, 3, 20, 20)
    assert book.happened(Moved(2, place)) == [Send(configure(2, place))]
    assert book.said(configure(2, MENU)) == [Send(configure(2, place))]
    assert book.said(configure(2, place)) == []
    assert book.said(gui.Destroy(2)) == [Hide(2), Send(gui.Destroy(2))]


def test_icon_is_one_only_if_it_said_so_before_it_was_mapped_and_is_no_parent() -> None:
    """MC-37."""
    book = Playbook()
    book.shown(1)
    assert book.said(gui.Dock(1)) == []
    assert not book.windows.is_icon(1)
    book.said(*dock(2))
    assert book.windows.is_icon(2)
    assert show(book.said(create(3), gui.Map(3, 2))).parent is None


def test_icon_is_painted_as_any_window_is() -> None:
    book = Playbook()
    book.said(*dock(2), gui.FramePicture(2, 20, 20, 0))
    book.happened(Exposed(2), Moved(2, Rect(3, 3, 20, 20)))
    commands = book.said(gui.Damage(2, 0, 0, 20, 20))
    assert [type(command) for command in commands] == [Paint, Send]


def test_icons_of_a_qube_are_few_and_do_not_come_and_go_all_the_time() -> None:
    """MC-43."""
    book = Playbook()
    commands = [command for number in range(1, 100) for command in book.said(*dock(number))]
    assert len(of(Show, commands)) == windows.MAX_ICONS
    assert len(of(Tell, commands)) == 1
    shown = 0
    book = Playbook()
    for _ in range(100):
        shown += len(of(Show, book.said(*dock(1))))
        book.said(gui.Destroy(1))
    assert shown <= windows.DOCKS_BURST + 200 * windows.DOCKS_PER_SECOND + 1


def test_without_a_tray_the_icon_is_hidden_said_once_and_tried_again() -> None:
    book = Playbook()
    book.said(*dock(1), gui.FramePicture(1, 20, 20, 0), gui.Damage(1, 0, 0, 20, 20))
    commands = book.happened(Undocked(1))
    assert of(Hide, commands) == [Hide(1)]
    assert len(of(Tell, commands)) == 1
    assert gui.Painted(1) in sent(commands)
    assert book.windows.wake_at == book.now + windows.DOCK_AGAIN_S
    book.now = book.windows.wake_at
    assert show(book.settle()).window == 1
    assert of(Tell, book.happened(Undocked(1))) == []
    assert book.said(gui.Destroy(1)) == [Send(gui.Destroy(1))]
    book.settle()
    assert book.windows.wake_at is None


# --- relations -------------------------------------------------------------------------------------------------------


def test_dialog_belongs_to_its_window_which_is_shown_first() -> None:
    book = Playbook()
    commands = book.said(create(1), create(2), gui.Map(1, 2), gui.Map(2))
    assert [(c.window, c.parent) for c in commands if isinstance(c, Show)] == [(2, None), (1, 2)]


def dialog(book: Playbook, flags: int, *, parent: int = 1, popup: bool = False) -> Show:
    return show(book.said(create(2, popup=popup), gui.WindowFlags(2, flags, 0), gui.Map(2, parent, popup)))


@pytest.mark.parametrize(
    ("flags", "role"),
    [
        (0, Role.NORMAL),
        (gui.FLAG_DIALOG, Role.DIALOG),
        (gui.FLAG_UTILITY, Role.UTILITY),
        (gui.FLAG_UTILITY | gui.FLAG_DIALOG, Role.UTILITY),
        (0x800, Role.NORMAL),
    ],
)
def test_window_is_what_its_program_says_it_is(flags: int, role: Role) -> None:
    book = Playbook()
    book.focused()
    assert dialog(book, flags).role is role


def test_window_that_belongs_to_one_may_have_it_wait() -> None:
    book = Playbook()
    book.focused()
    shown = dialog(book, gui.FLAG_DIALOG | gui.FLAG_MODAL)
    assert (shown.parent, shown.is_modal) == (1, True)


@pytest.mark.parametrize(("parent", "popup"), [(0, False), (7, False), (1, True)])
def test_window_that_belongs_to_none_and_popups_have_nothing_wait(parent: int, popup: bool) -> None:
    book = Playbook()
    book.focused()
    shown = dialog(book, gui.FLAG_MODAL | gui.FLAG_DIALOG, parent=parent, popup=popup)
    assert not shown.is_modal
    assert (shown.role is Role.NORMAL) is popup


def test_kind_of_a_window_stays_what_it_was_when_it_was_mapped_and_is_told_anew() -> None:
    book = Playbook()
    book.focused()
    dialog(book, gui.FLAG_DIALOG | gui.FLAG_MODAL)
    assert book.said(gui.WindowFlags(2, gui.FLAG_UTILITY, gui.FLAG_MODAL)) == []
    book.said(gui.Unmap(2))
    again = show(book.said(gui.Map(2, 1)))
    assert (again.role, again.is_modal) == (Role.NORMAL, False)


@pytest.mark.parametrize("parent", [1, 99, 0xFFFFFFFF])
def test_parent_that_is_itself_or_does_not_exist_is_dropped(parent: int) -> None:
    """MC-42."""
    assert show(Playbook().said(create(), gui.Map(1, parent))).parent is None


def test_parents_in_a_loop_are_dropped() -> None:
    """MC-42."""
    book = Playbook()
    commands = book.said(*map(create, (1, 2, 3)), gui.Map(1, 2), gui.Map(2, 3), gui.Map(3, 1))
    assert {c.window: c.parent for c in commands if isinstance(c, Show)} == {3: None, 2: 3, 1: 2}
    book.said(gui.Unmap(3))
    assert show(book.said(gui.Map(3, 1))).parent is None


def test_endless_row_of_parents_ends() -> None:
    """MC-42."""
    book = Playbook()
    count = 100
    commands = book.said(*map(create, range(1, count)), *[gui.Map(n, n - 1) for n in range(1, count)])
    parents = {c.window: c.parent for c in commands if isinstance(c, Show)}
    assert len(parents) == count - 1

    def depth(number: int) -> int:
        parent = parents[number]
        return 0 if parent is None else 1 + depth(parent)

    assert max(map(depth, parents)) <= MAX_DEPTH


def test_destroyed_parent_leaves_its_children() -> None:
    """MC-42."""
    book = Playbook()
    book.shown(1)
    book.shown(2, parent=1)
    assert book.said(gui.Destroy(1)) == [Hide(1), Send(gui.Destroy(1))]
    book.said(gui.Unmap(2))
    assert show(book.said(gui.Map(2, 1))).parent is None


def test_popups_are_hidden_before_what_they_belong_to() -> None:
    book = Playbook()
    book.focused()
    book.shown(2, PLACE)
    book.shown(3, MENU, popup=True, parent=2)
    book.shown(4, Rect(180, 180, 50, 50), popup=True, parent=3)
    commands = book.said(gui.Unmap(2))
    assert of(Hide, commands) == [Hide(4), Hide(3), Hide(2)]
    assert [c.window for c in commands if isinstance(c, Show)] == [3, 4]


# --- what it looks like ----------------------------------------------------------------------------------------------


def test_title_hints_cursor_change_once_however_often_they_are_said() -> None:
    """MC-43."""
    book = Playbook()
    book.shown()
    changes = [gui.Title(1, b"%d" % n) for n in range(50)]
    changes += [gui.WindowHints(1, gui.HINT_MIN_SIZE, n, n) for n in range(50)]
    changes += [gui.Cursor(1, 0x100 + 2 * n) for n in range(50)]
    assert book.said(*changes) == [
        SetTitle(1, "49"),
        SetHints(1, SizeHints(minimum=(49, 49))),
        SetCursor(1, 0x100 + 98),
    ]
    assert book.said(*changes) == []


def test_class_stays_what_it_was_when_the_window_was_mapped() -> None:
    book = Playbook()
    book.shown()
    book.said(gui.WindowClass(1, b"Locker", b"locker"), gui.Unmap(1))
    assert show(book.said(gui.Map(1))).class_name == "work:"


@pytest.mark.parametrize(
    ("message", "hints"),
    [
        (gui.WindowHints(1, 0, 1, 2, 3, 4, 5, 6, 7, 8), SizeHints()),
        (gui.WindowHints(1, 368, 1, 2, 3, 4, 5, 6, 7, 8), SizeHints((1, 2), (3, 4), (5, 6), (7, 8))),
        (gui.WindowHints(1, 368, 16385, 2, 0, 4, 0, 6, 7, 6145), SizeHints()),
    ],
)
def test_hints_out_of_bounds_are_left_out(message: gui.WindowHints, hints: SizeHints) -> None:
    assert show(Playbook().said(create(), message, gui.Map(1))).hints == hints


def test_whole_screen_is_maximised_unless_allowed_and_the_guest_believes_it() -> None:
    """MC-37."""
    book = Playbook()
    book.shown()
    maximised = State(is_maximised=True)
    assert book.said(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0)) == [
        SetState(1, maximised),
        Send(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0)),
    ]
    assert book.happened(StateChanged(1, maximised)) == []
    assert book.said(gui.WindowFlags(1, 0, gui.FLAG_FULLSCREEN)) == [
        SetState(1, State()),
        Send(gui.WindowFlags(1, 0, gui.FLAG_FULLSCREEN)),
    ]
    book = Playbook(replace(SETTINGS, allows_fullscreen=True))
    book.shown()
    [command] = of(SetState, book.said(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0)))
    assert command == SetState(1, State(is_fullscreen=True))


def test_whole_screen_asked_for_before_it_is_mapped_is_maximised_too() -> None:
    """MC-37."""
    command = show(Playbook().said(create(), gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0), gui.Map(1)))
    assert command.state == State(is_maximised=True)


def test_user_who_leaves_maximised_is_not_overruled() -> None:
    book = Playbook()
    book.shown()
    book.said(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0))
    assert sent(book.happened(StateChanged(1, State()))) == [gui.WindowFlags(1, 0, gui.FLAG_FULLSCREEN)]
    assert book.said(gui.WindowFlags(1, gui.FLAG_FULLSCREEN, 0)) == []


def test_minimising_is_the_guests_right_restoring_is_not() -> None:
    book = Playbook()
    book.shown()
    minimised = State(is_minimised=True)
    flags = gui.FLAG_MINIMISE | gui.FLAG_FULLSCREEN
    assert of(SetState, book.said(gui.WindowFlags(1, flags, 0))) == [SetState(1, minimised)]
    assert book.said(gui.WindowFlags(1, 0, gui.FLAG_MINIMISE)) == []
    assert book.happened(StateChanged(1, State())) == [
        Send(gui.Map(1)),
        Send(gui.WindowFlags(1, 0, gui.FLAG_MINIMISE)),
    ]


def test_attention_is_a_flag_and_gone_when_the_user_comes() -> None:
    """MC-44."""
    book = Playbook()
    book.shown()
    assert book.said(gui.WindowFlags(1, gui.FLAG_ATTENTION, 0)) == [SetState(1, State(wants_attention=True))]
    book.windows.focus_changed(1)
    assert book.settle() == [SetState(1, State())]


def test_unknown_flags_mean_nothing() -> None:
    book = Playbook()
    book.shown()
    assert book.said(gui.WindowFlags(1, 0xFFFFFFF8, 0)) == []


def test_popup_has_no_state() -> None:
    """MC-37."""
    book = Playbook(replace(SETTINGS, allows_fullscreen=True))
    book.focused()
    book.shown(2, MENU, popup=True)
    assert of(SetState, book.said(gui.WindowFlags(2, 7, 0))) == []


def test_users_wish_to_close_is_passed_on() -> None:
    book = Playbook()
    book.shown()
    assert book.happened(CloseRequested(1)) == [Send(gui.Close(1))]


# --- focus -----------------------------------------------------------------------------------------------------------


def test_window_may_have_focus_only_if_the_user_works_in_its_qube() -> None:
    """MC-44."""
    book = Playbook()
    assert not show(book.said(create(1), gui.Map(1))).may_focus
    assert not show(book.said(create(2), gui.Map(2))).may_focus
    book.windows.focus_changed(1)
    assert show(book.said(create(3), gui.Map(3))).may_focus
    book.windows.focus_changed(None)
    assert not show(book.said(create(4), gui.Map(4))).may_focus


# --- pictures --------------------------------------------------------------------------------------------------------


def pictured() -> Playbook:
    book = Playbook()
    book.shown()
    book.said(gui.FramePicture(1, 400, 300, 4096))
    return book


def test_picture_is_looked_at_then_acknowledged() -> None:
    book = Playbook()
    book.shown()
    picture = Picture(4096, 400, 300)
    assert book.said(gui.FramePicture(1, 400, 300, 4096)) == [SetPicture(1, picture), Send(gui.DumpAcknowledged(1))]
    assert book.said(gui.FramePicture(1, 10, 10, 0), gui.FramePicture(1, 20, 20, 8192)) == [
        SetPicture(1, Picture(8192, 20, 20)),
        Send(gui.DumpAcknowledged(1)),
        Send(gui.DumpAcknowledged(1)),
    ]


@pytest.mark.parametrize("minor", [4, 6])
def test_picture_is_not_acknowledged_in_versions_without_that(minor: int) -> None:
    book = Playbook(minor=minor)
    book.shown()
    assert sent(book.said(gui.FramePicture(1, 10, 10, 0))) == []


@pytest.mark.parametrize(
    ("width", "height", "offset", "memory"),
    [
        (400, 300, MEMORY, MEMORY),
        (400, 300, MEMORY - 480000 + 3840, MEMORY),
        (16384, 6144, 0, MEMORY),
        (1, 1, 2**63 - 2**12, MEMORY),
        (1, 1, 2**64 - 2**12, MEMORY),
        (1, 1, 0, 0),
        (1, 1, 0, 3),
    ],
)
def test_picture_outside_the_frame_memory_refused(width: int, height: int, offset: int, memory: int) -> None:
    """MC-36."""
    book = Playbook(memory_size=memory)
    book.shown()
    with pytest.raises(RemoteProtocolError):
        book.said(gui.FramePicture(1, width, height, offset))


def test_picture_that_ends_with_the_frame_memory_is_fine() -> None:
    book = Playbook(memory_size=8192)
    book.shown()
    assert of(SetPicture, book.said(gui.FramePicture(1, 32, 32, 4096))) == [SetPicture(1, Picture(4096, 32, 32))]


def test_damage_is_painted_and_answered_after_it() -> None:
    book = pictured()
    assert book.said(gui.Damage(1, 10, 20, 30, 40)) == [Paint(1, (Rect(10, 20, 30, 40),)), Send(gui.Painted(1))]


def test_flood_of_damage_is_a_few_rectangles_and_one_answer() -> None:
    """MC-43."""
    book = pictured()
    paint, answer = book.said(*[gui.Damage(1, n % 390, n % 290, 5, 5) for n in range(100_000)])
    assert isinstance(paint, Paint)
    assert len(paint.rects) <= 8
    assert answer == Send(gui.Painted(1))


@pytest.mark.parametrize(
    "damage",
    [
        gui.Damage(1, -1, 0, 10, 10),
        gui.Damage(1, 0, -(2**31), 10, 10),
        gui.Damage(1, 400, 0, 10, 10),
        gui.Damage(1, 0, 300, 10, 10),
        gui.Damage(1, 0, 0, 0, 10),
    ],
)
def test_damage_outside_the_picture_paints_nothing_and_is_answered(damage: Message) -> None:
    """MC-36."""
    assert pictured().said(damage) == [Send(gui.Painted(1))]


def test_damage_is_clipped_to_picture_and_window() -> None:
    """MC-36: offset plus size overflows nothing."""
    book = pictured()
    [paint, _] = book.said(gui.Damage(1, 390, 290, 0xFFFFFFFF, 0xFFFFFFFF))
    assert paint == Paint(1, (Rect(390, 290, 10, 10),))
    book.said(gui.FramePicture(1, 100, 1000, 4096))
    [paint, _] = book.said(gui.Damage(1, 0, 0, 2**31, 2**31))
    assert paint == Paint(1, (Rect(0, 0, 100, 300),))


def test_at_most_one_paint_for_each_picture_of_the_screen() -> None:
    """MC-43."""
    book = pictured()
    windows, now = book.windows, 100.0
    windows.receive(gui.Damage(1, 0, 0, 5, 5))
    assert of(Paint, windows.settle(now))
    windows.receive(gui.Damage(1, 0, 0, 6, 6))
    assert windows.settle(now + 0.001) == []
    assert windows.wake_at == pytest.approx(now + (1 - EARLY) * DESK.frame_s)
    windows.receive(gui.Damage(1, 10, 10, 5, 5))
    assert windows.settle(now + DESK.frame_s) == [
        Paint(1, (Rect(0, 0, 6, 6), Rect(10, 10, 5, 5))),
        Send(gui.Painted(1)),
    ]
    assert windows.wake_at is None


@pytest.mark.parametrize("step", [0.0, 0.001, 0.009, 0.0166])
def test_flood_of_damage_is_painted_at_the_screens_pace_however_early_it_may_come(step: float) -> None:
    """MC-43."""
    book = pictured()
    windows, now, paints = book.windows, 100.0, 0
    while now < 101.0:
        windows.receive(gui.Damage(1, 0, 0, 5, 5))
        paints += len(of(Paint, windows.settle(now)))
        now = max(now + step, windows.wake_at or 0.0)
    assert paints <= 1 / DESK.frame_s + 2


def test_program_that_is_not_punctual_misses_no_picture() -> None:
    book = pictured()
    windows, now = book.windows, 100.0
    for late in (0.0, 0.004, -0.003, 0.002, 0.0035, -0.004, 0.0) * 20:
        now += DESK.frame_s
        windows.receive(gui.Damage(1, 0, 0, 5, 5))
        assert of(Paint, windows.settle(now + late)), late


def test_window_nobody_sees_is_not_painted_and_its_guest_waits() -> None:
    """MC-43."""
    book = pictured()
    book.happened(Obscured(1))
    assert book.said(gui.Damage(1, 0, 0, 5, 5)) == []
    assert book.happened(Exposed(1)) == [Paint(1, (Rect(0, 0, 400, 300),)), Send(gui.Painted(1))]


@pytest.mark.parametrize("last", [gui.Unmap(1), None])
def test_damage_of_a_window_that_is_not_mapped_is_answered_at_once(last: Message | None) -> None:
    """A guest never waits for what cannot happen."""
    book = Playbook()
    book.said(create())
    if last is not None:
        book = pictured()
        book.happened(Obscured(1))
        book.said(gui.Damage(1, 0, 0, 5, 5))
        assert sent(book.said(last)) == [gui.Painted(1)]
    assert sent(book.said(gui.Damage(1, 0, 0, 5, 5))) == [gui.Painted(1)]


def test_picture_of_an_unmapped_window_is_not_looked_at_again() -> None:
    book = pictured()
    commands = book.said(gui.Unmap(1), gui.Map(1))
    assert [type(command) for command in commands] == [Hide, Show]


def test_hidden_popup_is_looked_at_again_when_it_comes_back() -> None:
    book = Playbook()
    book.focused()
    book.shown(2, MENU, popup=True)
    book.said(gui.FramePicture(2, 120, 200, 4096))
    book.windows.focus_changed(None)
    assert book.said(gui.Damage(2, 0, 0, 5, 5)) == [Hide(2)]
    book.windows.focus_changed(1)
    assert [type(command) for command in book.settle()] == [Show, SetPicture]
    assert book.happened(Exposed(2)) == [Paint(2, (Rect(0, 0, 120, 200),)), Send(gui.Painted(2))]


# --- late events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [Moved(1, PLACE), Moved(99, PLACE), StateChanged(1, State()), Exposed(1), Obscured(99), CloseRequested(1)],
)
def test_event_about_a_window_that_is_hidden_or_never_was_means_nothing(event: object) -> None:
    book = Playbook()
    book.said(create())
    assert book.happened(event) == []


def test_empty_place_from_the_desktop_means_nothing() -> None:
    """MC-46."""
    book = Playbook()
    book.shown()
    assert book.happened(Moved(1, Rect(0, 0, 0, 0))) == []


# --- pixels alone ----------------------------------------------------------------------------------------------------

NUMBER = st.integers(1, 4)
SIDE = st.sampled_from([1, 100, 2000])
CORNER = st.sampled_from([0, 100, 1270])
MESSAGE: st.SearchStrategy[Message] = st.one_of(
    st.builds(gui.Damage, NUMBER, CORNER, CORNER, SIDE, SIDE),
    st.builds(gui.Damage, NUMBER, CORNER, CORNER, SIDE, SIDE),
    st.builds(gui.Create, NUMBER, CORNER, CORNER, SIDE, SIDE, st.just(0), st.booleans()),
    st.builds(gui.Map, NUMBER, st.integers(0, 4), st.booleans()),
    st.builds(gui.Unmap, NUMBER),
    st.builds(gui.Destroy, NUMBER),
    st.builds(gui.Dock, NUMBER),
    st.builds(gui.Configure, NUMBER, CORNER, CORNER, SIDE, SIDE),
    st.builds(gui.FramePicture, NUMBER, SIDE, SIDE, st.just(0)),
    st.builds(gui.Title, NUMBER, st.sampled_from([b"a", b"b"])),
    st.builds(gui.WindowFlags, NUMBER, st.integers(0, 7), st.just(0)),
)
EVENT = st.one_of(
    st.builds(Exposed, NUMBER),
    st.builds(Obscured, NUMBER),
    st.builds(Undocked, NUMBER),
    st.builds(Moved, NUMBER, st.builds(Rect, CORNER, CORNER, SIDE, SIDE)),
    st.builds(StateChanged, NUMBER, st.builds(State, is_minimised=st.booleans())),
)
FOCUS = st.builds(int, st.integers(0, 4))
START = [
    *(create(), gui.Map(1), gui.FramePicture(1, 400, 300, 0), Exposed(1), gui.Damage(1, 0, 0, 9, 9), 1),
    *(create(2, MENU, popup=True), gui.Map(2, 1, True), gui.Damage(1, 0, 0, 9, 9)),
]


@given(st.lists(MESSAGE | EVENT | FOCUS, max_size=30), st.lists(st.sampled_from([0.0, 0.004, 0.02, 40.0]), min_size=1))
def test_settling_after_pixels_alone_is_as_settling_everything(
    steps: list[Message | Event | int], times: list[float]
) -> None:
    quick = Windows(SETTINGS, DESK, memory_size=MEMORY)
    whole = Windows(SETTINGS, DESK, memory_size=MEMORY)
    now = 0.0
    for step, passes in zip([*START, *steps], itertools.cycle(times), strict=False):
        now += passes
        said = []
        for machine in (quick, whole):
            try:
                if isinstance(step, int):
                    machine.focus_changed(step or None)
                elif isinstance(step, Message):
                    machine.receive(step)
                else:
                    machine.happened(step)
            except RemoteProtocolError:
                pass  # (What the guest may not say changes nothing.)
        whole._is_settled = False
        for machine in (quick, whole):
            said.append((machine.settle(now), machine.wake_at))
        assert said[0] == said[1]
