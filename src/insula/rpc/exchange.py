"""One call's data channel at the caller's: bytes moved between its socket, memory that is lent, and descriptors."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable

from insula.rpc.lending import Loans
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import EXIT_CHANNEL_LOST, ExitCode, Hello, Message, Stderr, Stdout
from insula_proto.qrexec_channel import CallerEnd

READ_SIZE = 524288
"""Bytes taken from the channel at once."""
SEND_BUFFER = 1048576
"""Bytes the channel's socket is asked to hold of stdin, as far as this machine lets it: the session is woken once for
much of it, and fills a piece of shared memory."""
CHUNK_SIZE = limits.MUX_MAX_DATA - qrexec.HEADER.size
"""Bytes of stdin under one header: with it one frame of the channel to the guest, which then has nothing to join."""
SOURCE_CHUNKS = 4
"""So many of them are read and sent at once."""
PIPE_WRITE = select.PIPE_BUF
"""Bytes that a pipe or terminal reported writable takes without blocking (pipe(7)); its mode is the caller's to set. (A
pipe that can be opened anew takes all it has room for.)"""
LARGE = 262144
"""Bytes after which a call asks to be lent memory: most calls are over before."""
MAX_PIECES = 1024
"""That sendmsg(2) takes at once (IOV_MAX); an old version has small messages."""
_NOTHING = memoryview(b"")


class SinkFull(Exception):
    """Somebody collects output, and takes no more of it."""


class Source:
    """Where stdin comes from: a descriptor, bytes, or nothing."""

    def __init__(self, fd: int | None, data: bytes = b"") -> None:
        self._data = memoryview(data)
        # A copy, because a loop watches a descriptor number only once and others may share it.
        self._fd = None if fd is None else os.dup(fd)
        self.is_watchable = self._fd is not None and _is_watchable(self._fd)

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def read(self) -> bytes | memoryview:
        """Return some bytes, none at the end. :raise BlockingIOError: none now."""
        if self._fd is not None:
            return os.read(self._fd, SOURCE_CHUNKS * CHUNK_SIZE)
        part, self._data = self._data[: SOURCE_CHUNKS * CHUNK_SIZE], self._data[SOURCE_CHUNKS * CHUNK_SIZE :]
        return part

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Sink:
    """Where stdout or stderr goes: a descriptor, a buffer, or nowhere."""

    def __init__(self, fd: int | None, collect: Callable[[bytes | memoryview], None] | None = None) -> None:
        self._collect = collect
        own_pipe = -1 if fd is None else _open_pipe_anew(fd)
        self._fd = None if fd is None else own_pipe if own_pipe >= 0 else os.dup(fd)
        self.is_watchable = self._fd is not None and _is_watchable(self._fd)
        self._may_block = self.is_watchable and own_pipe < 0
        self.pending = bytearray()

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def put(self, *pieces: bytes | memoryview) -> None:
        """Take bytes, views maybe; what a watchable descriptor does not take at once waits in :attr:`pending`."""
        if self._collect is not None:
            for piece in pieces:
                self._collect(piece)
        elif self._fd is not None:
            for piece in pieces if self._may_block or self.pending else self._write_now(self._fd, list(pieces)):
                self.pending += piece

    def _write_now(self, fd: int, left: list[bytes | memoryview]) -> list[bytes | memoryview]:
        """Return what was not taken."""
        try:
            while left:
                written = os.writev(fd, left[:MAX_PIECES])
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except BlockingIOError:
            return left
        except (BrokenPipeError, ConnectionResetError):
            if not self.is_watchable:
                raise
            self.close()
            return []
        return left

    def write(self) -> None:
        """Write some; the descriptor is writable. Who reads no more gets no more."""
        try:
            with memoryview(self.pending) as view:
                written = os.write(self.fd, view[:PIPE_WRITE] if self._may_block else view)
            del self.pending[:written]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.pending.clear()
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open_pipe_anew(fd: int) -> int:
    """The same pipe by a description of our own, which does not block although others' do; -1: it is none that we may
    write to like that."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # Somebody else's, nobody reads it any more, or there is no /proc.
        return -1


