"""A guest that does what a test says: the agent's end of a GUI channel, frame memory, and the real process showing it.

::

    with desktop() as screen, scripted_guest(screen, "work", 0x3465A4) as guest:
        guest.window(1, Rect(100, 100, 400, 300), 0x30C040)
        window = screen.window(r"\\[work\\]")
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import xcffib

import insula_proto
from insula.gui.control import Configure
from insula.gui.geometry import Rect
from insula.hal import frames
from insula.testing.desktop import WAIT_S, Desktop, desktop
from insula_proto import gui, gui_wire
from insula_proto.gui import Message
from insula_proto.gui_channel import AgentEnd, Hello

MEMORY = 32 << 20
_PAGE = 4096

M = TypeVar("M", bound=Message)


class Host:
    """The daemon's part for some qubes (:mod:`insula.testing.gui_host`), and what it said."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path, screen: Desktop) -> None:
        self.process = process
        self._said = said
        screen.wait(lambda: "\n" in self.said() or process.poll() is not None, "the host says nothing")
        if process.poll() is not None:
            raise RuntimeError("the processes that show windows did not start")

    def said(self) -> str:
        return self._said.read_text()

    @property
    def pids(self) -> list[int]:
        """Of the processes that show windows, in the order of their qubes."""
        return [int(word) for word in self.said().partition("\n")[0].split()]


class ScriptedGuest:
    def __init__(
        self, screen: Desktop, channel: socket.socket, memory: mmap.mmap, process: subprocess.Popen[bytes], pid: int
    ):
        self._screen = screen
        self._channel = channel
        self._memory = memory
        self._end = AgentEnd(uses_frames=True)
        self._used = 0
        self._pictures: dict[int, tuple[int, int, int]] = {}
        self.process = process
        self.pid = pid
        """Of the process that shows its windows."""
        self.heard: list[Message | Hello] = []

    def greet(self) -> None:
        self._channel.sendall(self._end.hello())
        self.wait(lambda: bool(self.heard))

    def say(self, *messages: Message) -> None:
        self._channel.sendall(self._end.send_all(messages))

    def say_raw(self, data: bytes) -> None:
        self._channel.sendall(data)

    def listen(self) -> list[Message | Hello]:
        """All the host has said so far."""
        with contextlib.suppress(BlockingIOError):
            while data := self._channel.recv(65536, socket.MSG_DONTWAIT):
                self.heard += self._end.receive(data)
        return self.heard

    def wait(self, is_so: Callable[[], bool], otherwise: str = "the host did not say it") -> None:
        """Listen until something is so. :raise TimeoutError:"""
        self._screen.wait(lambda: bool(self.listen()) and is_so(), otherwise)

    def wait_for(self, message: Message) -> None:
        """Listen until the host has said that, and forget all up to it. :raise TimeoutError:"""
        self.wait(lambda: message in self.heard, f"not heard: {message}")
        del self.heard[: self.heard.index(message) + 1]

    def of(self, *kinds: type[M]) -> list[M]:
        """What was said of these kinds so far."""
        return [message for message in self.listen() if isinstance(message, kinds)]

    # --- windows -------------------------------------------------------------------------------------------------

    def window(self, number: int, place: Rect, colour: int, *, popup: bool = False, parent: int = 0) -> None:
        """A mapped window all of one colour, painted."""
        self.say(
            gui.Create(number, place.x, place.y, place.width, place.height, 0, popup),
            gui.WindowHints(number, gui.HINT_USER_POSITION),
            gui.Map(number, parent, popup),
        )
        self.picture(number, place.width, place.height, colour)

    def picture(self, number: int, width: int, height: int, colour: int) -> None:
        """A new picture, of one colour, and the word that all of it has changed."""
        self._pictures[number] = (self._used, width, height)
        self._used += -(-gui_wire.picture_size(width, height) // _PAGE) * _PAGE
        self.fill(number, colour)
        self.say(
            gui.FramePicture(number, width, height, self._pictures[number][0]), gui.Damage(number, 0, 0, width, height)
        )

    def fill(self, number: int, colour: int) -> None:
        """Change all pixels of its picture, and tell nobody."""
        offset, width, height = self._pictures[number]
        self._memory[offset : offset + 4 * width * height] = colour.to_bytes(4, "little") * (width * height)

    def put(self, number: int, rect: Rect, colour: int) -> None:
        """Change some pixels, and tell nobody."""
        offset, width, _ = self._pictures[number]
        for row in range(rect.y, rect.bottom):
            start = offset + 4 * (row * width + rect.x)
            self._memory[start : start + 4 * rect.width] = colour.to_bytes(4, "little") * rect.width

    def hang_up(self) -> int:
        """Close the channel; return the exit code of the host's process."""
        self._channel.close()
        return self.process.wait(WAIT_S)


Qube = tuple[str, int] | Configure
"""Its name and colour, or all that is told to the process that shows its windows."""


@contextlib.contextmanager
def emulated_screen(screen: Desktop, qube: Qube, channel: socket.socket) -> Iterator[Host]:
    """The host's side of a machine without agent; ``channel`` leads to its screen, and stays the caller's."""
    configure = qube if isinstance(qube, Configure) else Configure(*qube)
    configure = msgspec.structs.replace(configure, is_emulated=True)
    with _running_host(screen, "allow", [(configure, channel.fileno(), frames.make(MEMORY))]) as host:
        yield host


@contextlib.contextmanager
def _running_host(screen: Desktop, policy: str, qubes: Sequence[tuple[Configure, int, int]]) -> Iterator[Host]:
    """The daemon's part as a process; takes over the frame memories, not the channels."""
    with contextlib.ExitStack() as stack:
        words = []
        for configure, channel, memory in qubes:
            words += [msgspec.json.encode(configure).decode(), str(channel), str(memory)]
        said = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="insula-host-"))) / "said"
        try:
            with said.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "insula.testing.gui_host", policy, *words],
                    env=screen.environment,
                    pass_fds=[number for _, *numbers in qubes for number in numbers],
                    stdout=out,
                )
        finally:
            for _, _, memory in qubes:
                os.close(memory)
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Host(process, said, screen)


