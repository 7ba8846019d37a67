from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from insula.gui.desktop import (
    Command,
    Event,
    Exposed,
    FocusGained,
    KeyChanged,
    OfferCopy,
    PointerMoved,
    Show,
    StartCopy,
    Style,
)
from insula.gui.geometry import POPUP_FRAME, Desk, Rect
from insula.gui.session import MAX_QUEUED, MESSAGES_PER_FRAME, AgentsEnd, End, Session
from insula.gui.settings import CONTROL, SHIFT, Settings
from insula.testing.gui_screen import FakeBackend
from insula_proto import gui
from insula_proto.gui import Message
from insula_proto.gui_channel import AgentEnd, Hello
from insula_proto.gui_channel import Screen as ScreenSize

SETTINGS = Settings("work", 0x3465A4)
DESK = Desk((Rect(0, 30, 1280, 770),), frame_s=0.01)
MEMORY = 1 << 20
WINDOW = [gui.Create(1, 10, 60, 100, 80), gui.Map(1), gui.FramePicture(1, 100, 80, 0)]
TIMEOUT = 120.0


class Bench:
    """A session with a guest at its other end, and an owner who writes down what is said."""

    def __init__(self, backend: FakeBackend | None = None, end: End | None = None) -> None:
        ours, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.backend = backend or FakeBackend(SETTINGS, DESK)
        self.told: list[Command] = []
        self.reason: str | None = None
        self.greetings = 0
        self.agent = AgentEnd(uses_frames=True)
        self.heard: list[Message | Hello] = []
        self.session = Session(ours, SETTINGS, MEMORY, self.backend, self, asyncio.get_running_loop(), end)

    def commanded(self, command: Command) -> None:
        self.told.append(command)

    def greeted(self) -> None:
        self.greetings += 1

    def ended(self, reason: str) -> None:
        self.reason = reason

    async def write(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.get_running_loop().sock_sendall(self.guest, data)

    async def say(self, *messages: Message) -> None:
        await self.write(self.agent.send_all(messages))

    async def hear(self, is_there: Callable[[], bool]) -> None:
        """Read what the host says until something is so."""
        async with asyncio.timeout(TIMEOUT):
            while not is_there():
                self.heard += self.agent.receive(await asyncio.get_running_loop().sock_recv(self.guest, 65536))

    async def until(self, is_there: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not is_there():
                await asyncio.sleep(0.001)

    async def greet(self) -> None:
        await self.write(self.agent.hello())
        await self.hear(lambda: bool(self.heard))

    async def show(self) -> None:
        await self.say(*WINDOW)
        await self.until(lambda: 1 in self.backend.screen.windows)

    def happened(self, *events: Event) -> None:
        for event in events:
            self.session.happened(event)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.session.close()
    made.guest.close()


async def test_guest_is_told_the_size_of_all_screens_and_its_window_is_shown(bench: Bench) -> None:
    await bench.greet()
    assert bench.heard == [Hello(8, ScreenSize(1280, 800))]
    await bench.show()
    await bench.hear(lambda: gui.DumpAcknowledged(1) in bench.heard)
    bench.happened(Exposed(1))
    await bench.say(gui.Damage(1, 0, 0, 10, 10))
    await bench.hear(lambda: gui.Painted(1) in bench.heard)


async def test_half_a_message_and_silence_leaves_the_windows_as_they_are_and_input_flows(bench: Bench) -> None:
    """MC-13: nothing waits for the rest."""
    await bench.greet()
    await bench.show()
    await bench.write(struct.pack("<III", gui.Title.kind, 1, 128) + b"half")
    bench.happened(Exposed(1), FocusGained(1), KeyChanged(1, True, 38, "a", 0, 1, 2, False, 5))
    await bench.hear(lambda: gui.Key(1, True, 1, 2, 0, 38) in bench.heard)
    assert bench.reason is None


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<III", 999, 1, 0),
        struct.pack("<III", gui.Destroy.kind, 77, 0),
        struct.pack("<III", gui.Map.kind, 1, 0xFFFFFFFF),
    ],
)
async def test_broken_protocol_takes_all_its_windows_and_ends_with_a_reason(bench: Bench, data: bytes) -> None:
    """MC-12, MC-41."""
    await bench.greet()
    await bench.show()
    await bench.write(data)
    await bench.until(lambda: bench.reason is not None)
    assert bench.backend.screen.windows == {}
    bench.happened(Exposed(1), FocusGained(1))
    bench.session.deliver(1, b"text")


