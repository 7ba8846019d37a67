"""Running a command in a qube: the caller's end, for the daemon, the command line and tests.

:func:`run` joins the command to descriptors of the caller, :func:`run_collect` to bytes, :func:`run_detached` to
nothing. Cancelling any of them (or a timeout) closes the connection: the agent sends SIGHUP, and SIGKILL 2 s later.

What arrives was written by the qube; it is decoded by :class:`insula_proto.qrexec_channel.CallerEnd` and its bytes go
to the caller's descriptors as they are. A terminal must be protected from them by whoever shows them there.

::

    RpcError
    ├── SessionUnavailable    nobody serves the qube's rpc.sock
    └── CallRefused           the session refused, and says why
        ├── QubeBusy          too many calls at once (MC-15): try again later
        └── AgentNotReady     the qube's agent has not answered yet, or is lost
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from insula.rpc.callers import REFUSED_BUSY, REFUSED_NOT_READY
from insula.rpc.sockets import address
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import (
    ANSWER_LENGTHS,
    EXEC_CMDLINE,
    EXIT_CHANNEL_LOST,
    HELLO,
    JUST_EXEC,
    SERVICE_REFUSED,
    Decoder,
    ExecCmdline,
    ExitCode,
    Hello,
    JustExec,
    Message,
    ServiceRefused,
    Stderr,
    Stdout,
)
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
MAX_PIECES = 1024
"""That sendmsg(2) takes at once (IOV_MAX); an old version has small messages."""
HANDSHAKE_TIMEOUT = 60.0
"""Seconds the session has to answer, and then the agent to say HELLO: it is software-emulated and may be busy."""
READY_PATIENCE_S = 3.0
"""How long a call is asked for again while the agent is not ready."""
READY_POLL_S = 0.1
DEFAULT_COLLECT_LIMIT = 64 * 1024 * 1024
"""Bytes of stdout and stderr together that :func:`run_collect` takes, if not told otherwise."""


class RpcError(Exception):
    """Base of what can go wrong before the command runs."""


class SessionUnavailable(RpcError):
    """The qube has no session: it does not run, or its session is being replaced.

    If the session died between request and answer, the command may have been started; the agent ends it then.
    """


class CallRefused(RpcError):
    """``reason`` is the session's word for why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the call was refused: {reason}")
        self.reason = reason


class QubeBusy(CallRefused):
    """The qube runs as many calls as it may."""


class AgentNotReady(CallRefused):
    """The qube's agent is not there (yet)."""


class OutputTooLong(RpcError):
    """More output than the caller is ready to hold; the command was ended."""


_REFUSALS: dict[bytes, type[CallRefused]] = {REFUSED_BUSY: QubeBusy, REFUSED_NOT_READY: AgentNotReady}


# --- the request ---------------------------------------------------------------------------------------------------


class Connection:
    """A call that was accepted: the data channel, and the connection that holds its port. Closing both ends it."""

    def __init__(self, session: socket.socket, data: socket.socket) -> None:
        self._session = session
        self.data = data

    def close(self) -> None:
        self.data.close()
        self._session.close()


async def connect(socket_path: Path) -> socket.socket:
    """Return a connection to a qube's session. :raise SessionUnavailable:"""
    session = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    session.setblocking(False)
    try:
        with address(socket_path) as where:
            await asyncio.get_running_loop().sock_connect(session, where)
    except OSError as error:
        session.close()
        raise SessionUnavailable(f"{socket_path}: {error}") from error
    except BaseException:
        session.close()
        raise
    return session


