"""A call of a local program on its way through the agent: bytes between a data stream and the program.

The program (``qrexec-client-vm``) is the end of the data channel; nothing is looked at here, and nothing said but what
is read of an input that it gave us because that has proved large (:mod:`insula_agent.requests`): then the bytes need
not pass through the program. It has a socket, or two
pipes if it takes them: pages then go from its input to the port without being copied (:mod:`insula_agent.conveyor`),
and each side is woken once for many of them. As in :mod:`insula_agent.calls` nothing is buffered without bound: what
came is granted again only after the program took it, and the program is read only while the stream has room. There is
no half-close (reference: vchan): a program that hangs up before the other end has finished wants the call ended.
"""

from __future__ import annotations

import os

from insula_agent import conveyor, sockets
from insula_agent.loop import HANGUP, READ, WRITE, Loop
from insula_agent.pieces import drop
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams
from insula_proto import limits, qrexec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL_SIZE = 1048576
"""Bytes a program's data channel holds each way, where root says so."""


class Ends:
    """The two sides of a program's data channel. ``theirs`` are passed to it and closed here then: one socket, or the
    pipe it reads and the pipe it writes."""

    __slots__ = ("is_socket", "sink", "source", "theirs")
    theirs: tuple[int, ...]

    def __init__(self, *, has_pipes: bool) -> None:
        """:raise OSError: there are no more descriptors."""
        self.is_socket = not has_pipes
        if has_pipes:
            their_input, self.sink = os.pipe2(os.O_CLOEXEC)
            try:
                self.source, their_output = os.pipe2(os.O_CLOEXEC)
            except OSError:
                os.close(their_input)
                os.close(self.sink)
                raise
            self.theirs = (their_input, their_output)
            for fd in (self.sink, their_output):
                conveyor.enlarge(fd, CHANNEL_SIZE)
        else:
            ours, theirs = sockets.pair(CHANNEL_SIZE)
            self.source = ours.detach()
            self.sink = os.dup(self.source)
            self.theirs = (theirs.detach(),)
        for fd in (self.source, self.sink):
            os.set_blocking(fd, False)

    def passed(self) -> None:
        """They are the program's now."""
        for fd in self.theirs:
            os.close(fd)


def _no_header(size: int) -> bytes:
    del size
    return b""


def _input_header(size: int) -> bytes:
    return qrexec.HEADER.pack(qrexec.STDIN, size)


class Relay(StreamHandler):
    """Owns our side of ``ends``; ``on_end`` is called once, when all is over."""

    def __init__(self, loop: Loop, link: Streams, stream: int, ends: Ends, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._link = link
        self._stream = stream
        self._ends = ends
        self._source = ends.source
        self._input = -1
        """The program's, read here."""
        self._sink = ends.sink
        """-1 when nothing more goes to the program."""
        self._on_end = on_end
        self._queue: list[bytes | memoryview] = []
        """From the stream, not taken by the program yet; at most the stream's window."""
        self._unconsumed = 0
        self._has_host_finished = False
        self._is_closed = False
        self._is_blocked = False
        """The stream has no room; it will say when it has."""
        self._watch_source()

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
        self._close_input()
        self._deliver()
        # Its end counts, whether or not the stream has room.
        self._watch_source()

    def closed(self, stream: int, code: int) -> None:
        del stream, code
        if not self._is_closed:
            self._deliver()
        if not self._is_closed:
            self._close()

    def writable(self, stream: int) -> None:
        del stream
        self._is_blocked = False
        if not self._is_closed and not self._ends.is_socket and not self._has_host_finished:
            # Much may wait already: then the loop need not be asked whether anything does.
            if self._input < 0:
                self._link.convey(self._stream, self._source, _no_header, is_framed=True)
            elif not conveyor.waiting(self._source):
                self._link.convey(self._stream, self._input, _input_header)
        self._watch_source()

    def _deliver(self, events: int = 0) -> None:
        if self._is_closed or self._sink < 0:
            return
        try:
            while self._queue:
                drop(self._queue, conveyor.write(self._sink, self._queue))
        except BlockingIOError:
            self._loop.watch(self._sink, WRITE, self._deliver)
            return
        except OSError:
            self._program_gone()
            return
        if events & HANGUP:
            # Nobody reads any more. What the program may have said before that is for a call that is over.
            self._program_gone()
            return
        # Without interest: that the program goes away is noticed all the same.
        self._loop.watch(self._sink, 0, self._deliver)
        count, self._unconsumed = self._unconsumed, 0
        self._link.consumed(self._stream, count)
        if self._has_host_finished:
            # The program reads the end behind all that came; it closes when it is done.
            self._end_sink()

    def _end_sink(self) -> None:
        if self._sink >= 0:
            sink, self._sink = self._sink, -1
            self._loop.forget(sink)
            if self._ends.is_socket:
                sockets.shut(sink, sockets.SHUT_WR)
            os.close(sink)

    # --- from the program ----------------------------------------------------------------------------------------

    def _watch_source(self) -> None:
        if self._is_closed:
            return
        if self._has_host_finished or self._link.has_room(self._stream):
            self._loop.watch(self._source, READ, self._read)
            if self._input >= 0:
                self._loop.watch(self._input, READ, self._read_input)
        else:
            self._loop.forget(self._source)
            self._loop.forget(self._input)
            if not self._is_blocked:
                self._is_blocked = True
                self._link.notify_writable(self._stream)

    def _read(self, events: int) -> None:
        del events
        if self._is_closed:
            return
        if self._has_host_finished:
            # Nobody is there to take it; what counts is the end.
            room = limits.MUX_MAX_DATA
        elif not self._ends.is_socket and self._link.convey(self._stream, self._source, _no_header, is_framed=True):
            self._watch_source()
            return
        else:
            room = min(self._link.writable(self._stream), limits.MUX_MAX_DATA)
        try:
            data = os.read(self._source, room) if room else None
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data:
            if not self._has_host_finished:
                self._link.send(self._stream, data)
        elif data is not None:
            self._program_gone()
        self._watch_source()

    def take_input(self, given: int) -> bool:
        """Read the program's input from now on, by a descriptor of our own; False: it cannot be read here."""
        if self._is_closed or self._has_host_finished or self._input >= 0:
            return False
        self._input = conveyor.open_anew(given)
        if self._input < 0:
            return False
        conveyor.enlarge(self._input, CHANNEL_SIZE)
        self._watch_source()
        return True

    def _read_input(self, events: int) -> None:
        del events
        if self._is_closed or self._input < 0 or not self._link.has_room(self._stream):
            return
        if conveyor.waiting(self._source):
            # What the program said before it gave its input goes first.
            self._read(READ)
            return
        if not self._link.convey(self._stream, self._input, _input_header):
            room = min(self._link.writable(self._stream), limits.MUX_MAX_DATA) - qrexec.HEADER.size
            try:
                data = os.read(self._input, room)
                self._link.send(self._stream, _input_header(len(data)), data)
                if not data:
                    # Its end was said with that.
                    self._close_input()
            except BlockingIOError:
                pass
        self._watch_source()

    def _close_input(self) -> None:
        if self._input >= 0:
            self._loop.forget(self._input)
            os.close(self._input)
            self._input = -1

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
        self._close_input()
        self._queue.clear()
        self._loop.forget(self._source)
        os.close(self._source)
        if self._sink >= 0:
            self._loop.forget(self._sink)
            os.close(self._sink)
            self._sink = -1
        self._on_end()
