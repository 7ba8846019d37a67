"""The daemon's end of the preloaded parent: ``async with PreloadedParent(…) as parent: await parent.fork(…)``.

The parent is started with the context, and anew with the first fork after it died. Its processes die with it; each
:class:`ForkedProcess` knows when, by a pidfd of its own. What the parent says is believed: it reads nothing of a guest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

import insula
from insula.preload import messages
from insula.preload.messages import Ended, Failed, Fork, FromParent
from insula.preload.title import ROOM
from insula_proto.errors import RemoteProtocolError

FORK_TIMEOUT = 60.0
"""Seconds until an answer must have come; the parent's own start is part of the first."""
END_TIMEOUT = 5.0
"""Seconds the parent has to end when its socket was closed."""
LOST = -signal.SIGKILL
"""Exit code of a process that ended with its parent."""

_RUN_PARENT = (
    "import sys; sys.path[:0] = sys.argv[1].split(':'); from insula.preload.parent import main; main(sys.argv[3:])"
)

log = logging.getLogger("insula.preload")


def package_folders() -> list[Path]:
    """Where the packages lie that programs import: ours, and msgspec."""
    folders = [Path(module.__file__ or "").resolve().parents[1] for module in (insula, msgspec)]
    return list(dict.fromkeys(folders))


def command(programs: Sequence[str], control: int) -> list[str]:
    """Return the parent's command line: isolated from settings, ``site`` and the current folder."""
    folders = ":".join(map(str, package_folders()))
    # The blank argument is room for the titles of its processes.
    return [sys.executable, "-I", "-S", "-c", _RUN_PARENT, folders, " " * ROOM, str(control), *programs]


class ForkedProcess:
    """A process of the parent's. :attr:`pid` is the host's."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """Takes over ``pidfd``."""
        self.pid = pid
        self._pidfd: int | None = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()

    def kill(self) -> None:
        """End it at once; idempotent."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Return the exit code, or minus the number of the signal, once it has ended; may be awaited by many."""
        return await asyncio.shield(self._ended)

    def has_ended(self, code: int) -> None:
        """For :class:`PreloadedParent`: it was waited for."""
        if self._pidfd is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = None
        self._ended.set_result(code)

    def parent_has_ended(self) -> None:
        """For :class:`PreloadedParent`: nobody will tell of its end; the kernel has killed it or is about to."""
        if self._pidfd is not None:
            self.kill()
            self._loop.add_reader(self._pidfd, self.has_ended, LOST)


class _Life:
    """One parent process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._processes: dict[int, ForkedProcess] = {}
        self._number = 0
        self._sending = asyncio.Lock()
        self._room = asyncio.Event()
        self.is_over = False
        self._loop.add_reader(control, self._readable)

    async def fork(self, request: Fork, descriptors: Sequence[int]) -> ForkedProcess:
        """:raise OSError: the parent is gone, or could not."""
        self._number += 1
        request = msgspec.structs.replace(request, number=self._number)
        answer: asyncio.Future[ForkedProcess] = self._loop.create_future()
        self._waiting[request.number] = answer
        try:
            async with asyncio.timeout(FORK_TIMEOUT):
                await self._send(messages.encode(request), descriptors)
                return await answer
        except TimeoutError as error:
            self.end()
            raise TimeoutError(f"the preloaded parent did not answer within {FORK_TIMEOUT:.0f} s") from error
        finally:
            self._waiting.pop(request.number, None)

    async def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        async with self._sending:
            while not self.is_over:
                try:
                    socket.send_fds(self._control, [data], descriptors)
                except BlockingIOError:
                    self._room.clear()
                    self._loop.add_writer(self._control, self._has_room)
                    await self._room.wait()
                else:
                    return
        raise ConnectionResetError("the preloaded parent has ended")

    def _has_room(self) -> None:
        self._loop.remove_writer(self._control)
        self._room.set()

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, messages.MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        try:
            if not data:
                self.end()
                return
            self._take(messages.decode_from_parent(data), descriptors)
        except RemoteProtocolError as error:
            log.error("%s", error)  # noqa: TRY400 - what it said is what is wrong, not where we noticed
            self.end()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, message: FromParent, descriptors: list[int]) -> None:
        """Takes descriptors it keeps out of the list. :raise RemoteProtocolError: an answer that cannot be."""
        if isinstance(message, Ended):
            if message.number in self._processes:
                self._processes.pop(message.number).has_ended(message.code)
            return
        answer = self._waiting.pop(message.number, None)
        if isinstance(message, Failed):
            if answer is not None and not answer.done():
                answer.set_exception(OSError(message.reason))
            return
        if not descriptors:
            raise RemoteProtocolError("a process without a pidfd")
        pidfd = descriptors.pop()
        os.set_inheritable(pidfd, False)
        process = ForkedProcess(message.pid, pidfd)
        self._processes[message.number] = process
        if answer is None or answer.done():
            process.kill()  # whoever asked has gone
        else:
            answer.set_result(process)

    def end(self) -> None:
        """Let go of it: it ends, and its processes with it; idempotent."""
        if self.is_over:
            return
        self.is_over = True
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        self._room.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the preloaded parent ended before it answered"))
        for process in self._processes.values():
            process.parent_has_ended()

    async def close(self) -> None:
        """As :meth:`end`, and wait until nothing is left; idempotent."""
        self.end()
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for process in self._processes.values():
            await process.wait()


class PreloadedParent:
    """Owns the parent process and whatever was forked from it."""

    def __init__(self, programs: Sequence[str]) -> None:
        """``programs``: modules whose ``main(descriptors) -> exit code`` can be run."""
        self._programs = tuple(programs)
        self._life: _Life | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        """:raise OSError: it cannot be started."""
        await self._alive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the parent and all its processes; idempotent."""
        async with self._starting:
            self._is_closed = True
            if self._life is not None:
                await self._life.close()

    @property
    def pid(self) -> int | None:
        """Of the parent process that runs at present."""
        return None if self._life is None or self._life.is_over else self._life._process.pid

    async def _alive(self) -> _Life:
        async with self._starting:
            if self._is_closed:
                raise ConnectionAbortedError("the preloaded parent was closed")
            if self._life is not None and self._life.is_over:
                log.warning("the preloaded parent has ended; starting another")
                await self._life.close()
                self._life = None
            if self._life is None:
                self._life = await _start(self._programs)
            return self._life

    async def fork(self, request: Fork, descriptors: Sequence[int]) -> ForkedProcess:
        """Return a process that is in its sandbox; ``descriptors`` (its stderr first) stay the caller's.

        ``number`` of the request does not matter.

        :raise OSError: no process, and why: the kernel refuses a part of the sandbox, or the parent died.
        """
        life = await self._alive()
        return await life.fork(request, descriptors)


async def _start(programs: Sequence[str]) -> _Life:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command(programs, theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return _Life(process, ours)