async def request_when_ready(socket_path: Path, message: ExecCmdline | JustExec) -> Connection:
    """Connect and ask for a call. What the agent is not ready for has not begun and is asked for again a few times: a
    session that just replaced another needs a moment to find its agent.

    :raise SessionUnavailable, CallRefused:
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_PATIENCE_S
    while True:
        try:
            return await request(await connect(socket_path), message)
        except AgentNotReady:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(READY_POLL_S)


async def request(session: socket.socket, message: ExecCmdline | JustExec) -> Connection:
    """Ask for a call on a fresh connection; takes it over. :raise SessionUnavailable, CallRefused:"""
    with ExitStack() as undo:
        undo.callback(session.close)
        try:
            # With our HELLO, which need not wait for the session's.
            request_bytes = qrexec.encode(Hello(qrexec.LOCAL_VERSION)) + qrexec.encode(message)
            await asyncio.get_running_loop().sock_sendall(session, request_bytes)
            answer, descriptors = await _receive_answer(session, undo)
        except (OSError, RemoteProtocolError) as error:
            raise SessionUnavailable(str(error)) from error
        if isinstance(answer, ServiceRefused):
            reason = answer.ident.decode("ascii", "replace")
            raise _REFUSALS.get(answer.ident, CallRefused)(reason)
        if len(descriptors) != 1:
            raise SessionUnavailable(f"the session sent {len(descriptors)} descriptors")
        undo.pop_all()
        return Connection(session, descriptors[0])


async def _receive_answer(session: socket.socket, undo: ExitStack) -> tuple[Message, list[socket.socket]]:
    """Return the answer and the descriptors that came with it, which ``undo`` closes."""
    decoder = Decoder(qrexec.lengths(HELLO))
    descriptors: list[socket.socket] = []
    while True:
        data, received = await _receive_with_descriptors(session)
        for descriptor in received:
            undo.callback(descriptor.close)
        descriptors += received
        if not data:
            raise ConnectionError("the session closed the connection")
        answer = _answer(decoder, data)
        if answer is not None:
            return answer, descriptors


def _answer(decoder: Decoder, data: bytes) -> Message | None:
    """The session's answer if it is complete; HELLO before it is checked and left out."""
    position = 0
    while position < len(data):
        end = position + decoder.missing
        for message in decoder.receive(data[position:end]):
            if not isinstance(message, Hello):
                return message
            qrexec.negotiate(message.version, qrexec.LOCAL_VERSION)
            decoder.allowed = {
                EXEC_CMDLINE: ANSWER_LENGTHS,
                JUST_EXEC: ANSWER_LENGTHS,
                **qrexec.lengths(SERVICE_REFUSED),
            }
        position = end
    return None


async def _receive_with_descriptors(session: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """recvmsg(2) when there is something; the loop has no method for ancillary data."""
    space = socket.CMSG_SPACE(array.array("i").itemsize)
    while True:
        try:
            data, ancillary, _, _ = session.recvmsg(4096, space)
        except BlockingIOError:
            await _readable(session)
            continue
        numbers = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
        return data, [socket.socket(fileno=number) for number in numbers]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fd = connection.fileno()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# --- the call ------------------------------------------------------------------------------------------------------


class _Source:
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


class _Sink:
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
        """Take bytes, views maybe; those for a watchable descriptor wait in :attr:`pending`."""
        if self._collect is not None:
            for piece in pieces:
                self._collect(piece)
        elif self._fd is None:
            return
        elif self.is_watchable:
            for piece in pieces:
                self.pending += piece
        else:
            left = list(pieces)
            while left:
                written = os.writev(self._fd, left[:MAX_PIECES])
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]

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


class _Exchange:
    """One call's data channel between socket, source and sinks; callbacks on the loop, nothing unbounded.

    The channel is read only while no output waits, the source only while nothing waits for the channel.
    """

    def __init__(
        self,
        connection: socket.socket,
        source: _Source,
        sinks: tuple[_Sink, _Sink],
        on_greeted: Callable[[], None],
    ) -> None:
        """``sinks`` are those of stdout and stderr; ``on_greeted`` is called once the agent has said HELLO."""
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._connection = connection
        self._buffer = memoryview(bytearray(READ_SIZE))
        # The number, because asyncio words an error with the socket's addresses for each one it does not know yet.
        self._fd = connection.fileno()
        self._waits_for_room = False
        self._source = source
        self._sinks = sinks
        self._loop = asyncio.get_running_loop()
        self._protocol = CallerEnd()
        self._outgoing: list[bytes | memoryview] = [self._protocol.hello()]
        self._stdin_open = True
        self._writing: set[_Sink] = set()
        self._result: asyncio.Future[int] = self._loop.create_future()
        self._on_greeted = on_greeted

    async def run(self) -> int:
        """Return the exit code; 255 if the channel closed before one came. :raise: what a sink raises."""
        self._loop.add_reader(self._fd, self._receive)
        self._send()
        try:
            return await self._result
        finally:
            self._loop.remove_reader(self._fd)
            self._stop_waiting()
            self._unwatch_source()
            for sink in tuple(self._writing):
                self._loop.remove_writer(sink.fd)

    def _finish(self, code: int) -> None:
        """Give the result once the sinks have everything."""
        self._loop.remove_reader(self._fd)
        self._unwatch_source()
        self._stdin_open = False
        self._exit_code = code
        if not self._writing and not self._result.done():
            self._result.set_result(code)

    _exit_code: int | None = None

    # from the qube

    def _receive(self) -> None:
        try:
            size = self._connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._finish(EXIT_CHANNEL_LOST)
            return
        try:
            untrusted_view = self._buffer[:size]
            output: list[bytes | memoryview] = []
            taken = self._protocol.take_stdout(untrusted_view, output)  # type: ignore[arg-type] # a view reads like bytes
            if output:
                self._put(self._sinks[0], *output)
            if taken < size:
                for message in self._protocol.receive(untrusted_view[taken:]):  # type: ignore[arg-type]
                    self._take(message)
        except RemoteProtocolError:
            self._finish(EXIT_CHANNEL_LOST)
        except (OSError, RpcError) as error:
            if not self._result.done():
                self._result.set_exception(error)

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

    def _put(self, sink: _Sink, *pieces: bytes | memoryview) -> None:
        sink.put(*pieces)
        if sink.pending and sink not in self._writing:
            self._writing.add(sink)
            self._loop.remove_reader(self._fd)
            self._loop.add_writer(sink.fd, self._write_sink, sink)

    def _write_sink(self, sink: _Sink) -> None:
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
            self._loop.add_reader(self._fd, self._receive)

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


