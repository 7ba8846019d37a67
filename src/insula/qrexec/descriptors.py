"""Descriptors of this process that a :mod:`~insula.qrexec.relay` reads and writes, none of which blocks."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from functools import partial

MAX_PIECES = 64
"""Pieces in one writev(2) or sendmsg(2)."""

_VISIBLE = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r\b\a")
_CLEAN = bytes([byte if byte in _VISIBLE else ord("_") for byte in range(256)])
"""What becomes of bytes on their way to a terminal: those that could move the cursor or change its state are gone."""

Data = bytes | memoryview


class Poller:
    """poll(2) with handlers; not epoll, because input may be a file."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._interest: dict[int, int] = {}
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, interest: int, handler: Callable[[int], None]) -> None:
        """Repeat it to change the interest. Hang-ups are always told."""
        if self._interest.get(fd) != interest:
            self._poll.register(fd, interest)
            self._interest[fd] = interest
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        if self._interest.pop(fd, None) is not None:
            self._poll.unregister(fd)
            del self._handlers[fd]

    def step(self) -> None:
        for fd, events in self._poll.poll():
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)


class Modes:
    """How the standard descriptors were found: as long as this context lasts they do not block.

    They are not ours alone, so they get their mode back before they are closed, or at the end.
    """

    def __enter__(self) -> Modes:
        # All before the first is changed: two may be the same terminal.
        self._blocking = {fd: os.get_blocking(fd) for fd in (0, 1, 2)}
        for fd in self._blocking:
            os.set_blocking(fd, False)
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in tuple(self._blocking):
            self.restore(fd)

    def restore(self, fd: int) -> None:
        if fd in self._blocking:
            os.set_blocking(fd, self._blocking.pop(fd))

    def close(self, fd: int) -> None:
        self.restore(fd)
        os.close(fd)


class Local:
    """A descriptor of this process that is read (an inlet) or written; ``close`` ends its direction."""

    def __init__(self, fd: int, close: Callable[[], None]) -> None:
        self.fd = fd
        self._close = close
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._close()

    @classmethod
    def inherited(cls, fd: int, modes: Modes) -> Local:
        """Given to this process by the one that started it."""
        return cls(fd, partial(modes.close, fd))

    @classmethod
    def kept(cls, fd: int) -> Local:
        """As :meth:`inherited`, but this program says things there itself: it stays open."""
        return cls(fd, lambda: None)

    @classmethod
    def owned(cls, connection: socket.socket) -> Local:
        """Ours, and used in this direction only."""
        connection.setblocking(False)
        return cls(connection.fileno(), connection.close)

    @classmethod
    def halves(cls, connection: socket.socket) -> tuple[Local, Local]:
        """Both directions of one socket, to be read and to be written. It is closed with the second of them."""
        connection.setblocking(False)
        left = {socket.SHUT_RD, socket.SHUT_WR}

        def close(how: int) -> None:
            left.discard(how)
            if not left:
                connection.close()
                return
            try:
                connection.shutdown(how)
            except OSError:
                # The other end is gone, and this direction with it.
                return

        reading, writing = (cls(connection.fileno(), partial(close, how)) for how in (socket.SHUT_RD, socket.SHUT_WR))
        return reading, writing


class Outlet:
    """What is written to a descriptor, and what it has not taken yet."""

    def __init__(self, local: Local, *, is_cleaned: bool = False) -> None:
        """:param is_cleaned: replace what a terminal would act on."""
        self.local = local
        self._is_cleaned = is_cleaned
        self._pending: list[Data] = []
        self._is_ending = False

    @property
    def is_open(self) -> bool:
        return self.local.is_open

    @property
    def is_busy(self) -> bool:
        return bool(self._pending)

    def write(self, parts: list[Data]) -> None:
        if not self.is_open:
            return
        if self._is_cleaned:
            parts = [bytes(part).translate(_CLEAN) for part in parts]
        self._pending += parts
        self.flush()

    def flush(self) -> None:
        while self._pending and self.is_open:
            try:
                count = os.writev(self.local.fd, self._pending[:MAX_PIECES])
            except BlockingIOError:
                return
            except OSError:
                # Nobody reads it. That is no fault of the call: what else comes is dropped.
                self.close()
                return
            self._pending = drop(self._pending, count)
        if self._is_ending:
            self.close()

    def end(self) -> None:
        """Close it when all is written."""
        self._is_ending = True
        self.flush()

    def close(self) -> None:
        self._pending.clear()
        self.local.close()


def drop(parts: list[Data], count: int) -> list[Data]:
    """Parts without their first ``count`` bytes."""
    for index, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[index + 1 :]] if count else parts[index:]
        count -= len(part)
    return []
