"""The way out of a machine, a process at the other end of its interface: started, watched, found again (decision 020).

The process is :mod:`insula.net.uplink`: it turns the guest's frames into ordinary sockets, in a sandbox of its own. The
VMM keeps its sandbox without any network. It ends when the machine does, and outlives the daemon as machines do; a note
in the run-time folder tells a later daemon which process it is.

It is lost when it ends, when it gives no sign of life for :data:`SILENCE_LIMIT_S` (a file in the run-time folder has
the time of the last one), or when the host asks another name server than the one it knows. Whoever watches then ends it
and lays another cable.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import insula
from insula.hal.errors import DriverError
from insula.hal.qemu.descriptors import explained
from insula.hal.qemu.process import HostUser, ProcessIdentity, ReapedChild, read_output, sealed_output
from insula.net import heartbeat, resolver
from insula.net.uplink import READY

NOTE = "outside.pid"
"""In the run-time folder: which process it is, for a later daemon."""
PULSE = "outside.beat"
"""In the run-time folder: when it last showed that it lives."""
START_LIMIT_S = 60.0
"""Until the process is in its sandbox: 60 ms, many seconds on a machine whose every core is wanted. One that ends is
noticed at once."""
SILENCE_LIMIT_S = 20.0
"""A process that has written no time for so long hangs: it does every second, and a turn of it takes milliseconds."""
WATCH_S = 2.0
"""Between looks at its signs of life and at the host's name server."""
MAX_REPORT = 256
"""Bytes of what the process tells of its start."""

_RUN = "import sys; sys.path[:0] = [sys.argv[1]]; from insula.net.uplink import main; sys.exit(main(sys.argv[2:]))"


class WayOut:
    """A process that leads a machine outside. Owns a pidfd; :meth:`close` lets go of it without ending it."""

    def __init__(self, folder: Path, identity: ProcessIdentity, pidfd: int, server: str | None) -> None:
        """
        :param pidfd: taken over.
        :param server: the name server it asks.
        """
        self.identity = identity
        self._folder = folder
        self._server = server
        self._ended = asyncio.Event()
        self._pidfd: int | None = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def find(cls, folder: Path) -> WayOut | None:
        """The one noted in a run-time folder; None if it does not live."""
        try:
            note = json.loads((folder / NOTE).read_bytes())
            identity, server = ProcessIdentity.from_record(note), note.get("server")
        except (OSError, ValueError, AttributeError):
            return None
        if identity is None:
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if ProcessIdentity.of(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(folder, identity, pidfd, server)

    def _on_exit(self) -> None:
        self.close()
        self._ended.set()

    def close(self) -> None:
        """Idempotent."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def lost(self) -> str:
        """Return, once it is of no use any more, why."""
        was_silent = False
        while not self._ended.is_set():
            silence_s = heartbeat.silence_s(self._folder / PULSE)
            is_silent = silence_s is None or silence_s > SILENCE_LIMIT_S
            # Twice: where this whole host stood still for a moment, it may look before the other could write.
            if is_silent and was_silent:
                return "it hangs"
            was_silent = is_silent
            if resolver.host_server() != self._server:
                return "the host asks another name server"
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._ended.wait()
        return "it ended"

    async def end(self) -> None:
        """End it, hung or not. Idempotent."""
        if self._pidfd is not None:
            _kill(self._pidfd)
            await self._ended.wait()


async def join(folder: Path, cable: int, user: HostUser | None) -> WayOut:
    """Start the process on a connection to a machine's interface.

    :param folder: the machine's run-time folder.
    :param cable: the connection's descriptor; the caller's, and needed only until this returns.
    :param user: who it is to be, where the daemon is root.
    :raise DriverError: it is not in its sandbox; nothing runs.
    """
    server = resolver.host_server()
    with ExitStack() as stack, explained(f"run-time folder {folder}"):
        output = sealed_output()
        stack.callback(os.close, output)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, reader)
        with os.fdopen(writer, "wb"):
            pulse = os.open(folder / PULSE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, pulse)
            heartbeat.beat(pulse)
            numbers = (cable, pulse, writer)
            arguments = [*map(str, numbers), *([] if user is None else [str(user.uid)])]
            child = ReapedChild(_popen(arguments, numbers, output))
        try:
            report = await _read_report(reader)
            return _started(folder, report, server)
        except DriverError as error:
            raise DriverError(str(error), read_output(output)) from error
        finally:
            # It has done its part, or never will; what it forked ends as soon as nobody hears its report.
            child.kill()
            await child.reaped.wait()


def _started(folder: Path, report: bytes, server: str | None) -> WayOut:
    """:raise DriverError: it did not get into its sandbox. :raise OSError: it cannot be noted; it was ended."""
    lines = report.splitlines(keepends=True)
    number = next((int(line) for line in lines if line.strip().isdigit()), None)
    identity = None if number is None else ProcessIdentity.of(number)
    if identity is None:
        raise DriverError("the way to the network could not be started")
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError as error:
        raise DriverError("the way to the network ended at once") from error
    with ExitStack() as undo:
        undo.callback(os.close, pidfd)
        undo.callback(_kill, pidfd)
        if READY not in lines:
            raise DriverError(f"the way to the network was not in its sandbox within {START_LIMIT_S:.0f} s")
        note = json.dumps({**identity.record(), "server": server})
        (folder / NOTE).write_text(note, encoding="ascii")
        way = WayOut(folder, identity, pidfd, server)
        undo.pop_all()
    return way


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _popen(arguments: Sequence[str], descriptors: Sequence[int], output: int) -> subprocess.Popen[bytes]:
    source = str(Path(insula.__file__).resolve().parents[1])
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUN, source, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={},
            pass_fds=descriptors,
            # Not the daemon's: what a terminal sends to the daemon's group is not for what outlives it.
            process_group=0,
        )
    except OSError as error:
        raise DriverError("the way to the network cannot be started", str(error)) from error


async def _read_report(reader: int) -> bytes:
    """What the process and the one that made it tell, until both have closed the pipe, or until it takes too long."""
    loop = asyncio.get_running_loop()
    complete = asyncio.Event()
    collected = bytearray()

    def on_readable() -> None:
        part = os.read(reader, MAX_REPORT)
        collected.extend(part)
        if not part or len(collected) > MAX_REPORT:
            loop.remove_reader(reader)
            complete.set()

    loop.add_reader(reader, on_readable)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(START_LIMIT_S):
                await complete.wait()
    finally:
        loop.remove_reader(reader)
    return bytes(collected)
