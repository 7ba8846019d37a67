"""Pages that the guest of a fork has freed go back to the host.

QEMU forgets a page that its guest reports as free, or puts into the balloon, with two calls: it punches a hole into the
file that is mapped, then it drops its own copy (``ram_block_discard_range`` of QEMU 7.2, ``softmmu/physmem.c``). The
file of a fork is its seed's and sealed: the first call is refused, and the second not made. Nor is the hole wanted,
for what a fork has written is in no file. So its VMM runs under a filter of system calls that asks here about each call
which would punch a hole. For the seed's memory the answer is that it is done; any other file, a disk's, gets its hole.

What such a page has in it when the guest takes it again is the seed's, as in every fork; Linux takes the content of a
page that it reported for undefined (decision 011).

A filter belongs to the thread that installs it and to what that thread starts from then on, so a thread of its own
starts the VMM. One more answers, not the event loop: a guest waits meanwhile. When the daemon is gone nobody answers,
such calls fail with ENOSYS, which QEMU takes for "not supported", and the machine keeps its pages as it did before.

A guest decides how often is asked (it may discard blocks of its disks all day), hence :data:`ANSWERS_PER_S`.

Sources: seccomp(2), seccomp_unotify(2), ``linux/seccomp.h``, ``linux/filter.h``, ``linux/falloc.h``.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

ANSWERS_PER_S = 5000
"""For one VMM; its calls beyond that wait until the second is over. An answer takes some 20 µs."""

WAITING_POLL_S = 0.05
"""Between looks whether the second is over for a VMM that waits."""

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)

# struct sock_filter, and struct seccomp_data, of which number, architecture and low halves of arguments are looked at
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
"""``SECCOMP_RET_ALLOW``, ``SECCOMP_RET_USER_NOTIF``"""

_PUNCH_HOLE = 0x02 | 0x01
"""``FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE``, the second argument."""

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
_QUESTION = struct.Struct("=QII iIQ 6Q")
"""``struct seccomp_notif``: id, thread, flags; number, architecture, instruction, arguments."""
_ANSWER = struct.Struct("=QqiI")
"""``struct seccomp_notif_resp``: id, value, error, flags."""
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
"""``SECCOMP_IOCTL_NOTIF_RECV``, ``SECCOMP_IOCTL_NOTIF_SEND``"""
_CONTINUE = 1
"""``SECCOMP_USER_NOTIF_FLAG_CONTINUE``: make the call. What is decided here guards nothing, so that is safe."""

_log = logging.getLogger(__name__)


class _Numbers(NamedTuple):
    architecture: int
    """``AUDIT_ARCH_…`` of ``linux/audit.h``."""
    fallocate: int
    seccomp: int


_NUMBERS: Mapping[str, _Numbers] = {
    "x86_64": _Numbers(0xC000003E, fallocate=285, seccomp=317),
    "aarch64": _Numbers(0xC00000B7, fallocate=47, seccomp=277),
}
"""Keys are what ``os.uname().machine`` says."""


class _Program(ctypes.Structure):
    """``struct sock_fprog``"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@dataclass
class _Vmm:
    memory: tuple[int, int]
    """Device and inode of the seed's memory."""
    second: int = 0
    answers: int = 0
    """Within that second."""
    is_waiting: bool = False
    """Whether it had its answers for this second."""


def assemble(numbers: tuple[int, int]) -> bytes:
    """The filter: calls of ``fallocate`` that punch a hole are asked about, all others are made.

    :param numbers: of the architecture and of ``fallocate``.
    """
    architecture, fallocate = numbers
    checks = ((_AT_ARCHITECTURE, architecture), (_AT_NUMBER, fallocate), (_AT_ARGUMENTS + 8, _PUNCH_HOLE))
    program = b""
    for left, (place, value) in zip((5, 3, 1), checks, strict=True):
        # (Both jumps count from the next instruction; the last two are the verdicts.)
        program += struct.pack("=HBBI", _LOAD, 0, 0, place)
        program += struct.pack("=HBBI", _JUMP_IF_EQUAL, 0, left, value)
    return program + struct.pack("=HBBI", _RETURN, 0, 0, _ASK) + struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)


