"""A call of a local program on its way through the agent: bytes between a data stream and the program's socket.

The program (``qrexec-client-vm``) is the end of the data channel; nothing is looked at here. As in
:mod:`insula_agent.calls` nothing is buffered without bound: what came is granted again only after the program took it,
and the program is read only while the stream has room. There is no half-close (reference: vchan): a program that hangs
up before the other end has finished wants the call ended.
"""

from __future__ import annotations

import os

from insula_agent import sockets
from insula_agent.loop import READ, WRITE, Loop
from insula_agent.pieces import MAX_PIECES, drop
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams
from insula_proto import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.sockets import Socket


def _no_header(size: int) -> bytes:
    del size
    return b""


class Relay(StreamHandler):
    """Owns ``connection``, our end of the program's socket; ``on_end`` is called once, when all is over."""

    def __init__(self, loop: Loop, link: Streams, stream: int, connection: Socket, on_end: Callable[[], None]) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._link = link
        self._stream = stream
        self._connection = connection
        self._fd = connection.fileno()
        self._on_end = on_end
        self._queue: list[bytes | memoryview] = []
        """From the stream, not taken by the program yet; at most the stream's window."""
        self._unconsumed = 0
        self._has_host_finished = False
        self._is_closed = False
        self._is_blocked = False
        """The stream has no room; it will say when it has."""
        self._watch()

    # --- from the stream -----------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        del stream
        self._unconsumed += len(data)
        self._queue.append(data)

    def data_end(self, stream: int) -> None:
        del stream
        self._deliver()
        # What could not be written outlives the buffer it is in.
        self._queue = [rest if isinstance(rest, bytes) else bytes(rest) for rest in self._queue]

    def fin(self, stream: int) -> None:
        del stream
        self._has_host_finished = True
        self._deliver()

    def closed(self, stream: int, code: int) -> None:
        del stream, code
        if not self._is_closed:
            self._deliver()
            self._close()

    def writable(self, stream: int) -> None:
        del stream
        self._is_blocked = False
        self._watch()

    def _deliver(self) -> None:
        if self._is_closed:
            return
        try:
            while self._queue:
                drop(self._queue, os.writev(self._fd, self._queue[:MAX_PIECES]))
        except BlockingIOError:
            pass
        except OSError:
            self._program_gone()
            return
        if not self._queue:
            count, self._unconsumed = self._unconsumed, 0
            self._link.consumed(self._stream, count)
            if self._has_host_finished:
                # The program reads the end behind all that came; it closes when it is done.
                self._connection.shutdown(sockets.SHUT_WR)
        self._watch()

    # --- from the program ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._is_closed:
            return
        interest = WRITE if self._queue else 0
        if not self._is_blocked:
            if self._has_host_finished or self._link.has_room(self._stream):
                interest |= READ
            else:
                self._is_blocked = True
                self._link.notify_writable(self._stream)
        if interest:
            self._loop.watch(self._fd, interest, self._ready)
        else:
            self._loop.forget(self._fd)

    def _ready(self, events: int) -> None:
        if self._queue and events & WRITE:
            self._deliver()
        if not self._is_closed and not self._is_blocked and events & ~WRITE:
            self._read()

    def _read(self) -> None:
        if self._has_host_finished:
            # Nobody is there to take it; what counts is the end.
            room = limits.MUX_MAX_DATA
        elif self._link.convey(self._stream, self._fd, _no_header):
            self._watch()
            return
        else:
            room = min(self._link.writable(self._stream), limits.MUX_MAX_DATA)
        try:
            data = os.read(self._fd, room) if room else None
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data:
            if not self._has_host_finished:
                self._link.send(self._stream, data)
        elif data is not None:
            self._program_gone()
        self._watch()

    def _program_gone(self) -> None:
        if self._is_closed:
            return
        if self._has_host_finished and not self._queue:
            self._link.finish(self._stream)
        else:
            self._link.reset(self._stream, RESET_FAILED)
        self._close()

    def _close(self) -> None:
        self._is_closed = True
        self._queue.clear()
        self._loop.forget(self._fd)
        self._connection.close()
        self._on_end()
