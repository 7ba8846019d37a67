"""SIGUSR1 of a service, by which it asks to use one socket for input and output (reference: qrexec, §3).

The signal goes to the process ``QREXEC_AGENT_PID`` names, which here serves many calls; so it matters who sent it.
signalfd(2) says that. But the kernel keeps one signal of a kind, so of two sent in the same instant only the first
one's sender is told. Hence every call whose process could have been the other is watched from then on: output on the
socket of its input means the same.
"""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os
import struct

from insula_agent.log import log
from insula_agent.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from insula_agent.calls import Call

SIGUSR1 = 10
MAX_ANCESTORS = 32
"""Steps from the sender up to the process that was started."""
_SIGNAL_INFO = 128
"""Bytes of ``struct signalfd_siginfo``."""
_SENDER = struct.Struct("<12xI")
_SIGNAL_SET = 128
"""Bytes of ``sigset_t``."""
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class SingleSocketRequests:
    """Tells those of ``calls``, which changes under way, whose process asked. Begins with :meth:`start`."""

    def __init__(self, loop: Loop, calls: set[Call]) -> None:
        self._loop = loop
        self._calls = calls
        self._fd = -1

    def start(self) -> None:
        """Before the first process that may ask is started. Repeated is fine."""
        if self._fd >= 0:
            return
        import ctypes  # noqa: PLC0415 - in a qube the identity has needed it already

        _signal.pthread_sigmask(_signal.SIG_BLOCK, (SIGUSR1,))
        wanted = (1 << (SIGUSR1 - 1)).to_bytes(_SIGNAL_SET, "little")
        self._fd = ctypes.CDLL(None, use_errno=True).signalfd(-1, wanted, _FLAGS)
        if self._fd < 0:
            log(f"no signals of services: {os.strerror(ctypes.get_errno())}")
            return
        self._loop.watch(self._fd, READ, self._ready)

    def look(self) -> None:
        """Hear of signals that were sent before now, also those the loop has not come to yet."""
        if self._fd >= 0:
            self._ready(READ)

    def _ready(self, events: int) -> None:
        del events
        try:
            while info := os.read(self._fd, _SIGNAL_INFO):
                self._asked(_SENDER.unpack_from(info)[0])
        except BlockingIOError:
            return

    def _asked(self, pid: int) -> None:
        by_pid = {call.pid: call for call in self._calls if call.pid}
        asker = next((by_pid[candidate] for candidate in ancestors(pid) if candidate in by_pid), None)
        if asker is None:
            log(f"process {pid} wants to use one socket, but is none of ours")
        else:
            asker.use_single_socket()
        for call in by_pid.values():
            if call is not asker:
                call.expect_single_socket()


def ancestors(pid: int) -> Iterable[int]:
    """A process, the leader of its session, then parents upwards; nothing of one that has gone."""
    yield pid
    try:
        yield os.getsid(pid)
    except ProcessLookupError:
        return
    for _ in range(MAX_ANCESTORS):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name before it, in brackets, may hold anything.
                pid = int(file.read(4096).rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        if pid <= 1:
            return
        yield pid
