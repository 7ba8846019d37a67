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
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from insula.rpc.callers import REFUSED_BUSY, REFUSED_NOT_READY
from insula.rpc.exchange import Exchange, Sink, SinkFull, Source
from insula.rpc.lending import Loans
from insula.rpc.sockets import address
from insula_proto import qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import (
    ANSWER_LENGTHS,
    EXEC_CMDLINE,
    HELLO,
    JUST_EXEC,
    SERVICE_REFUSED,
    Decoder,
    ExecCmdline,
    Hello,
    JustExec,
    Message,
    ServiceRefused,
)

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


class OutputTooLong(RpcError, SinkFull):
    """More output than the caller is ready to hold; the command was ended."""


_REFUSALS: dict[bytes, type[CallRefused]] = {REFUSED_BUSY: QubeBusy, REFUSED_NOT_READY: AgentNotReady}


# --- the request ---------------------------------------------------------------------------------------------------


class Connection:
    """A call that was accepted: the data channel, and the connection that holds its port. Closing both ends it."""

    def __init__(self, session: socket.socket, data: socket.socket) -> None:
        self.session = session
        self.data = data

    def close(self) -> None:
        self.data.close()
        self.session.close()


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


async def _call(socket_path: Path, message: ExecCmdline | JustExec, source: Source, stdout: Sink, stderr: Sink) -> int:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT) as handshake:
            connection = await request_when_ready(socket_path, message)
            try:
                # The time limit is for the agent's HELLO; how long the command runs is the caller's business.
                on_greeted = partial(handshake.reschedule, None)
                loans = Loans(connection.session)
                return await Exchange(connection.data, loans, source, (stdout, stderr), on_greeted).run()
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
        return await _call(socket_path, message, Source(stdin), Sink(stdout), Sink(stderr))


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

    sinks = [Sink(None, partial(collect, buffer)) for buffer in buffers]
    async with asyncio.timeout(timeout):
        message = _request(ExecCmdline, user, command)
        code = await _call(socket_path, message, Source(None, stdin), *sinks)
    return code, bytes(buffers[0]), bytes(buffers[1])


async def run_detached(socket_path: Path, command: str, *, user: str = "root", timeout: float | None = None) -> None:
    """Start a command with nothing connected and return once it was started; its end is not waited for.

    :raise CallRefused: the agent could not start it. Otherwise as :func:`run`.
    """
    async with asyncio.timeout(timeout):
        code = await _call(socket_path, _request(JustExec, user, command), Source(None), Sink(None), Sink(None))
    if code:
        raise CallRefused(f"exit code {code}")
