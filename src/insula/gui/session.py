"""One qube's windows at work: bytes of the guest to its machine, what the machine commands to the back end.

It never waits for the guest: half a message stays in the decoder; what the guest does not read is queued up to a
bound, and motion is left out before that. A guest that floods is read no faster than :data:`MESSAGES_PER_FRAME` for
each picture of the screen, so the rest waits in the guest (MC-43).

The loop is asyncio's, or the back end's own with the same few methods.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from insula.gui.desktop import ABOUT_A_WINDOW, PASSED_ON, Command, DeskChanged, Event, Send
from insula.gui.geometry import Desk
from insula.gui.machine import Machine
from insula.gui.settings import Settings
from insula.gui.window import NEVER
from insula_proto import gui
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.gui_channel import Hello, HostEnd, Screen

READ_SIZE = 65536
MESSAGES_PER_FRAME = 500
"""A busy program sends a few dozen; a flood of this many costs some two milliseconds."""
MAX_QUEUED = 1 << 20
"""Bytes a guest may leave unread: the longest text, and a minute of keys; and an image that is pasted. One that leaves
more is not there."""
MOTION_STOPS = 65536
"""Bytes unread above which the pointer's way is left out; where it is comes with the next click."""


POPUPS_WATCHED_S = 0.25
"""Seconds after which it is looked again whether a popup covers what it may not: others' windows move too."""


