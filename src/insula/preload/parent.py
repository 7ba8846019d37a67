"""The preloaded parent: imports what its programs need, then forks a sandboxed process whenever the daemon asks.

A start costs milliseconds instead of an interpreter's start and its imports, and what was imported is shared memory. It
is a fresh interpreter, not a fork of the daemon, so that nothing of the daemon's memory is in the processes; it has one
thread, reads nothing but the daemon's requests, and is told nothing about a qube but the user to run as.

A process is made in three steps. The *intermediate* enters the namespaces, forks the *child* (which is the first
inside), tells its pid and ends; the child, adopted by the parent, is let go then, gives up its rights, and runs its
program. The parent serves one request at a time; all of it is our own code that has not read a byte of a guest yet.

It ends when the daemon does, and all its processes with it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import tokenize  # noqa: F401 - what a traceback needs and imports late in newer versions
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from insula.preload import messages, sandbox, seccomp, syscalls, title
from insula.preload.messages import Ended, Failed, Fork, Forked, FromParent
from insula.preload.syscalls import Namespaces
from insula_proto.errors import RemoteProtocolError

Prepare = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True)
class Program:
    main: Callable[[Sequence[int]], int]
    """Gets the numbers of its descriptors, returns its exit code."""
    prepare: Prepare | None
    """Called before it, with the variables of its view, while there is something of the host to be seen."""


SETUP_TIMEOUT = 30.0
"""Seconds a process may take to get into its sandbox: milliseconds, but for a machine that has no time for it. Whoever
asked waits longer for the answer (:data:`insula.preload.forks.FORK_TIMEOUT`)."""
MAX_REPORT = 4096
EXIT_NO_SANDBOX = 71
"""``EX_OSERR`` of sysexits.h; nobody sees it, the reason is reported."""
EXIT_DEFECT = 70
"""``EX_SOFTWARE``: the program raised; the traceback is on its stderr."""
_STANDARD = 3
"""Descriptors 0 to 2 lead to the process's stderr."""


