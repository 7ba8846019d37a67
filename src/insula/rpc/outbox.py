"""Messages on their way to a session process: sent at once while it reads, else kept in order, up to a limit.

A message may carry one descriptor, which is closed here once the kernel has passed it on (or never will).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from typing import Protocol

MAX_QUEUED = 1024
"""Messages a session has not taken: it reads nothing any more. Far more than all answers to one qube's requests."""


class Descriptor(Protocol):
    """An open file of any kind, with one owner."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Outbox:
    """``connection`` is a SOCK_SEQPACKET socket, not blocking; it stays the caller's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, Descriptor | None]] = deque()
        self._drained: list[asyncio.Future[None]] = []
        self._is_closed = False

    def put(self, data: bytes, descriptor: Descriptor | None = None) -> None:
        """Send, or keep for later. Takes over ``descriptor``. :raise OSError: the session is gone, or does not read."""
        self._queue.append((data, descriptor))
        if self._is_closed:
            self._drop()
            raise BrokenPipeError(errno.EPIPE, "the session process is gone")
        if len(self._queue) > MAX_QUEUED:
            self.close()
            raise BlockingIOError(errno.EAGAIN, "the session process does not read")
        if len(self._queue) == 1:
            self._flush()

    async def drain(self) -> None:
        """Return once everything was sent. :raise OSError: the session is gone."""
        if self._queue and not self._is_closed:
            done: asyncio.Future[None] = self._loop.create_future()
            self._drained.append(done)
            await done
        if self._is_closed:
            raise BrokenPipeError(errno.EPIPE, "the session process is gone")

    def close(self) -> None:
        """Nothing more is sent; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_writer(self._connection)
            self._drop()
            self._wake()

    def _flush(self) -> None:
        try:
            while self._queue:
                data, descriptor = self._queue[0]
                if descriptor is None:
                    self._connection.send(data)
                else:
                    socket.send_fds(self._connection, [data], [descriptor.fileno()])
                    descriptor.close()
                self._queue.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._connection, self._writable)
        except OSError:
            self.close()
            raise
        else:
            self._loop.remove_writer(self._connection)
            self._wake()

    def _writable(self) -> None:
        try:
            self._flush()
        except OSError:
            return  # closed by it: whoever sends next, or waits, is told

    def _drop(self) -> None:
        for _, descriptor in self._queue:
            if descriptor is not None:
                descriptor.close()
        self._queue.clear()

    def _wake(self) -> None:
        waiting, self._drained = self._drained, []
        for done in waiting:
            if not done.done():
                done.set_result(None)