class Line(NamedTuple):
    """A qube's end: its channel and its frame memory."""

    channel: socket.socket
    memory: int


@contextlib.contextmanager
def shown_by_host(screen: Desktop, qubes: Sequence[Qube], policy: str = "allow") -> Iterator[tuple[Host, list[Line]]]:
    """The host's side of these qubes."""
    with contextlib.ExitStack() as stack:
        lines, started = [], []
        for qube in qubes:
            memory = frames.make(MEMORY)
            stack.callback(os.close, memory)
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            lines.append(Line(ours, memory))
            configure = qube if isinstance(qube, Configure) else Configure(*qube)
            started.append((configure, theirs.detach(), os.dup(memory)))
        try:
            host = stack.enter_context(_running_host(screen, policy, started))
        finally:
            for _, channel, _ in started:
                os.close(channel)
        yield host, lines


@contextlib.contextmanager
def scripted_guests(screen: Desktop, *qubes: Qube, policy: str = "allow") -> Iterator[tuple[Host, list[ScriptedGuest]]]:
    """These qubes under one daemon, greeted."""
    with shown_by_host(screen, qubes, policy) as (host, lines), contextlib.ExitStack() as stack:
        guests = []
        for line, pid in zip(lines, host.pids, strict=True):
            memory = stack.enter_context(mmap.mmap(line.memory, MEMORY))
            guests.append(ScriptedGuest(screen, line.channel, memory, host.process, pid))
        for guest in guests:
            guest.greet()
        yield host, guests


@contextlib.contextmanager
def scripted_guest(screen: Desktop, qube: str, colour: int) -> Iterator[ScriptedGuest]:
    """A qube of that name and colour, greeted; its process ends with the block."""
    with scripted_guests(screen, (qube, colour)) as (_, [guest]):
        yield guest


AGENT = (
    "import sys; sys.path[:0] = sys.argv[1].split(':'); "
    "from insula_agent.gui.main import main; sys.exit(main(sys.argv[2:]))"
)
"""As in a guest: without ``site``; with the folders of the agent and of xcffib."""


class RealGuest:
    """A qube that is an X server, the real agent and programs, without a machine around them."""

    def __init__(self, inside: Desktop, host: Host, agent: subprocess.Popen[bytes]) -> None:
        self.inside = inside
        self.host = host
        self.agent = agent


@contextlib.contextmanager
def real_guest(screen: Desktop, qube: str, colour: int, *, width: int = 1000, height: int = 700) -> Iterator[RealGuest]:
    """A qube whose windows the host shows on ``screen``."""
    with (
        shown_by_host(screen, [(qube, colour)]) as (host, [line]),
        real_agent(line, host, width=width, height=height) as guest,
    ):
        yield guest


@contextlib.contextmanager
def real_agent(line: Line, host: Host, *, width: int = 1000, height: int = 700) -> Iterator[RealGuest]:
    """An X server and the agent at a qube's end."""
    with desktop(width, height, window_manager=None) as inside, agent_of(inside, line, host) as guest:
        yield guest


@contextlib.contextmanager
def agent_of(inside: Desktop, line: Line, host: Host) -> Iterator[RealGuest]:
    """The agent at a qube's end, for an X server that is there."""
    folders = dict.fromkeys(str(Path(module.__file__ or "").parents[1]) for module in (insula_proto, xcffib))
    channel = line.channel.fileno()
    agent = subprocess.Popen(
        [
            *(sys.executable, "-S", "-E", "-c", AGENT, ":".join(folders)),
            *("--channel", f"fd:{channel}", "--frames", f"fd:{line.memory}", "--display", inside.display),
        ],
        pass_fds=(channel, line.memory),
    )
    line.channel.close()
    try:
        yield RealGuest(inside, host, agent)
    finally:
        agent.kill()
        agent.wait()


@contextlib.contextmanager
def program(guest: RealGuest, source: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in the guest; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        env=guest.inside.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