async def _call(
    socket_path: Path, message: ExecCmdline | JustExec, source: _Source, stdout: _Sink, stderr: _Sink
) -> int:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT) as handshake:
            connection = await request_when_ready(socket_path, message)
            try:
                # The time limit is for the agent's HELLO; how long the command runs is the caller's business.
                on_greeted = partial(handshake.reschedule, None)
                return await _Exchange(connection.data, source, (stdout, stderr), on_greeted).run()
            finally:
                connection.close()
    finally:
        source.close()
        stdout.close()
        stderr.close()


def _request(kind: type[ExecCmdline | JustExec], user: str, command: str) -> ExecCmdline | JustExec:
    if ":" in user or not user:
        raise ValueError(f"not a user name: {user!r}")
    return kind(0, 0, f"{user}:{command}".encode())


async def run(
    socket_path: Path,
    command: str,
    *,
    user: str = "DEFAULT",
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    timeout: float | None = None,
) -> int:
    """Run a shell command (or ``QUBESRPC …``) in a qube, joined to the caller's descriptors, and return its exit code.

    The descriptors stay the caller's, their blocking mode included; None is the end of input, or nowhere. 125 to 127
    and 128 + N as in qrexec §2, 255 if the channel was lost before an exit code came.

    :raise RpcError: the command did not run. :raise TimeoutError: ``timeout`` seconds went by; it was ended.
    :raise OSError: writing to one of the descriptors failed; it was ended.
    """
    async with asyncio.timeout(timeout):
        message = _request(ExecCmdline, user, command)
        return await _call(socket_path, message, _Source(stdin), _Sink(stdout), _Sink(stderr))


async def run_collect(
    socket_path: Path,
    command: str,
    *,
    user: str = "DEFAULT",
    stdin: bytes = b"",
    timeout: float | None = None,
    limit: int = DEFAULT_COLLECT_LIMIT,
) -> tuple[int, bytes, bytes]:
    """Run a command with ``stdin`` as its input and return exit code, stdout, stderr.

    :raise OutputTooLong: more than ``limit`` bytes came; it was ended. Otherwise as :func:`run`.
    """
    buffers = (bytearray(), bytearray())

    def collect(buffer: bytearray, data: bytes | memoryview) -> None:
        if len(buffers[0]) + len(buffers[1]) + len(data) > limit:
            raise OutputTooLong(f"more than {limit} bytes of output")
        buffer += data

    sinks = [_Sink(None, partial(collect, buffer)) for buffer in buffers]
    async with asyncio.timeout(timeout):
        message = _request(ExecCmdline, user, command)
        code = await _call(socket_path, message, _Source(None, stdin), *sinks)
    return code, bytes(buffers[0]), bytes(buffers[1])


async def run_detached(socket_path: Path, command: str, *, user: str = "root", timeout: float | None = None) -> None:
    """Start a command with nothing connected and return once it was started; its end is not waited for.

    :raise CallRefused: the agent could not start it. Otherwise as :func:`run`.
    """
    async with asyncio.timeout(timeout):
        code = await _call(socket_path, _request(JustExec, user, command), _Source(None), _Sink(None), _Sink(None))
    if code:
        raise CallRefused(f"exit code {code}")