def _is_watchable(fd: int) -> bool:
    """Whether epoll takes it; files and the like are always ready."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        return False
    with select.epoll() as probe:
        try:
            probe.register(fd, select.EPOLLIN)
        except PermissionError:
            # /dev/null, /dev/zero and other devices that do not poll.
            return False
    return True


class Exchange:
    """One call's data channel between socket, source and sinks; callbacks on the loop, nothing unbounded.

    The channel is read only while no output waits, the source only while nothing waits for the channel.
    """

    def __init__(
        self,
        connection: socket.socket,
        loans: Loans,
        source: Source,
        sinks: tuple[Sink, Sink],
        on_greeted: Callable[[], None],
    ) -> None:
        """``sinks`` are those of stdout and stderr; ``on_greeted`` is called once the agent has said HELLO."""
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._connection = connection
        self._buffer = memoryview(bytearray(READ_SIZE))
        # The number, because asyncio words an error with the socket's addresses for each one it does not know yet.
        self._fd = connection.fileno()
        self._loans = loans
        self._position = 0
        """Bytes of the data channel dealt with, those that were lent among them."""
        self._waits_for_room = False
        self._source = source
        self._sinks = sinks
        self._loop = asyncio.get_running_loop()
        self._protocol = CallerEnd()
        self._outgoing: list[bytes | memoryview] = [self._protocol.hello()]
        self._stdin_open = True
        self._writing: set[Sink] = set()
        self._result: asyncio.Future[int] = self._loop.create_future()
        self._on_greeted = on_greeted

    async def run(self) -> int:
        """Return the exit code; 255 if the channel closed before one came. :raise: what a sink raises."""
        self._listen()
        self._send()
        try:
            return await self._result
        finally:
            self._pause()
            self._stop_waiting()
            self._unwatch_source()
            for sink in tuple(self._writing):
                self._loop.remove_writer(sink.fd)

    def _finish(self, code: int) -> None:
        """Give the result once the sinks have everything."""
        self._pause()
        self._unwatch_source()
        self._stdin_open = False
        self._exit_code = code
        if not self._writing and not self._result.done():
            self._result.set_result(code)

    _exit_code: int | None = None

    # from the qube

    def _listen(self) -> None:
        self._loop.add_reader(self._fd, self._receive)
        if not self._loans.is_over:
            self._loop.add_reader(self._loans.fd, self._hear)

    def _pause(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self._loans.fd)

    def _receive(self) -> None:
        try:
            size = self._connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        # What was lent before these bytes was told before.
        self._hear(self._buffer[:size])
        if not size and self._exit_code is None:
            self._finish(EXIT_CHANNEL_LOST)

    def _hear(self, untrusted_view: memoryview = _NOTHING) -> None:
        """Take what was lent, each piece at its place before, between and behind these bytes."""
        try:
            self._loans.hear()
            if self._loans.is_over:
                self._loop.remove_reader(self._loans.fd)
            while True:
                ahead = self._loans.ahead(self._position)
                if ahead == 0:
                    self._take_loan()
                elif untrusted_view:
                    self._take_view(untrusted_view[:ahead])
                    untrusted_view = untrusted_view[ahead:] if ahead else _NOTHING
                else:
                    break
        except RemoteProtocolError:
            self._finish(EXIT_CHANNEL_LOST)
        except (OSError, SinkFull) as error:
            if not self._result.done():
                self._result.set_exception(error)

    def _take_loan(self) -> None:
        loan, untrusted_view = self._loans.take()
        self._take_view(untrusted_view)
        self._loans.give_back(loan)

    def _take_view(self, untrusted_view: memoryview) -> None:
        """:raise RemoteProtocolError, OSError, SinkFull:"""
        size = len(untrusted_view)
        self._position += size
        if self._position >= LARGE:
            self._loans.ask()
        output: list[bytes | memoryview] = []
        taken = self._protocol.take_stdout(untrusted_view, output)  # type: ignore[arg-type] # a view reads like bytes
        if output:
            self._put(self._sinks[0], *output)
        if taken < size:
            for message in self._protocol.receive(untrusted_view[taken:]):  # type: ignore[arg-type]
                self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Hello):
            self._on_greeted()
            self._pump_source()
        elif isinstance(message, (Stdout, Stderr)):
            sink = self._sinks[isinstance(message, Stderr)]
            if message.data:
                self._put(sink, message.data)
            elif not sink.pending:
                # Whoever reads the other end of a pipe of ours learns of the end now.
                sink.close()
        elif isinstance(message, ExitCode):
            self._finish(message.code if 0 <= message.code <= 255 else EXIT_CHANNEL_LOST)

    def _put(self, sink: Sink, *pieces: bytes | memoryview) -> None:
        sink.put(*pieces)
        if sink.pending and sink not in self._writing:
            self._writing.add(sink)
            self._pause()
            self._loop.add_writer(sink.fd, self._write_sink, sink)

    def _write_sink(self, sink: Sink) -> None:
        fd = sink.fd
        try:
            sink.write()
        except OSError as error:
            sink.pending.clear()
            if not self._result.done():
                self._result.set_exception(error)
        if sink.pending:
            return
        self._loop.remove_writer(fd)
        self._writing.discard(sink)
        if self._writing:
            return
        if self._exit_code is not None:
            self._finish(self._exit_code)
        else:
            self._listen()

    # to the qube

    def _unwatch_source(self) -> None:
        if self._source.is_watchable and self._stdin_open:
            self._loop.remove_reader(self._source.fd)

    def _pump_source(self) -> None:
        """Read stdin if nothing waits for the channel: when it is readable, or (files, bytes) at once."""
        if not self._stdin_open or self._outgoing or self._protocol.version is None:
            return
        if self._source.is_watchable:
            self._loop.add_reader(self._source.fd, self._read_source)
        else:
            self._read_source()

    def _read_source(self) -> None:
        try:
            data = self._source.read()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._unwatch_source()
        if data:
            self._outgoing = self._messages(memoryview(data))
        else:
            self._stdin_open = False
            self._outgoing = [self._protocol.stdin_end()]
        self._send()

    def _messages(self, data: memoryview) -> list[bytes | memoryview]:
        """As messages, not copied."""
        pieces: list[bytes | memoryview] = []
        size = min(CHUNK_SIZE, self._protocol.max_chunk)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            pieces += (self._protocol.stdin_header(len(part)), part)
        return pieces

    def _send(self) -> None:
        try:
            sent = self._connection.sendmsg(self._outgoing[:MAX_PIECES])
        except BlockingIOError:
            sent = 0
        except OSError:
            # The channel is gone; reading says so, after everything that came before.
            self._outgoing = []
            self._stdin_open = False
            self._stop_waiting()
            return
        while self._outgoing and sent >= len(self._outgoing[0]):
            sent -= len(self._outgoing.pop(0))
        if self._outgoing:
            self._outgoing[0] = self._outgoing[0][sent:]
            self._waits_for_room = True
            self._loop.add_writer(self._fd, self._send)
            return
        self._stop_waiting()
        # In a later turn of the loop, so that a large source does not keep everything else waiting.
        self._loop.call_soon(self._pump_source)

    def _stop_waiting(self) -> None:
        if self._waits_for_room:
            self._waits_for_room = False
            self._loop.remove_writer(self._fd)