async def test_guest_that_goes_takes_its_windows_with_it(bench: Bench) -> None:
    await bench.greet()
    await bench.show()
    bench.guest.close()
    await bench.until(lambda: bench.reason is not None)
    assert bench.backend.screen.windows == {}


async def test_guest_that_never_reads_is_given_up_at_a_bound_motion_left_out_long_before(bench: Bench) -> None:
    """MC-14."""
    await bench.greet()
    await bench.show()
    bench.happened(FocusGained(1))
    for n in range(100_000):
        bench.happened(PointerMoved(1, 0, n % 100, 5))
    assert bench.reason is None
    assert len(bench.session._queued) < MAX_QUEUED // 4
    for n in range(100_000):
        bench.happened(KeyChanged(1, n % 2 == 0, 38, "a", 0, 1, 2, False, n))
        if bench.reason is not None:
            break
    assert bench.reason == "the guest does not read"
    assert bench.backend.screen.windows == {}


async def test_pasted_image_is_beside_the_bound_of_what_a_guest_leaves_unread(bench: Bench) -> None:
    """MC-14: and only while it is on its way."""
    await bench.greet()
    await bench.show()
    bench.happened(FocusGained(1))
    image = gui.ClipboardImage(1, 1024, 1024, bytes(4 << 20))
    bench.session._send(image)
    assert len(bench.session._queued) > MAX_QUEUED
    await bench.hear(lambda: image in bench.heard)
    assert bench.session._queued == b""
    for n in range(100_000):
        bench.happened(KeyChanged(1, n % 2 == 0, 38, "a", 0, 1, 2, False, n))
        if bench.reason is not None:
            break
    assert bench.reason == "the guest does not read"


async def test_flood_is_read_at_the_screens_pace(bench: Bench) -> None:
    """MC-43: between two pictures of the screen the loop is free for others."""
    await bench.greet()
    await bench.show()
    flood = bench.agent.send(gui.Title(1, b"x")) * MESSAGES_PER_FRAME * 20
    writing = asyncio.create_task(bench.write(flood))
    loop = asyncio.get_running_loop()
    start = loop.time()
    await writing
    # Twenty budgets take nineteen pauses, less what lies in the socket's buffers.
    assert loop.time() - start > 5 * DESK.frame_s
    await bench.say(gui.Title(1, b"the end"))
    await bench.until(lambda: bench.backend.screen.windows[1].title == "the end")


async def test_clipboard_goes_to_the_owner_and_not_to_the_desktop(bench: Bench) -> None:
    """MC-51."""
    await bench.greet()
    await bench.show()
    await bench.say(gui.ClipboardData(0, b"unasked"), gui.Title(1, b"read"))
    await bench.until(lambda: bench.backend.screen.windows[1].title == "read")
    bench.happened(FocusGained(1), KeyChanged(1, True, 54, "c", CONTROL | SHIFT, 0, 0, False, 5))
    assert bench.told == [StartCopy(1, 5)]
    await bench.hear(lambda: gui.ClipboardRequest(1) in bench.heard)
    await bench.say(gui.ClipboardData(0, b"text"))
    await bench.until(lambda: len(bench.told) > 1)
    assert bench.told[1:] == [OfferCopy(1, b"text")]
    bench.happened(KeyChanged(1, True, 55, "v", CONTROL | SHIFT, 0, 0, False, 6))
    bench.session.deliver(2, b"pasted")
    await bench.hear(lambda: gui.ClipboardData(1, b"pasted") in bench.heard)


