"""Invariant: a window machine behind the host's end of a channel, given any bytes of a guest and any events of the
desktop between them, raises RemoteProtocolError at most; what it commands makes sense (``insula.testing.gui_screen``
objects otherwise), every message it sends fits the wire, and all windows are gone at the end (MC-35, MC-38, MC-41,
MC-42). The shortcuts it takes where only pixels have changed, or an event is only passed on, command the same as the
long ways.
"""

from __future__ import annotations

import harness

from insula.gui import machine as machine_module
from insula.gui.desktop import (
    PASSED_ON,
    ButtonChanged,
    Command,
    DeskChanged,
    Event,
    Exposed,
    FocusGained,
    FocusLost,
    KeyChanged,
    Moved,
    Obscured,
    PointerCrossed,
    PointerMoved,
)
from insula.gui.geometry import Desk, Rect
from insula.gui.machine import Machine
from insula.gui.settings import CONTROL, SHIFT, Settings
from insula.testing.gui_screen import Screen
from insula_proto import gui, gui_wire
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui_channel import AgentEnd, Hello, HostEnd

SETTINGS = Settings("work", 0x3465A4)
DESK = Desk((Rect(0, 20, 1280, 780),), (Rect(400, 300, 300, 100),))
MEMORY = 1 << 20


def wire(*messages: gui.Message) -> bytes:
    return b"".join(map(gui_wire.encode, messages))


WINDOW = wire(gui.Create(1, 10, 50, 300, 200), gui.Map(1), gui.FramePicture(1, 300, 200, 0), gui.Damage(1, 0, 0, 9, 9))
MENU = wire(gui.Create(2, 450, 310, 80, 90, 0, True), gui.Map(2, 1, True), gui.FramePicture(2, 80, 90, 4096))
SEEDS = [
    WINDOW + wire(gui.Title(1, b"title"), gui.Unmap(1), gui.Destroy(1)),
    WINDOW + MENU + wire(gui.Configure(2, -50, 310, 80, 90), gui.Configure(2, 0, 0, 1280, 800)),
    WINDOW + wire(gui.WindowFlags(1, 1, 0), gui.WindowHints(1, 368, 1, 1, 9, 9, 2, 2, 1, 1), gui.Cursor(1, 0x102)),
    WINDOW + wire(gui.Create(3, 0, 0, 9, 9), gui.Map(3, 1), gui.Unmap(1), gui.Map(1, 3), gui.Dock(3)),
    WINDOW + wire(gui.ClipboardData(1, b"text"), gui.WindowClass(1, b"a", b"b"), gui.Configure(1, 5, 5, 9, 9)),
]


def events(choice: int) -> list[Event]:
    window = 1 + choice // 16 % 3
    return [
        [FocusGained(window)],
        [FocusLost(window)],
        [Exposed(window)],
        [Obscured(window)],
        [Moved(window, Rect(choice * 7 - 900, choice * 5 - 600, choice, choice))],
        [KeyChanged(window, True, choice, "c" if choice & 1 else "v", CONTROL | SHIFT, 0, 0, bool(choice & 2), choice)],
        [KeyChanged(window, press, choice, "", 0, 0, 0, False, 0) for press in (True, False)],
        [ButtonChanged(window, bool(choice & 1), choice % 9, 0, 0, 0)],
        [DeskChanged(Desk(()))],
        [DeskChanged(DESK)],
        [PointerMoved(window, 0, choice, choice)],
        [PointerCrossed(window, bool(choice & 1), 0, choice, choice)],
    ][choice % 12]  # fmt: skip


class LongWay:
    """A machine that takes no shortcut."""

    def __init__(self) -> None:
        self._machine = Machine(SETTINGS, DESK, memory_size=MEMORY)

    def receive(self, message: gui.Message, now: float) -> list[Command]:
        return list(self._machine.receive(message, now))

    def happened(self, event: Event, now: float) -> list[Command]:
        machine_module.PASSED_ON = ()  # type: ignore[assignment]
        try:
            return list(self._machine.happened(event, now))
        finally:
            machine_module.PASSED_ON = PASSED_ON

    def settle(self, now: float) -> list[Command]:
        self._machine._windows._is_settled = False
        return list(self._machine.settle(now))


def fuzz_one(data: bytes) -> None:
    end = HostEnd(uses_frames=True)
    end.receive(AgentEnd(uses_frames=True).hello())
    machine, screen = Machine(SETTINGS, DESK, memory_size=MEMORY), Screen(SETTINGS, DESK)
    long_way = LongWay()
    now = 0.0
    try:
        for piece in harness.pieces(data):
            now += 0.01
            for message in end.receive(piece):
                assert not isinstance(message, Hello)
                commands = machine.receive(message, now)
                assert list(commands) == long_way.receive(message, now)
                screen.obey(commands)
            for event in events(piece[-1]):
                commands = machine.happened(event, now)
                assert list(commands) == long_way.happened(event, now)
                screen.obey(commands)
            commands = machine.settle(now)
            assert list(commands) == long_way.settle(now)
            screen.obey(commands)
    except RemoteProtocolError:
        pass
    screen.obey(machine.clear())
    assert not screen.windows


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
