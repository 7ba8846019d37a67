"""The daemon's part of windows: starts the process of each qube, and is the board that text goes over between them.

``async with GuiLauncher(judge, notify) as launch: gui = await launch(configure, channel, memory)``. A process that
breaks the protocol ends, and its windows with it; whoever started it decides whether there is another one. What is
copied is never read here: it is a sealed file, of which the size is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from insula.gui import clip_file, control
from insula.gui.clipboard import Board, BoardCommand, Deliver, Drop, Judge, Notice
from insula.gui.control import (
    Configure,
    CopyFailed,
    CopyOffered,
    CopyStarted,
    Ending,
    Focused,
    FromGui,
    Greeted,
    PasteAsked,
    Told,
)
from insula.gui.spare import Supply
from insula.gui.spawn import GUI_PROGRAM, view
from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.preload.last_words import LastWords
from insula.rpc.pacing import RateLimit
from insula_proto.errors import RemoteProtocolError

NOTICES_BURST = 10
NOTICES_PER_SECOND = 0.5
"""What one qube may have the user be told."""
KEYS_BURST = 30
KEYS_PER_SECOND = 5.0
"""Messages about copying and pasting that are listened to, of one qube: four or five for each key people press."""

IMAGE = "image"
"""Argument of the call that policy is asked about, if it is one."""
MayPaste = Callable[[str, str, str], Awaitable[bool]]
Notify = Callable[[str | None, str], None]

log = logging.getLogger("insula.gui")


class RunningGui:
    """A process that shows one qube's windows."""

    def __init__(
        self,
        name: str,
        process: ForkedProcess,
        daemon: socket.socket,
        words: LastWords,
        take: Callable[[str, FromGui, list[int]], None],
    ) -> None:
        """Takes over all of these; ``take`` may keep descriptors by taking them out of its list."""
        self.name = name
        self._process = process
        self._daemon = daemon
        self._words = words
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._reason = ""
        self._greeted = asyncio.Event()
        self._loop.add_reader(daemon, self._readable)
        self._ending = asyncio.create_task(self._wait(), name=f"gui {name}")

    @property
    def pid(self) -> int:
        """Process id on the host."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ending.done()

    async def wait_greeted(self) -> None:
        """Return once the qube's agent speaks with it; may never be."""
        await self._greeted.wait()

    async def wait_closed(self) -> str:
        """Return why it ended, once it has; may be awaited by many."""
        await asyncio.shield(self._ending)
        return self._reason

    async def close(self) -> None:
        """End it: its windows go; idempotent."""
        self._process.kill()
        await asyncio.shield(self._ending)

    def expect(self) -> None:
        """The user has started a program in this qube: its window may lie over the one they work in."""
        with suppress(OSError):
            self._daemon.send(control.encode(control.Expect()))

    def deliver(self, number: int, clip: int, *, is_image: bool = False) -> None:
        """Pass on what may be pasted; the descriptor stays the caller's. One that does not take it gets nothing."""
        with suppress(OSError):
            socket.send_fds(self._daemon, [control.encode(control.Deliver(number, is_image))], [clip])

    def _readable(self) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(self._daemon, control.MAX_MESSAGE, 1)
            if not data:
                self._loop.remove_reader(self._daemon)
                return
            message = control.decode_from_gui(data)
            if bool(descriptors) is not isinstance(message, control.WITH_DESCRIPTOR):
                raise RemoteProtocolError(f"{type(message).__name__} with {len(descriptors)} descriptors")  # noqa: TRY301
            if isinstance(message, Ending):
                self._reason = message.reason
            if isinstance(message, Greeted):
                self._greeted.set()
                return
            self._take(self.name, message, descriptors)
        except BlockingIOError:
            return
        except (RemoteProtocolError, ValueError, OSError) as error:
            self._reason = f"it broke the protocol: {error}"
            self._loop.remove_reader(self._daemon)
            self._process.kill()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _wait(self) -> None:
        code = await self._process.wait()
        await self._words.wait()
        self._loop.remove_reader(self._daemon)
        self._daemon.close()
        self._reason = self._reason or f"exit code {code}"
        if self._words.data:
            log.info("%s: gui said: %r", self.name, self._words.data.decode("ascii", "replace")[-2000:])