@dataclass(frozen=True)
class _Pipes:
    """Between parent, intermediate and child of one fork."""

    report_reader: int
    report_writer: int
    """Gets ``PID\\n`` of the child, then, if something fails, why."""
    go_reader: int
    go_writer: int
    """Gets a byte when the intermediate was waited for."""

    @classmethod
    def make(cls) -> _Pipes:
        report = os.pipe2(os.O_CLOEXEC)
        try:
            return cls(*report, *os.pipe2(os.O_CLOEXEC))
        except OSError:
            close_all(report)
            raise

    def all(self) -> tuple[int, ...]:
        return (self.report_reader, self.report_writer, self.go_reader, self.go_writer)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Parent:
    """Serves the daemon at the other end of ``control``."""

    def __init__(self, control: socket.socket, programs: dict[str, Program]) -> None:
        self._control = control
        self._programs = programs
        self._children: dict[int, int] = {}
        """pidfd → number of the request."""
        self._namespaces = sandbox.namespaces()
        machine = os.uname().machine
        self._filter = seccomp.assemble(machine)
        self._filter_with_windows = seccomp.assemble(machine, shows_windows=True)
        self._pidfd = os.pidfd_open(os.getpid())

    def serve(self) -> None:
        """Return when the daemon is gone. :raise RemoteProtocolError: it sent something else than requests."""
        while True:
            poll = select.poll()
            for descriptor in (self._control.fileno(), *self._children):
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll():
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._request():
                    return

    def end_children(self) -> None:
        """Kill them and wait for them; nobody else would."""
        for pidfd in self._children:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while self._children:
            pidfd, _ = self._children.popitem()
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)

    def _reap(self, pidfd: int) -> None:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None  # without WNOHANG there is always one
        code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        os.close(pidfd)
        self._tell(Ended(self._children.pop(pidfd), code))

    def _tell(self, message: FromParent, *descriptors: int) -> None:
        # A daemon that has gone is noticed when its next request is looked for.
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [messages.encode(message)], descriptors)

    def _request(self) -> bool:
        """Answer the next request; return False at the end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, messages.MAX_MESSAGE, messages.MAX_DESCRIPTORS)
        except ConnectionResetError:
            return False
        try:
            if not data:
                return False
            request = messages.decode_to_parent(data)
            if not descriptors:
                raise RemoteProtocolError("a request without descriptors")
            try:
                pid = self._fork(request, descriptors)
                pidfd = _open_pidfd(pid)
            except OSError as error:
                reason = str(error)[: messages.MAX_REASON]
                self._tell(Failed(request.number, reason))
                return True
            self._children[pidfd] = request.number
            self._tell(Forked(request.number, pid), pidfd)
            return True
        finally:
            close_all(descriptors)

    def _fork(self, request: Fork, descriptors: Sequence[int]) -> int:
        """Return the pid of a process that is in its sandbox. :raise OSError: why not; nothing of it is left."""
        program = self._programs.get(request.program)
        if program is None:
            raise FileNotFoundError(f"{request.program} was not preloaded")
        if (program.prepare is None) is not (request.view is None):
            raise OSError(errno.EINVAL, f"{request.program} needs a view of the host, or must have none")
        pipes = _Pipes.make()
        try:
            intermediate = os.fork()
        except OSError:
            close_all(pipes.all())
            raise
        if intermediate == 0:
            self._become_intermediate(request, pipes, program, descriptors)
        close_all((pipes.report_writer, pipes.go_reader))
        try:
            return _let_go(intermediate, pipes)
        finally:
            close_all((pipes.report_reader, pipes.go_writer))

    # --- in the processes made; none of these returns -----------------------------------------------------------------

    def _become_intermediate(
        self, request: Fork, pipes: _Pipes, program: Program, descriptors: Sequence[int]
    ) -> NoReturn:
        try:
            # The child has the read end alone, else it would not notice the end of the parent.
            os.close(pipes.go_writer)
            if request.uid is not None:
                sandbox.become(request.uid)
            if request.view is None:
                sandbox.leave_host(self._namespaces)
            else:
                kinds = self._namespaces & ~Namespaces.IPC if request.view.keeps_ipc else self._namespaces
                sandbox.leave_host(kinds, request.view.paths, request.view.files)
            child = os.fork()
            if child == 0:
                self._become_child(request, pipes, program, descriptors)
            os.write(pipes.report_writer, f"{child}\n".encode())
        except BaseException as error:  # noqa: BLE001, RUF100 - must not get back into the parent's loop
            _report(pipes.report_writer, error)
            os._exit(EXIT_NO_SANDBOX)
        os._exit(os.EX_OK)

    def _become_child(self, request: Fork, pipes: _Pipes, program: Program, descriptors: Sequence[int]) -> NoReturn:
        report = pipes.report_writer
        try:
            if not os.read(pipes.go_reader, 1):
                os._exit(EXIT_NO_SANDBOX)
            syscalls.set_name(f"insula-{request.program.rpartition('.')[2]}")
            file_size = request.view.file_size if request.view else 0
            sandbox.give_up_rights(sandbox.Limits(request.files, request.address_space, file_size))
            # Under a user of its own nobody else may look in; else the daemon must, to see how much memory it takes.
            syscalls.set_dumpable(request.uid is None)
            sandbox.die_with(self._pidfd)
            numbers = _arrange([*descriptors, report])
            report = numbers.pop()
            if program.prepare is not None and request.view is not None:
                program.prepare(dict(request.view.variables))
                sandbox.end_growth()
                syscalls.install_filter_on_all_threads(self._filter_with_windows)
            else:
                sandbox.end_growth()
                syscalls.install_filter(self._filter)
        except BaseException as error:  # noqa: BLE001, RUF100 - as above
            _report(report, error)
            os._exit(EXIT_NO_SANDBOX)
        os.close(report)
        _run(program.main, numbers, request.program)


def _arrange(descriptors: Sequence[int]) -> list[int]:
    """Make the first one stdin, stdout and stderr, number the others from 3 on, close all else; return the numbers."""
    wanted = [*[descriptors[0]] * _STANDARD, *descriptors[1:]]
    # First out of the way, as a target may be the source of another.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, len(wanted)) for descriptor in wanted]
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target, inheritable=False)
    syscalls.close_from(len(wanted))
    return list(range(_STANDARD, len(wanted)))


def _run(main: Callable[[Sequence[int]], int], numbers: Sequence[int], name: str) -> NoReturn:
    """Run the program; its exit code is the process's."""
    code = EXIT_DEFECT
    try:
        # There are no files: what is not imported is not there, and need not be looked for.
        sys.path.clear()
        sys.path_importer_cache.clear()
        sys.argv = [name]
        title.show(name)
        gc.enable()
        code = main(numbers)
    except BaseException:  # noqa: BLE001, RUF100 - the outermost frame of a process
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _report(writer: int, error: BaseException) -> None:
    with suppress(OSError):
        words = " ".join(str(error).split()) or type(error).__name__
        os.write(writer, words[: messages.MAX_REASON].encode("ascii", "replace"))