def _install() -> int:
    """Put this thread under the filter; the descriptor on which is asked. :raise OSError: there is no such filter."""
    machine = os.uname().machine
    if machine not in _NUMBERS:
        raise OSError(f"no numbers of system calls are known for {machine}")
    numbers = _NUMBERS[machine]
    instructions = assemble((numbers.architecture, numbers.fallocate))
    program = _Program(len(instructions) // 8, instructions)
    arguments = (_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    words = [ctypes.c_long(word) for word in (numbers.seccomp, *arguments)]
    listener: int = _libc.syscall(*words, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


class PageReturns:
    """Those of all forks of a daemon. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answering: _Answering | None = None
        """From the first fork on."""
        self._is_closed = False

    def start(self, start: Callable[[], T], memory: int) -> T:
        """Call ``start``, which starts a VMM that maps the seed's ``memory`` (a descriptor, which stays the caller's).

        Where the kernel has no such filter it is started without, and keeps its pages.
        """
        status = os.fstat(memory)
        answering = self._begin()
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            listener = None
            try:
                try:
                    listener = None if answering is None else _install()
                except OSError as error:
                    _log.info("forks keep the pages that their guests free: %s", error)
                results.append(start())
                if listener is not None and answering is not None:
                    answering.watch(listener, _Vmm((status.st_dev, status.st_ino)))
            except BaseException as error:
                errors.append(error)
                if listener is not None:
                    os.close(listener)

        thread = threading.Thread(target=work, name="start-vmm")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _begin(self) -> _Answering | None:
        """Have somebody answer: from here, for what a thread under the filter starts is under it, too."""
        with self._lock:
            if self._answering is None and not self._is_closed:
                self._answering = _Answering()
            return self._answering

    def close(self) -> None:
        """Answer no more; machines keep their pages from now on. Idempotent."""
        with self._lock:
            self._is_closed = True
            answering, self._answering = self._answering, None
        if answering is not None:
            answering.end()


class _Answering:
    """The thread that answers, and what it answers."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._wake = os.eventfd(0)
        self._poll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self.watched: dict[int, _Vmm] = {}
        """By the descriptor on which it asks; ours."""
        self._thread = threading.Thread(target=self._serve, name="page-returns", daemon=True)
        self._thread.start()

    def watch(self, listener: int, vmm: _Vmm) -> None:
        with self._lock:
            self.watched[listener] = vmm
        self._poll.register(listener, select.EPOLLIN)

    def end(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for descriptor in (*self.watched, self._wake):
            os.close(descriptor)
        self.watched.clear()
        self._poll.close()

    # --- in the thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._lock:
                is_somebody_waiting = any(vmm.is_waiting for vmm in self.watched.values())
            for number, events in self._poll.poll(WAITING_POLL_S if is_somebody_waiting else None):
                if number == self._wake:
                    return
                if events & select.EPOLLIN:
                    self._answer(number)
                elif events & (select.EPOLLHUP | select.EPOLLERR):
                    self._forget(number)
            self._resume()

    def _answer(self, listener: int) -> None:
        vmm = self.watched[listener]
        second = int(time.monotonic())
        if second != vmm.second:
            vmm.second, vmm.answers = second, 0
        if vmm.answers >= ANSWERS_PER_S:
            vmm.is_waiting = True
            self._poll.modify(listener, 0)
            return
        vmm.answers += 1
        question = bytearray(_QUESTION.size)
        # Who asks may be killed at any time; then nobody waits for an answer.
        with suppress(OSError):
            fcntl.ioctl(listener, _RECEIVE, question)
            identity, thread, _, _, _, _, descriptor, *_ = _QUESTION.unpack(question)
            flags = 0 if _file(thread, descriptor & 0xFFFFFFFF) == vmm.memory else _CONTINUE
            fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(identity, 0, 0, flags)))

    def _resume(self) -> None:
        """Go on with those that had their answers, once the second is over."""
        second = int(time.monotonic())
        with self._lock:
            over = [number for number, vmm in self.watched.items() if vmm.is_waiting and vmm.second != second]
        for listener in over:
            self.watched[listener].is_waiting = False
            self._poll.modify(listener, select.EPOLLIN)

    def _forget(self, listener: int) -> None:
        """No process is left under the filter."""
        self._poll.unregister(listener)
        with self._lock:
            del self.watched[listener]
        os.close(listener)


def _file(thread: int, descriptor: int) -> tuple[int, int] | None:
    """Device and inode of what a descriptor of another process leads to; None: it cannot be seen."""
    try:
        status = Path(f"/proc/{thread}/fd/{descriptor}").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
