"""The joined machine: any order of messages and events keeps the rules."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from insula.gui.desktop import (
    Activate,
    ButtonChanged,
    CloseRequested,
    Command,
    DeskChanged,
    Event,
    Exposed,
    FocusGained,
    FocusLost,
    Hide,
    KeyChanged,
    Layout,
    LayoutChanged,
    Moved,
    Obscured,
    OfferCopy,
    Paint,
    PointerMoved,
    Send,
    SetPicture,
    State,
    StateChanged,
    Style,
    Tell,
)
from insula.gui.geometry import POPUP_FRAME, Desk, Monitor, Rect
from insula.gui.machine import Machine
from insula.gui.settings import CONTROL, SHIFT, Settings
from insula.testing.gui_screen import Screen
from insula_proto import gui, gui_channel, gui_wire
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui import Message

SETTINGS = Settings("work", 0x3465A4)
DESK = Desk((Rect(0, 0, 1280, 800),))
MEMORY = 1 << 20

NUMBER = st.integers(1, 5)
PARENT = st.integers(0, 6)
POSITION = st.integers(-2000, 2000) | st.integers(-(2**31), 2**31 - 1)
OFFSET = st.integers(0, 100).map(lambda pages: pages * 4096)
SIDE = st.integers(1, 1500) | st.integers(1, 2**31 - 1)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(gui.Create, NUMBER, POSITION, POSITION, SIDE, SIDE, PARENT, st.booleans()),
    st.builds(gui.Map, NUMBER, PARENT, st.booleans()),
    st.builds(gui.Map, NUMBER, PARENT, st.booleans()),
    st.builds(gui.Unmap, NUMBER),
    st.builds(gui.Destroy, NUMBER),
    st.builds(gui.Dock, NUMBER),
    st.builds(gui.Configure, NUMBER, POSITION, POSITION, SIDE, SIDE, st.booleans()),
    st.builds(gui.FramePicture, NUMBER, st.integers(1, 300), st.integers(1, 300), OFFSET),
    st.builds(gui.Damage, NUMBER, POSITION, POSITION, st.integers(0, 2**32 - 1), SIDE),
    st.builds(gui.WindowFlags, NUMBER, st.sampled_from([0, 1, 2, 4, 5]), st.just(0)),
    st.builds(gui.WindowHints, NUMBER, st.integers(0, 511), *[st.integers(0, 20000)] * 8),
    st.builds(gui.Title, NUMBER, st.binary(max_size=20)),
    st.builds(gui.ClipboardData, NUMBER, st.binary(max_size=20)),
)  # fmt: skip
DESKS = st.builds(
    Desk,
    st.lists(
        st.builds(Rect, st.integers(-500, 1500), st.integers(-500, 1500), st.integers(0, 2000), st.integers(0, 1500)),
        max_size=2,
    ).map(tuple),
    st.lists(st.builds(Rect, st.integers(0, 1000), st.integers(0, 700), SIDE, st.just(30)), max_size=2).map(tuple),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(DeskChanged, DESKS),
    st.builds(Moved, NUMBER, st.builds(Rect, POSITION, POSITION, st.integers(0, 1500), st.integers(0, 1500))),
    st.builds(StateChanged, NUMBER, st.builds(State, st.booleans(), st.booleans(), st.booleans())),
    st.builds(Exposed, NUMBER),
    st.builds(Obscured, NUMBER),
    st.builds(CloseRequested, NUMBER),
    st.builds(FocusGained, NUMBER),
    st.builds(FocusLost, NUMBER),
    st.builds(
        KeyChanged, NUMBER, st.booleans(), st.just(38), st.sampled_from(["", "c", "v"]),
        st.sampled_from([0, CONTROL | SHIFT]), st.just(0), st.just(0), st.booleans(), st.just(5),
    ),
    st.builds(ButtonChanged, NUMBER, st.booleans(), st.integers(0, 9), st.just(0), POSITION, POSITION),
    st.builds(PointerMoved, NUMBER, st.integers(0, 2**16), POSITION, POSITION),
)  # fmt: skip


def test_window_from_first_message_to_last() -> None:
    """The journey, in order, as the guest and the desktop see it."""
    machine, screen = Machine(SETTINGS, DESK, memory_size=MEMORY), Screen(SETTINGS, DESK)
    for message in (gui.Create(1, 10, 30, 100, 80), gui.Title(1, b"hi"), gui.Map(1), gui.FramePicture(1, 100, 80, 0)):
        assert machine.receive(message, 0.0) == []
    screen.obey(machine.settle(0.0))
    assert screen.windows[1].title == "hi"
    assert machine.happened(FocusGained(1), 0.0) == [
        Send(gui.KeymapNotify(0, bytes(32))),
        Send(gui.Focus(1, True)),
    ]
    assert machine.has_focus
    machine.happened(Exposed(1), 0.0)
    machine.receive(gui.Damage(1, 0, 0, 100, 80), 0.0)
    assert machine.settle(1.0)[-1] == Send(gui.Painted(1))
    machine.happened(KeyChanged(1, True, 54, "c", CONTROL | SHIFT, 0, 0, False, 7), 1.0)
    assert machine.receive(gui.ClipboardData(0, b"text"), 1.1) == [OfferCopy(1, b"text")]
    machine.receive(gui.Destroy(1), 2.0)
    commands = machine.settle(2.0)
    # It loses the focus before it goes, and is hidden before the guest hears of its end.
    assert commands == [Send(gui.Focus(1, False)), Hide(1), Send(gui.Destroy(1))]
    assert not machine.has_focus


def test_hidden_window_with_focus_takes_the_popups_with_it() -> None:
    """MC-38."""
    machine, screen = Machine(SETTINGS, DESK, memory_size=MEMORY), Screen(SETTINGS, DESK)
    machine.receive(gui.Create(1, 10, 30, 100, 80), 0.0)
    machine.receive(gui.Map(1), 0.0)
    screen.obey(machine.settle(0.0))
    machine.happened(FocusGained(1), 0.0)
    machine.receive(gui.Create(2, 500, 300, 50, 50, 0, True), 0.0)
    machine.receive(gui.Map(2, 0, True), 0.0)
    screen.obey(machine.settle(0.0))
    assert screen.windows[2].style is Style.POPUP
    machine.receive(gui.Unmap(1), 0.0)
    screen.obey(machine.settle(0.0))
    assert screen.windows == {}


def test_popup_with_focus_that_goes_takes_the_others_with_it() -> None:
    """MC-38: whatever a desktop gives focus to."""
    machine, screen = Machine(SETTINGS, DESK, memory_size=MEMORY), Screen(SETTINGS, DESK)
    machine.receive(gui.Create(1, 10, 30, 100, 80), 0.0)
    machine.receive(gui.Map(1), 0.0)
    screen.obey(machine.settle(0.0))
    machine.happened(FocusGained(1), 0.0)
    for number in (2, 3):
        machine.receive(gui.Create(number, 500, 300, 50, 50, 0, True), 0.0)
        machine.receive(gui.Map(number, 0, True), 0.0)
    screen.obey(machine.settle(0.0))
    machine.happened(FocusGained(2), 0.0)
    machine.receive(gui.Configure(2, -5000, 0, 50, 50), 0.0)
    screen.obey(machine.settle(0.0))
    assert list(screen.windows) == [1]


def test_clipboard_is_bounded_by_the_version_too() -> None:
    """MC-52."""
    generous = Settings("work", 0, clipboard_limit=256000)
    machine = Machine(generous, DESK, memory_size=0, minor=7)
    machine.receive(gui.Create(1, 10, 30, 100, 80), 0.0)
    machine.receive(gui.Map(1), 0.0)
    machine.settle(0.0)
    machine.happened(FocusGained(1), 0.0)
    machine.happened(KeyChanged(1, True, 55, "v", CONTROL | SHIFT, 0, 0, False, 7), 0.0)
    [told] = machine.deliver(1, bytes(gui_channel.max_clipboard(7) + 1), 0.1)
    assert isinstance(told, Tell)


def check(commands: list[Command], cause: Message | Event | None) -> None:
    """What no command may be, whatever led to it."""
    for command in commands:
        if isinstance(command, Paint):
            assert all(Rect(0, 0, 16384, 6144).contains(rect) for rect in command.rects)
        elif isinstance(command, SetPicture) and command.picture is not None:
            picture = command.picture
            assert picture.offset + 4 * picture.width * picture.height <= MEMORY
        elif isinstance(command, Activate):
            assert isinstance(cause, ButtonChanged)


def check_popups(machine: Machine, screen: Screen) -> None:
    popups = [window for window in screen.windows.values() if window.style is Style.POPUP]
    assert machine.has_focus or not popups
    for popup in popups:
        outer = POPUP_FRAME.around(popup.place)
        assert any(area.contains(outer) for area in screen.desk.areas)
        assert not any(outer.overlaps(rect) for rect in screen.desk.protected)


def is_about_nothing(message: Message, alive: set[int]) -> bool:
    """Whether it speaks of a window that does not exist, which would end it all; else note what exists after it."""
    if isinstance(message, gui.ClipboardData):
        return False
    if (message.window in alive) is isinstance(message, gui.Create):
        return True
    alive.add(message.window)
    if isinstance(message, gui.Destroy):
        alive.discard(message.window)
    return False


@settings(max_examples=300)
@given(st.lists(MESSAGES | EVENTS | st.none(), max_size=40))
def test_any_order_keeps_the_rules(steps: list[Message | Event | None]) -> None:
    """MC-35 to MC-38, MC-41 to MC-46: the screen obeys, and finds nothing to object to (``None``: settle)."""
    machine, screen = Machine(SETTINGS, DESK, memory_size=MEMORY), Screen(SETTINGS, DESK)
    now = 0.0
    alive: set[int] = set()
    for step in [*steps, None]:
        now += 0.01
        if isinstance(step, Message):
            if is_about_nothing(step, alive):
                continue
            try:
                commands = machine.receive(step, now)
            except RemoteProtocolError:
                screen.obey(machine.clear())
                assert screen.windows == {}
                return
        elif step is None:
            commands = machine.settle(now)
        else:
            screen.desk = step.desk if isinstance(step, DeskChanged) else screen.desk
            commands = machine.happened(step, now)
        screen.obey(commands)
        check(commands, step)
        if step is None:
            check_popups(machine, screen)


MONITORS = (Monitor(Rect(0, 0, 1280, 800), 300, 190), Monitor(Rect(1280, 0, 800, 600)))


def test_guest_is_told_of_the_screens_at_first_and_when_they_change() -> None:
    """MC-46."""
    desk = replace(DESK, monitors=MONITORS, dpi=144)
    machine = Machine(SETTINGS, desk, memory_size=0)
    rows = ((0, 0, 1280, 800, 300, 190), (1280, 0, 800, 600, 0, 0))
    assert machine.greet() == [Send(gui.Screens(0, 144, rows))]
    assert machine.happened(DeskChanged(replace(desk, protected=(Rect(0, 0, 5, 5),))), 0.0) == []
    one = replace(desk, monitors=MONITORS[:1])
    assert machine.happened(DeskChanged(one), 0.0) == [Send(gui.Screens(0, 144, rows[:1]))]
    assert machine.happened(DeskChanged(replace(one, dpi=9999)), 0.0) == [Send(gui.Screens(0, 480, rows[:1]))]


def test_screens_that_no_message_can_name_are_left_out() -> None:
    odd = (Monitor(Rect(-1280, 0, 1280, 800)), Monitor(Rect(0, 0, 0, 0)), Monitor(Rect(16000, 0, 1280, 800)))
    machine = Machine(SETTINGS, replace(DESK, monitors=odd), memory_size=0)
    assert machine.greet() == []
    machine = Machine(SETTINGS, replace(DESK, monitors=(*odd, *MONITORS * 20)), memory_size=0)
    [sent] = machine.greet()
    assert isinstance(sent, Send)
    gui_wire.encode(sent.message)


def test_guests_keyboard_is_the_desktops_and_what_switches_layouts_stays_here() -> None:
    machine = Machine(SETTINGS, DESK, memory_size=0)
    assert machine.greet() == []
    layout = Layout("us,de", ",neo", "grp:alt_shift_toggle,ctrl:nocaps")
    expected = Send(gui.Keyboard(0, b"us,de", b",neo", b"ctrl:nocaps"))
    assert machine.happened(LayoutChanged(layout), 0.0) == [expected]
    assert machine.happened(LayoutChanged(layout), 0.0) == []
    assert machine.happened(LayoutChanged(Layout("x" * 64)), 0.0) == []


def test_keyboard_somebody_set_stays_whatever_the_desktop_has() -> None:
    machine = Machine(replace(SETTINGS, keyboard="fr+oss+"), DESK, memory_size=0)
    assert machine.greet() == [Send(gui.Keyboard(0, b"fr", b"oss", b""))]
    assert machine.happened(LayoutChanged(Layout("de")), 0.0) == []