class GuiLauncher:
    """Owns the preloaded parent of all processes that show windows, those processes, and the board."""

    def __init__(self, judge: MayPaste, notify: Notify, environment: Mapping[str, str] = os.environ) -> None:
        """``judge(source, target, argument)``: whether it may go so; the argument is :data:`IMAGE` or empty.
        ``notify(qube, text)``: tell the user, in a corner;
        the qube is None where the host speaks for itself.
        ``environment``: names the desktop."""
        self._judge = judge
        self._notify = notify
        self._environment = environment
        self._parent = PreloadedParent([GUI_PROGRAM])
        self._supply = Supply(self._parent)
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, RunningGui] = {}
        self._limits: dict[str, RateLimit] = {}
        self._keys: dict[str, RateLimit] = {}
        self._clipboards: dict[str, int] = {}
        """Bytes that may be pasted into each qube."""
        self._board: Board[int] = Board()
        self._judging: set[asyncio.Task[None]] = set()
        self._expiry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything; idempotent. What was copied is gone."""
        for task in tuple(self._judging):
            task.cancel()
        for running in tuple(self._running.values()):
            await running.close()
        await self._supply.close()
        await self._parent.close()
        if self._board.holds is not None:
            self._carry_out(self._board.qube_gone(self._board.holds[0]))
        if self._expiry is not None:
            self._expiry.cancel()

    async def __call__(
        self,
        configure: Configure,
        channel: socket.socket,
        memory: int,
        environment: Mapping[str, str] | None = None,
    ) -> RunningGui:
        """Show the windows of a qube; ``channel`` and ``memory`` are passed on, and stay the caller's.

        ``environment`` names the desktop, if it is not that of the others.

        :raise OSError: no desktop, or the process could not be started.
        :raise ValueError: its windows are shown already.
        """
        if configure.qube in self._running:
            raise ValueError(f"the windows of {configure.qube} are shown already")
        where = view(self._environment if environment is None else environment)
        made = await self._supply.start(where, configure, channel, memory)
        running = RunningGui(configure.qube, made.process, made.daemon, made.words, self._take)
        self._running[configure.qube] = running
        self._clipboards[configure.qube] = configure.clipboard_limit
        self._limits.setdefault(configure.qube, RateLimit(NOTICES_BURST, NOTICES_PER_SECOND))
        self._keys.setdefault(configure.qube, RateLimit(KEYS_BURST, KEYS_PER_SECOND))
        forget = asyncio.create_task(self._forget(running), name=f"gui {configure.qube} end")
        self._judging.add(forget)
        forget.add_done_callback(self._judging.discard)
        return running

    async def _forget(self, running: RunningGui) -> None:
        await running.wait_closed()
        if self._running.get(running.name) is running:
            del self._running[running.name]
            self._carry_out(self._board.qube_gone(running.name))

    # --- what processes say --------------------------------------------------------------------------------------

    def _take(self, name: str, message: FromGui, descriptors: list[int]) -> None:
        """:raise ValueError, OSError: a descriptor that is no sealed file of a length that may be."""
        board, now = self._board, self._loop.time()
        commands: list[BoardCommand] = []
        if isinstance(message, Told):
            if self._limits[name].take(now):
                self._notify(name, message.text)
        elif not self._keys[name].take(now):
            log.warning("%s: more copying and pasting than anybody does; not heard", name)
        elif isinstance(message, Focused):
            commands = board.focused(name)
        elif isinstance(message, CopyStarted):
            commands = board.copy_started(name, message.number, message.stamp, now)
        elif isinstance(message, CopyOffered):
            size = clip_file.size(descriptors[0], clip_file.limit(is_image=message.is_image))
            commands = board.copy_offered(name, message.number, descriptors.pop(), size, now, is_image=message.is_image)
        elif isinstance(message, CopyFailed):
            commands = board.copy_failed(name, message.number, message.reason)
        elif isinstance(message, PasteAsked):
            limit = self._clipboards[name]
            commands = board.paste_asked(name, message.number, message.stamp, now, limit=limit)
        self._carry_out(commands)

    def _carry_out(self, commands: list[BoardCommand]) -> None:
        for command in commands:
            if isinstance(command, Judge):
                task = asyncio.create_task(self._ask(command), name="clipboard policy")
                self._judging.add(task)
                task.add_done_callback(self._judging.discard)
            elif isinstance(command, Deliver):
                running = self._running.get(command.target)
                if running is not None:
                    running.deliver(command.number, command.content, is_image=command.is_image)
                os.close(command.content)
            elif isinstance(command, Drop):
                os.close(command.content)
            elif isinstance(command, Notice):
                self._notify(None, command.text)
        self._set_expiry()

    async def _ask(self, judge: Judge) -> None:
        try:
            is_allowed = await self._judge(judge.source, judge.target, IMAGE if judge.is_image else "")
        except OSError as error:
            log.warning("clipboard from %s to %s: policy cannot be asked: %s", judge.source, judge.target, error)
            is_allowed = False
        self._carry_out(self._board.judged(judge.number, is_allowed, self._loop.time()))

    def _set_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._board.expires_at is not None:
            self._expiry = self._loop.call_at(self._board.expires_at, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._carry_out(self._board.expire(self._loop.time()))