class AnsweringEnd(AgentsEnd):
    """Answers for the guest, as that of a screen without agent does."""

    def __init__(self) -> None:
        super().__init__(uses_frames=True)
        self._said: list[Message] = []

    def send(self, message: Message) -> bytes:
        if isinstance(message, gui.ClipboardRequest):
            self._said.append(gui.ClipboardData(0, b"text"))
        return super().send(message)

    def echo(self) -> list[Message]:
        said, self._said = self._said, []
        return said


async def test_what_is_answered_to_a_key_without_the_guest_is_heard_at_once() -> None:
    """Though nothing is shown differently after a key."""
    bench = Bench(end=AnsweringEnd())
    await bench.greet()
    await bench.show()
    bench.happened(FocusGained(1), KeyChanged(1, True, 54, "c", CONTROL | SHIFT, 0, 0, False, 5))
    assert bench.told == [StartCopy(1, 5), OfferCopy(1, b"text")]
    bench.session.close()
    bench.guest.close()


class EagerBackend(FakeBackend):
    """Tells of things while it is still carrying out the command that caused them, as toolkits do."""

    session: Session

    def obey(self, command: Command) -> None:
        super().obey(command)
        if isinstance(command, Show):
            self.session.happened(Exposed(command.window))
            self.session.happened(FocusGained(command.window))


async def test_events_in_the_middle_of_a_command_come_after_it() -> None:
    backend = EagerBackend(SETTINGS, DESK)
    bench = Bench(backend)
    backend.session = bench.session
    try:
        await bench.greet()
        await bench.say(*WINDOW)
        await bench.hear(lambda: gui.Focus(1, True) in bench.heard)
        assert bench.session.has_focus
        kinds = [type(command).__name__ for command in backend.commands]
        assert kinds == ["Show", "SetPicture", "Paint"]
    finally:
        bench.session.close()
        bench.guest.close()


class CrowdedBackend(FakeBackend):
    """A desktop on which others' windows come and go."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, DESK)
        self.protected: tuple[Rect, ...] = ()
        self.looks = 0

    def look(self) -> Desk:
        self.looks += 1
        return replace(self.screen.desk, protected=self.protected)


async def test_popups_are_placed_by_what_lies_there_now_and_watched_while_they_are_shown() -> None:
    """MC-38."""
    backend = CrowdedBackend()
    bench = Bench(backend)
    await bench.greet()
    await bench.show()
    bench.happened(FocusGained(1))
    backend.protected = (Rect(0, 100, 1280, 20),)
    await bench.say(gui.Create(2, 50, 90, 40, 40, 0, True), gui.Map(2, 1, True))
    await bench.until(lambda: 2 in backend.screen.windows)
    first = backend.screen.windows[2].place
    assert not POPUP_FRAME.around(first).overlaps(backend.protected[0])
    backend.protected = (*backend.protected, first)
    await bench.until(lambda: backend.screen.windows[2].place != first)
    bench.session.close()
    bench.guest.close()


async def test_flood_of_popups_looks_once_for_each_picture_of_the_screen() -> None:
    """MC-43: looking around is work for the display server."""
    backend = CrowdedBackend()
    backend.screen.desk = replace(DESK, frame_s=1000.0)
    bench = Bench(backend)
    await bench.greet()
    await bench.show()
    bench.happened(FocusGained(1))
    before = backend.looks
    await bench.say(*[gui.Create(n, 50, 90, 40, 40, 0, True) for n in range(2, 60)])
    await bench.say(*[gui.Map(n, 1, True) for n in range(2, 60)])
    await bench.say(gui.Title(1, b"the last"))
    await bench.until(lambda: any(window.style is Style.POPUP for window in backend.screen.windows.values()))
    assert backend.looks <= before + 1
    bench.session.close()
    bench.guest.close()
