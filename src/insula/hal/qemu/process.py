"""The VMM as a process: spawned in its sandbox, watched through a pidfd, found again, killed.

Two processes belong to a VMM: bubblewrap (our child, only waits) and the VMM (bubblewrap's child, process 1 of its
pid namespace). Everything here is about the second; the first is reaped when it ends and means nothing: a killed
bubblewrap does not end the machine.

A process is known by pid, start time and boot: a pid alone may belong to somebody else by now. The pidfd opened after
that check refers to that process for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from insula.hal.driver import MachineStats
from insula.hal.errors import DriverError
from insula.hal.qemu.sandbox import SandboxFacts, sandbox_argv

SPAWN_LIMIT_S = 60.0
"""From fork until bubblewrap tells the VMM's pid: milliseconds, many seconds on a machine whose every core is wanted.
One that ends is noticed at once."""
SANDBOX_END_LIMIT_S = 20.0
"""From the VMM's end to bubblewrap's: a millisecond, seconds on a machine whose every core is wanted."""
MAX_INFO = 4096
"""Bytes of bubblewrap's report; it writes about 250."""
OUTPUT_LIMIT = 64 * 1024
"""Bytes kept of what bubblewrap and the VMM print."""
NICE = "/usr/bin/nice"
VMM_NICENESS = 10
"""Added to the daemon's own (nice(2)): guests may have every core that nobody else needs, but what serves the user
comes first. It counts within one scheduling group: a cgroup, or a session where there is autogroup (sched(7))."""

_PIDFD_GETFD = 438
"""pidfd_getfd(2), the same number on every machine; Python 3.11 and older C libraries have no function for it."""
_libc = ctypes.CDLL(None, use_errno=True)

Launch = Callable[[Callable[[], "subprocess.Popen[bytes]"]], "subprocess.Popen[bytes]"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

# Fields of /proc/PID/stat counted after the command name's closing parenthesis (proc(5)).
_STAT_STATE, _STAT_PPID, _STAT_TTY, _STAT_UTIME, _STAT_STIME, _STAT_START = 0, 1, 4, 11, 12, 19


@dataclass(frozen=True)
class ProcessIdentity:
    pid: int
    start_ticks: int
    """Start time in clock ticks since boot."""
    boot_id: str

    def record(self) -> dict[str, str | int]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    @classmethod
    def from_record(cls, record: Mapping[str, str | int]) -> ProcessIdentity | None:
        """None if the record is incomplete."""
        pid, start, boot = record.get("pid"), record.get("start_ticks"), record.get("boot_id")
        if isinstance(pid, int) and isinstance(start, int) and isinstance(boot, str):
            return cls(pid, start, boot)
        return None

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Identity of a process that lives now; None if there is none."""
        fields = _stat(pid)
        if fields is None or fields[_STAT_STATE] in "ZX":
            return None
        return cls(pid, int(fields[_STAT_START]), boot_id())


@dataclass(frozen=True)
class HostUser:
    """Who the VMM is outside its sandbox, where that is not the daemon's own user."""

    uid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups: none, or the one that may open /dev/kvm."""


def is_named(pid: int, uuid: str) -> bool:
    """Whether a process has a machine's uuid as a word of its command line: it is that machine's VMM or sandbox."""
    try:
        return uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _descriptor_of(pidfd: int, number: int) -> int | None:
    """A copy of another process's descriptor; None if it was closed meanwhile. :raise OSError:"""
    found: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0))
    if found >= 0:
        return found
    error = ctypes.get_errno()
    if error in (errno.EBADF, errno.ESRCH):
        return None
    raise OSError(error, f"pidfd_getfd: {os.strerror(error)}")


def boot_id() -> str:
    """Changes with each boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, or nobody can tell."""
    fields = _stat(os.getpid())
    return fields is None or fields[_STAT_TTY] != "0"


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name is in parentheses and may contain anything, parentheses and spaces included.
    return text.rpartition(")")[2].split()


