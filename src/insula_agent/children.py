"""A started process: its ends of what connects us, its end, and the signals it is sent and sends.

It is reaped only when nothing can be sent to its group any more: a zombie's number cannot belong to anybody else.
"""

from __future__ import annotations

import os

from insula_agent import process, sockets
from insula_agent.conveyor import enlarge
from insula_agent.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PIPE_SIZE = 1048576
"""Bytes of the pipes to and from a process: fewer changes between it and us than with the kernel's 64 KiB."""


class Child:
    """``stdin``, ``stdout`` and ``stderr`` are our ends, non-blocking, for the caller to close; -1 if detached."""

    def __init__(self, loop: Loop, plan: process.Plan, on_exit: Callable[[], None], *, is_detached: bool) -> None:
        """:raise OSError: no process could be made."""
        self._loop = loop
        self._on_exit = on_exit
        self.stdin = self.stdout = self.stderr = -1
        self.has_exited = False
        if is_detached:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                self.pid = process.start(plan, null, null, null)
            finally:
                os.close(null)
        else:
            self._start(plan)
        self._pidfd = os.pidfd_open(self.pid)
        loop.watch(self._pidfd, READ, self._exited)

    def _start(self, plan: process.Plan) -> None:
        descriptors: list[int] = []
        try:
            descriptors.extend(os.pipe2(os.O_CLOEXEC) if plan.has_pipe else _socket_pair())
            descriptors.extend(os.pipe2(os.O_CLOEXEC))
            descriptors.extend(os.pipe2(os.O_CLOEXEC))
            stdin, own_stdin, own_stdout, stdout, own_stderr, stderr = descriptors
            self.pid = process.start(plan, stdin, stdout, stderr)
            for fd in (own_stdin, own_stdout, own_stderr):
                os.set_blocking(fd, False)
                descriptors.remove(fd)
            if plan.has_pipe:
                enlarge(own_stdin, PIPE_SIZE)
            enlarge(own_stdout, PIPE_SIZE)
            self.stdin, self.stdout, self.stderr = own_stdin, own_stdout, own_stderr
        finally:
            for fd in descriptors:
                os.close(fd)

    def _exited(self, events: int) -> None:
        del events
        self.has_exited = True
        self._loop.forget(self._pidfd)
        self._on_exit()

    def signal(self, number: int) -> None:
        """To its whole group."""
        process.signal_group(self.pid, number)

    def reap(self) -> int:
        """Wait for its end, which is there or near; return its exit code. It must not be signalled after that."""
        _, status = os.waitpid(self.pid, 0)
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        return process.exit_code(status)


def _socket_pair() -> tuple[int, int]:
    theirs, ours = sockets.pair(PIPE_SIZE)
    return theirs.detach(), ours.detach()