class Handle(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The part of asyncio's loops that is used."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Handle: ...

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def add_writer(self, fd: int, callback: Callable[[], object], /) -> object: ...

    def remove_writer(self, fd: int, /) -> object: ...


class Backend(Protocol):
    """What shows windows. It tells its events to :meth:`Session.happened`, when it has carried out a command."""

    @property
    def desk(self) -> Desk: ...

    def look(self) -> Desk:
        """The desk, with what popups may not cover on it at this moment."""

    def obey(self, command: Command) -> None:
        """Carry out a command about a window, now. All it needs was checked by the machine."""


class End(Protocol):
    """What speaks with the guest: for an agent :class:`AgentsEnd`."""

    @property
    def minor(self) -> int | None: ...

    def receive(self, untrusted_data: bytes, /) -> Sequence[Hello | gui.Message]:
        """:raise RemoteProtocolError:"""

    def answer(self, screen: Screen, /) -> bytes: ...

    def may_send(self, cls: type[gui.Message], /) -> bool: ...

    def send(self, message: gui.Message, /) -> bytes: ...

    def pending(self) -> bytes:
        """What is to be said because of what was received."""

    def echo(self) -> Sequence[gui.Message]:
        """What is as if it had been received, because of what was sent."""


class AgentsEnd(HostEnd):
    """An agent speaks for itself."""

    def pending(self) -> bytes:
        return b""

    def echo(self) -> Sequence[gui.Message]:
        return ()


class Owner(Protocol):
    """Who started the session."""

    def commanded(self, command: Command) -> None:
        """A command that is not about a window: the clipboard's, and what the user is to be told."""

    def greeted(self) -> None:
        """The guest's agent has said its first words."""

    def ended(self, reason: str) -> None:
        """The guest is gone, or broke the protocol; nothing of it is on the desktop any more."""


class Session:
    """One connection of a guest's agent."""

    def __init__(
        self,
        channel: socket.socket,
        settings: Settings,
        memory_size: int,
        backend: Backend,
        owner: Owner,
        loop: Loop,
        end: End | None = None,
    ) -> None:
        """Takes over ``channel``. ``end``: other than an agent's."""
        channel.setblocking(False)
        self._channel = channel
        self._settings = settings
        self._memory_size = memory_size
        self._backend = backend
        self._owner = owner
        self._loop = loop
        self._end = end or AgentsEnd(uses_frames=True)
        self._machine: Machine | None = None
        self._queued = bytearray()
        self._bound = MAX_QUEUED
        """Of what is queued now."""
        self._waits_for_room = False
        self._messages_left = MESSAGES_PER_FRAME
        self._pause: Handle | None = None
        self._wake: Handle | None = None
        self._is_over = False
        self._is_obeying = False
        self._looked_at = NEVER
        self._expects_since = NEVER
        """(The first window may be long in coming: its agent starts with it.)"""
        self._late: deque[Event] = deque()
        """What happened while commands were carried out; a back end may tell of it at once."""
        loop.add_reader(channel.fileno(), self._readable)

    def close(self) -> None:
        """Take everything from the desktop and let go of the guest; idempotent."""
        self._finish(None)

    def _finish(self, reason: str | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        for handle in (self._pause, self._wake):
            if handle is not None:
                handle.cancel()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        if self._machine is not None:
            for command in self._machine.clear():
                self._backend.obey(command)
        if reason is not None:
            self._owner.ended(reason)

    # --- from the guest ------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            untrusted_data = self._channel.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(str(error))
            return
        if not untrusted_data:
            self._finish("the guest closed the channel")
            return
        try:
            for message in self._end.receive(untrusted_data):
                if isinstance(message, Hello):
                    self._open()
                else:
                    self._take(message)
            self._queue(self._end.pending())
        except RemoteProtocolError as error:
            self._finish(str(error))
            return
        self._settle()

    def _open(self) -> None:
        assert self._end.minor is not None
        desk = self._backend.look()
        areas = [monitor.place for monitor in desk.monitors] or desk.usable
        width = max((area.right for area in areas), default=1)
        height = max((area.bottom for area in areas), default=1)
        self._machine = Machine(self._settings, desk, memory_size=self._memory_size, minor=self._end.minor)
        self._machine.expect(self._expects_since)
        self._queue(self._end.answer(Screen(max(1, width), max(1, height))))
        self._obey(self._machine.greet())
        self._owner.greeted()

    def _take(self, message: gui.Message) -> None:
        assert self._machine is not None
        if self._machine.depends_on_others(message):
            self._look()
        self._obey(self._machine.receive(message, self._loop.time()))
        self._messages_left -= 1
        if self._messages_left <= 0 and self._pause is None and not self._is_over:
            self._loop.remove_reader(self._channel.fileno())
            self._pause = self._loop.call_later(self._backend.desk.frame_s, self._resume)

    def _look(self) -> None:
        """See what lies where now; once for each picture of the screen, whatever the guest does."""
        assert self._machine is not None
        now = self._loop.time()
        if now >= self._looked_at + self._backend.desk.frame_s:
            self._looked_at = now
            self._obey(self._machine.happened(DeskChanged(self._backend.look()), now))

    def _resume(self) -> None:
        self._pause = None
        self._messages_left = MESSAGES_PER_FRAME
        self._loop.add_reader(self._channel.fileno(), self._readable)

    # --- from the desktop and the owner --------------------------------------------------------------------------

    def happened(self, event: Event) -> None:
        """Take an event of the desktop."""
        if isinstance(event, PASSED_ON) and not self._is_obeying:
            self._pass_on(event)
            return
        self._late.append(event)
        if not self._is_obeying:
            self._take_late()
            self._settle()

    def _pass_on(self, event: Event) -> None:
        """There is nothing to settle after it, if nothing was answered to it."""
        if self._machine is not None and not self._is_over:
            self._obey(self._machine.happened(event, self._loop.time()))
            if self._take_echo():
                self._settle()

    def expect(self) -> None:
        """The user has started a program in this qube."""
        self._expects_since = self._loop.time()
        if self._machine is not None:
            self._machine.expect(self._expects_since)

    def _take_late(self) -> None:
        while self._late:
            event = self._late.popleft()
            if self._machine is not None and not self._is_over:
                if self._machine.depends_on_others(event):
                    self._look()
                self._obey(self._machine.happened(event, self._loop.time()))

    def _take_echo(self) -> bool:
        """Return whether there was one."""
        if self._machine is None or self._is_over:
            return False
        echo = self._end.echo()
        for message in echo:
            self._obey(self._machine.receive(message, self._loop.time()))
        return bool(echo)

    def deliver(self, number: int, data: bytes, *, is_image: bool = False) -> None:
        """What may be pasted, as the answer to :class:`insula.gui.desktop.AskPaste`."""
        if self._machine is not None and not self._is_over:
            commands = self._machine.deliver(number, data, self._loop.time(), is_image=is_image)
            # (An agent from before images is told nothing it would not understand.)
            self._obey([each for each in commands if not self._is_unspoken(each)])

    def _is_unspoken(self, command: Command) -> bool:
        return isinstance(command, Send) and not self._end.may_send(type(command.message))

    @property
    def has_focus(self) -> bool:
        """Whether the user works in this qube."""
        return self._machine is not None and self._machine.has_focus

    # --- out -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._machine is None or self._is_over:
            return
        self._obey(self._machine.settle(self._loop.time()))
        while not self._is_over:
            has_late = bool(self._late)
            self._take_late()
            if not self._take_echo() and not has_late:
                break
            self._obey(self._machine.settle(self._loop.time()))
        wake_at = self._machine.wake_at
        if self._machine.has_popups:
            watch_at = self._loop.time() + POPUPS_WATCHED_S
            wake_at = watch_at if wake_at is None else min(wake_at, watch_at)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if wake_at is not None:
            self._wake = self._loop.call_later(max(0.0, wake_at - self._loop.time()), self._woken)

    def _woken(self) -> None:
        self._wake = None
        has_popups = self._machine is not None and self._machine.has_popups
        if has_popups and self._loop.time() >= self._looked_at + POPUPS_WATCHED_S:
            self._look()
        self._settle()

    def _obey(self, commands: list[Command]) -> None:
        was_obeying, self._is_obeying = self._is_obeying, True
        for command in commands:
            if isinstance(command, Send):
                self._send(command.message)
            elif isinstance(command, ABOUT_A_WINDOW):
                self._backend.obey(command)
            else:
                self._owner.commanded(command)
        self._is_obeying = was_obeying

    def _send(self, message: gui.Message) -> None:
        if isinstance(message, gui.Motion) and len(self._queued) > MOTION_STOPS:
            return
        if not self._end.may_send(type(message)):
            raise LocalProtocolError(f"{type(message).__name__} in version 1.{self._end.minor}")
        data = self._end.send(message)
        if isinstance(message, gui.ClipboardImage):
            self._bound = MAX_QUEUED + len(data)
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        if self._is_over:
            return
        self._queued += data
        if len(self._queued) > self._bound:
            self._finish("the guest does not read")
        elif not self._waits_for_room:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._queued:
                del self._queued[: self._channel.send(self._queued)]
            self._bound = MAX_QUEUED
        except BlockingIOError:
            if not self._waits_for_room:
                self._waits_for_room = True
                self._loop.add_writer(self._channel.fileno(), self._room)
        except OSError as error:
            self._finish(str(error))

    def _room(self) -> None:
        self._loop.remove_writer(self._channel.fileno())
        self._waits_for_room = False
        self._flush()