class VmmProcess:
    """A living VMM. Owns a pidfd; :meth:`close` lets go of it without ending the process."""

    def __init__(
        self, identity: ProcessIdentity, pidfd: int, output: int | None = None, sandbox: ReapedChild | None = None
    ) -> None:
        """Takes over ``pidfd`` and ``output`` (a memory file with what was printed)."""
        self.identity = identity
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._pidfd: int | None = pidfd
        self._output = output
        self._loop.add_reader(pidfd, self._on_exit)

    @classmethod
    async def spawn(
        cls,
        facts: SandboxFacts,
        command: Sequence[str],
        inherited: Sequence[int],
        status_file: IO[bytes],
        user: HostUser | None,
        launch: Launch | None = None,
    ) -> VmmProcess:
        """Start ``command`` in the sandbox with the descriptors ``inherited``.

        :param status_file: gets bubblewrap's report, which has the pid, before the command runs.
        :param launch: who calls what starts the sandbox, if that is to be done in some way.
        :raise DriverError: nothing runs.
        """
        with ExitStack() as stack:
            output = sealed_output()
            stack.callback(os.close, output)
            info, info_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, info)
            with os.fdopen(info_writer, "wb"):
                status = status_file.fileno()
                argv = sandbox_argv(facts, command, info_fd=info_writer, status_fd=status, new_session=has_terminal())
                start = partial(_popen, argv, (*inherited, info_writer, status), output, user)
                bwrap = start() if launch is None else launch(start)
            sandbox = ReapedChild(bwrap)
            try:
                pid = await _read_child_pid(info)
                process = cls._watch_child(pid, sandbox, os.dup(output))
            except BaseException as error:
                _kill_tree(bwrap.pid)
                await sandbox.wait()
                if isinstance(error, DriverError):
                    raise DriverError(str(error), read_output(output)) from error
                raise
        return process

    @classmethod
    def _watch_child(cls, pid: int, sandbox: ReapedChild, output: int) -> VmmProcess:
        with ExitStack() as stack:
            stack.callback(os.close, output)
            identity = ProcessIdentity.of(pid)
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError as error:
                raise DriverError("the VMM ended at once") from error
            stack.callback(os.close, pidfd)
            # Still bubblewrap's child *after* the pidfd was opened: so it is the process that was reported.
            fields = _stat(pid)
            if identity is None or fields is None or int(fields[_STAT_PPID]) != sandbox.pid:
                raise DriverError("the VMM ended at once")
            stack.pop_all()
            return cls(identity, pidfd, output, sandbox)

    @classmethod
    def attach(cls, identity: ProcessIdentity) -> VmmProcess | None:
        """Watch a process started by an earlier daemon; None if it is gone."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if ProcessIdentity.of(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(identity, pidfd)

    def _on_exit(self) -> None:
        self._forget_pidfd()
        self._gone.set()

    def _forget_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    @property
    def is_gone(self) -> bool:
        return self._gone.is_set()

    async def wait(self) -> None:
        """Return once the process has ended."""
        await self._gone.wait()

    async def wait_sandbox(self) -> None:
        """Return once bubblewrap, which ends right after the VMM, has been reaped (with a limit: it means nothing)."""
        if self._sandbox is not None:
            await self._sandbox.wait()

    def kill(self) -> None:
        """SIGKILL; :meth:`wait` returns soon after. No-op once it is gone."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def socket_to(self, peer: bytes | str) -> socket.socket | None:
        """A descriptor of the VMM's unix socket that is connected to ``peer``; None if it has none (yet).

        It is the same open socket as the VMM's own, flags included. The caller closes the copy.

        :raise OSError: the kernel does not let us look into the VMM.
        """
        for number, link in self._links():
            if not link.startswith("socket:") or self._pidfd is None:
                continue
            found = _descriptor_of(self._pidfd, number)
            if found is None:
                continue
            with ExitStack() as stack:
                copy = stack.enter_context(socket.socket(fileno=found))
                with suppress(OSError):  # a socket that is not connected
                    if copy.family == socket.AF_UNIX and copy.getpeername() == peer:
                        stack.pop_all()
                        return copy
        return None

    def memory_file(self, name: str) -> int | None:
        """A descriptor of the VMM's memory file of that name, the caller's; None if it has none.

        :raise OSError: the kernel does not let us look into the VMM.
        """
        for number, link in self._links():
            if link.startswith(f"/memfd:{name} ") and self._pidfd is not None:
                found = _descriptor_of(self._pidfd, number)
                if found is not None:
                    return found
        return None

    def _links(self) -> Iterator[tuple[int, str]]:
        """The VMM's descriptors, and what each leads to; those it closes meanwhile are left out."""
        if self._pidfd is None:
            return
        for entry in Path(f"/proc/{self.identity.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                yield int(entry.name), str(entry.readlink())

    def output(self) -> str:
        """What the VMM printed so far, at most :data:`OUTPUT_LIMIT` bytes; empty for an attached process."""
        return "" if self._output is None else read_output(self._output)

    def close(self) -> None:
        """Let go; idempotent."""
        self._forget_pidfd()
        if self._output is not None:
            os.close(self._output)
            self._output = None

    def stats(self, assigned_kib: int, vcpus: int) -> MachineStats | None:
        """CPU time and memory; None if the process is gone. Blocking: the kernel walks the page tables."""
        fields = _stat(self.identity.pid)
        if fields is None or int(fields[_STAT_START]) != self.identity.start_ticks:
            return None
        ticks = int(fields[_STAT_UTIME]) + int(fields[_STAT_STIME])
        memory = _proportional_kib(self.identity.pid)
        return MachineStats(ticks * 1000 // _TICKS_PER_S, memory, assigned_kib, vcpus)


class ReapedChild:
    """Collects a child's exit status when it ends, so that no zombie stays. Keeps itself alive until then."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        self.reaped = asyncio.Event()
        self._pidfd = os.pidfd_open(child.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        """SIGKILL; no-op once it was reaped."""
        self._child.kill()

    async def wait(self) -> None:
        """Return once it was reaped; with a limit, for nothing is lost if that comes later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SANDBOX_END_LIMIT_S):
                await self.reaped.wait()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._child.wait()
        self.reaped.set()


def _popen(argv: Sequence[str], fds: Sequence[int], output: int, user: HostUser | None) -> subprocess.Popen[bytes]:
    # Not asyncio's: its child watcher costs a thread for each process, and the fork itself takes a millisecond or two.
    try:
        return subprocess.Popen(
            # Lowered by a program of its own: set from here it would come after the VMM's first threads.
            (NICE, "-n", str(VMM_NICENESS), *argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={},
            pass_fds=fds,
            # Not the daemon's: what a terminal sends to the daemon's group is not for machines that outlive it.
            process_group=0,
            user=None if user is None else user.uid,
            group=None if user is None else user.uid,
            extra_groups=None if user is None else user.groups,
        )
    except OSError as error:
        raise DriverError("the sandbox cannot be started", str(error)) from error


async def _read_child_pid(info: int) -> int:
    """Read bubblewrap's report from a non-blocking pipe. :raise DriverError: it failed or takes too long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    collected = bytearray()

    def on_readable() -> None:
        part = os.read(info, MAX_INFO)
        collected.extend(part)
        if (not part or len(collected) > MAX_INFO) and not done.done():
            done.set_result(bytes(collected))

    loop.add_reader(info, on_readable)
    try:
        async with asyncio.timeout(SPAWN_LIMIT_S):
            report = json.loads(await done)
    except TimeoutError as error:
        raise DriverError(f"the sandbox was not ready within {SPAWN_LIMIT_S:.0f} s") from error
    except ValueError as error:
        raise DriverError("the sandbox could not be made") from error
    finally:
        loop.remove_reader(info)
    pid = report.get("child-pid") if isinstance(report, dict) else None
    if not isinstance(pid, int):
        raise DriverError("bubblewrap reported no pid")
    return pid


def _kill_tree(bwrap: int) -> None:
    """Kill bubblewrap (our unreaped child: the pid is certain) and what it started."""
    children = Path(f"/proc/{bwrap}/task/{bwrap}/children")
    with suppress(OSError):
        for child in children.read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(bwrap, signal.SIGKILL)


def sealed_output() -> int:
    """A memory file of fixed size for a program's output: what does not fit is refused by the kernel.

    So nothing that a guest makes its VMM print can fill the host, and nobody has to read along.
    """
    fd = os.memfd_create("vmm-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, OUTPUT_LIMIT)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def read_output(fd: int) -> str:
    """What was printed, control characters replaced."""
    text = os.pread(fd, OUTPUT_LIMIT, 0).rstrip(b"\0").decode("utf-8", "replace").strip()
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _proportional_kib(pid: int) -> int:
    """Memory really used: shared pages counted by share where the kernel tells us, else resident pages."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_KIB
    return 0
