"""The socket of the program that asks (qrexec §7, "Policy agent"): requests in, answers out.

One connection, one request. A question's connection stays open until it is answered; the asker hanging up withdraws it
(MC-24). Only the daemon's user and root are heard. Nothing is decided here: :class:`AgentServer` turns connections into
events and an answer into bytes.

Whatever is wrong with a request, its connection is closed without an answer, which the asker takes for *no*.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from insula.manager.prompt import Asked, Withdrawn
from insula.policy import agent
from insula.policy.agent import Notice, Notification, Question, Remark
from insula.rpc.sockets import address, hang_up
from insula_proto.errors import RemoteProtocolError

MAX_CONNECTIONS = 128
"""At a time; further ones are closed at once. More than questions that can be open, so that notices have room."""
REQUEST_TIMEOUT_S = 10.0
"""In which a whole request must arrive."""
WRITE_TIMEOUT_S = 10.0
BACKLOG = 64
READ_SIZE = 65536

_UCRED = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED)."""

_log = logging.getLogger("insula.prompt")

ServerEvent = Asked | Withdrawn | Notice | Remark | Notification


class AlreadyServed(Exception):
    """Another program asks the questions of this installation."""


class AgentServer:
    """``async with`` it: the socket exists inside; on the way out all open questions are left without an answer."""

    def __init__(self, path: Path, listener: Callable[[ServerEvent], None], *, uid: int | None = None) -> None:
        """
        :param listener: called in the event loop for each event.
        :param uid: who may ask, besides root; by default the user this runs as.
        """
        self._path = path
        self._listener = listener
        self._allowed = frozenset({0, os.geteuid() if uid is None else uid})
        self._connections: set[asyncio.Task[None]] = set()
        self._open: dict[int, asyncio.Future[str | None]] = {}
        self._last_number = 0
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> AgentServer:
        """Listen.

        :raise AlreadyServed:
        :raise OSError: the folder cannot be written to.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_only_one(self._path.with_suffix(".lock")))
            stack.push_async_callback(self._end_connections)
            listening = stack.enter_context(_listening(self._path))
            server = await asyncio.start_unix_server(self._accept, sock=listening, backlog=BACKLOG)
            stack.callback(server.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def answer(self, number: int, target: str | None) -> None:
        """Answer a question, once. One that is gone is passed over."""
        waiting = self._open.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(target)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            _log.warning("a connection was refused: %d are open", MAX_CONNECTIONS)
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="policy agent connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # A task cancelled before its first step never runs its own clean-up; on a closed transport this does nothing.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _end_connections(self) -> None:
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        try:
            uid = _peer_uid(connection)
            if uid not in self._allowed:
                _log.warning("user %d may not ask here", uid)
                return
            untrusted_data = await _whole(reader)
            if not untrusted_data:  # somebody looked whether anybody is here
                return
            request = agent.decode(untrusted_data)
            match request:
                case Notice() | Remark() | Notification():
                    self._listener(request)
                case Question():
                    await self._ask(request, connection, writer)
        except (RemoteProtocolError, TimeoutError, ConnectionError) as error:
            _log.warning("a request was not understood: %s", error or "it took too long")
        finally:
            writer.close()

    async def _ask(self, question: Question, connection: socket.socket, writer: asyncio.StreamWriter) -> None:
        self._last_number += 1
        number = self._last_number
        waiting: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._open[number] = waiting
        try:
            with hang_up(connection) as gone:
                self._listener(Asked(number, question))
                either: set[asyncio.Future[Any]] = {waiting, gone}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                _log.info("the question of %s was withdrawn", question.source)
                return
            target = waiting.result()
            _log.info("%s, %s: %s", question.source, question.service, "denied" if target is None else target)
            writer.write(agent.encode_answer(target))
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await writer.drain()
        finally:
            # Without an answer: also when the program ends.
            if self._open.pop(number, None) is not None:
                self._listener(Withdrawn(number))


async def _whole(reader: asyncio.StreamReader) -> bytes:
    """:raise RemoteProtocolError: too long. :raise TimeoutError:"""
    untrusted_data = bytearray()
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        while untrusted_part := await reader.read(READ_SIZE):
            untrusted_data += untrusted_part
            if len(untrusted_data) > agent.MAX_REQUEST:
                raise RemoteProtocolError(f"longer than {agent.MAX_REQUEST} bytes")
    return bytes(untrusted_data)


def _peer_uid(connection: socket.socket) -> int:
    _pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """:raise AlreadyServed:"""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed("another program asks already") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket file left by a program that was killed is replaced: the lock says that it is dead."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        with address(path) as bindable:
            listening.bind(bindable)
        try:
            # Nobody can connect before listen(), so there is no moment with wider permissions.
            path.chmod(0o600)
            listening.setblocking(False)
            yield listening
        finally:
            path.unlink(missing_ok=True)