# --- in the parent, while a process is made ---------------------------------------------------------------------


def _let_go(intermediate: int, pipes: _Pipes) -> int:
    """See the intermediate end and the child into its sandbox; return its pid. :raise OSError: a step failed."""
    deadline = time.monotonic() + SETUP_TIMEOUT
    first, child = b"", None
    try:
        try:
            first = _read_report(pipes.report_reader, deadline, until=b"\n")
        finally:
            if not first.endswith(b"\n"):
                # It failed or takes too long. (A child it may have made ends when it cannot be let go.)
                os.kill(intermediate, signal.SIGKILL)
            os.waitpid(intermediate, 0)
        if not first.endswith(b"\n"):
            raise OSError(_words(first))  # noqa: TRY301 - undone like everything that fails here
        child = int(first)
        with suppress(BrokenPipeError):
            os.write(pipes.go_writer, b"g")
        problem = _read_report(pipes.report_reader, deadline)
        if problem:
            raise OSError(_words(problem))  # noqa: TRY301 - as above
    except BaseException:
        if child is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        raise
    return child


def _open_pidfd(child: int) -> int:
    """:raise OSError: no descriptor left; the child was ended."""
    try:
        return os.pidfd_open(child)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _read_report(reader: int, deadline: float, until: bytes | None = None) -> bytes:
    """Return all there is up to ``until`` or the end. :raise TimeoutError:"""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    report = b""
    while len(report) < MAX_REPORT and not (until and report.endswith(until)):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the sandbox was not made in time")
        data = os.read(reader, 1 if until else MAX_REPORT)
        if not data:
            break
        report += data
    return report


def _words(report: bytes) -> str:
    return report.decode("ascii", "replace") or "the process ended before it was in its sandbox"


# --- the process -------------------------------------------------------------------------------------------------


def load(names: Sequence[str]) -> dict[str, Program]:
    """Import the programs. :raise ImportError, AttributeError:"""
    modules = {name: importlib.import_module(name) for name in names}
    return {name: Program(module.main, getattr(module, "prepare", None)) for name, module in modules.items()}


def rehearse() -> None:
    """Run an event loop once: what is imported or made at its first use is there before the first fork then."""
    asyncio.run(asyncio.sleep(0))


def main(arguments: Sequence[str]) -> None:
    """``parent CONTROL PROGRAM...``: the number of the socket to the daemon, then modules."""
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    # (The daemon gone before this is the end of the socket.)
    syscalls.set_parent_death_signal(signal.SIGKILL)
    syscalls.set_no_new_privs()
    syscalls.become_subreaper()
    syscalls.set_name("insula-parent")
    title.prepare()
    title.show("insula-parent")
    os.chdir("/")
    os.environ.clear()
    parent = Parent(control, load(arguments[1:]))
    rehearse()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads; a fork would copy one and leave the locks of the others")
    # What lives now lives as long as we do: not looked at again, its pages stay shared (gc.freeze's documentation).
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        parent.serve()
    finally:
        parent.end_children()
