"""The Admin API on a unix socket: reads one request a connection, answers, closes.

The only I/O of the API. Decoding is :mod:`insula_proto.admin`, checks are :mod:`insula.admin.dispatch`, work is
:mod:`insula.admin.handlers`. A caller learns of refusals by name; of anything unexpected it learns nothing (the
connection closes without a byte) and the log has it all.

Who calls is decided by the socket, never by the request: see :class:`Identity`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.admin.call import Answer, Stream, Upload
from insula.admin.dispatch import Dispatcher, PublishedError, published_error
from insula.events.bus import Overrun
from insula.events.types import Event
from insula.model.names import ADMIN_NAME
from insula.model.qube import Qube
from insula.rpc.sockets import hang_up
from insula_proto import admin
from insula_proto.admin import EventRecord, Request, RequestDecoder, RequestHead
from insula_proto.errors import RemoteProtocolError

REQUEST_TIMEOUT = 60.0
"""Seconds in which a whole request, or the next piece of a streamed payload, must arrive (MC-13)."""
WRITE_TIMEOUT = 60.0
"""Seconds a client may leave an answer unread before it is hung up on (MC-14)."""
LINGER_TIMEOUT = 30.0
"""Seconds that the rest of a refused stream is read and thrown away."""
MAX_CONNECTIONS = 512
"""At a time on one socket, event listeners included; further ones are closed at once (MC-107)."""
BACKLOG = 128
TURNS_TO_ACCEPT = 3
"""Turns of the loop from accepting a connection until it is handed to us; at the end those under way are waited for,
else nobody would close them."""
READ_SIZE = 65536

_UCRED = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED)."""

_log = logging.getLogger("insula.admin")


@dataclass(frozen=True)
class PeerCredentials:
    """Of the process that connected, as the kernel has them."""

    pid: int
    uid: int
    gid: int


class CallerRefused(Exception):
    """The peer may not call, or not under this name. It gets no answer; the log says why."""


class Identity(Protocol):
    """Decides who speaks on one socket."""

    def admit(self, peer: PeerCredentials) -> None:
        """Called before anything is read. :raise CallerRefused:"""

    def confirm(self, peer: PeerCredentials, claimed: Qube) -> None:
        """Called with the qube the request names as its source. :raise CallerRefused:"""


class LocalIdentity:
    """For sockets of the host's own tools: the daemon's user or root, who may speak for dom0 only (MC-18, MC-108)."""

    def __init__(self, uid: int | None = None) -> None:
        """``uid``: whose tools these are; by default the daemon's."""
        self._allowed = frozenset({0, os.geteuid() if uid is None else uid})

    def admit(self, peer: PeerCredentials) -> None:
        if peer.uid not in self._allowed:
            raise CallerRefused(f"user {peer.uid} (process {peer.pid}) may not use this socket")

    def confirm(self, peer: PeerCredentials, claimed: Qube) -> None:
        if claimed.name != ADMIN_NAME:
            raise CallerRefused(f"process {peer.pid} of user {peer.uid} claims to be {claimed.name}, not dom0")


class AdminServer:
    """Serves one socket. ``async with`` it: the socket exists inside, connections are ended on the way out."""

    def __init__(self, dispatcher: Dispatcher, path: Path, identity: Identity) -> None:
        self._dispatcher = dispatcher
        self._path = path
        self._identity = identity
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> AdminServer:
        """Listen. A file left at the path by an earlier daemon is replaced; the daemon's lock says it is dead."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(self._path))
            # Nobody can connect before listen(), so there is no moment with wider permissions.
            self._path.chmod(0o600)
            listening.setblocking(False)
            self._server = await asyncio.start_unix_server(self._accept, sock=listening, backlog=BACKLOG)
        except BaseException:
            listening.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        for _turn in range(TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            _log.warning("a connection to %s was refused: %d are open", self._path.name, MAX_CONNECTIONS)
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(reader, writer), name=f"admin connection on {self._path.name}"
        )
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # A task cancelled before its first step never runs its own clean-up; on a closed transport this does nothing.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except CallerRefused as refusal:
            _log.warning("refused: %s", refusal)
        except (RemoteProtocolError, TimeoutError, ConnectionError) as error:
            _log.info("connection dropped: %s", error or "timed out")
        except Exception:  # the boundary: whatever went wrong, the caller learns nothing and others go on
            _log.exception("a call failed unexpectedly")
        finally:
            await _close(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call: read, check, run, answer. What the caller may know by name is answered here."""
        peer = peer_credentials(writer.get_extra_info("socket"))
        self._identity.admit(peer)
        decoder = RequestDecoder()
        async with asyncio.timeout(REQUEST_TIMEOUT):
            ended = await _read_head(reader, decoder)
        head = decoder.head
        streamed = head if head is not None and self._dispatcher.takes_stream(head.method) else None
        try:
            if streamed is not None:
                await self._upload(peer, streamed, _payload(decoder, reader, ended), writer)
            else:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    request = await _whole(reader, decoder, ended)
                await self._call(peer, request, writer)
        except PublishedError as error:
            type_name, message = published_error(error)
            _log.info("answered %s: %s", type_name, message)
            await _write(writer, admin.encode_failure(type_name, message))
            if streamed is not None:
                writer.write_eof()
                await _discard(reader)

    async def _call(self, peer: PeerCredentials, request: Request, writer: asyncio.StreamWriter) -> None:
        """Check and run one call and write its result.

        :raise PublishedError: to be answered by name; nothing was written yet.
        """
        source = self._source(peer, request.head)
        method, call = self._dispatcher.check(source, request.head, request.payload)
        match method.action:
            case Answer(run):
                result = await run(self._dispatcher.context, call)
                await _write(writer, admin.encode_success(result.encode()))
            case Stream(run_stream):
                await _send_events(writer, run_stream(self._dispatcher.context, call))
            case Upload():
                raise AssertionError("uploads are told apart before their payload is read")

    async def _upload(
        self,
        peer: PeerCredentials,
        head: RequestHead,
        untrusted_payload: AsyncGenerator[bytes, None],
        writer: asyncio.StreamWriter,
    ) -> None:
        """As :meth:`_call`, for methods whose payload is a stream."""
        async with contextlib.aclosing(untrusted_payload):
            source = self._source(peer, head)
            method, call = self._dispatcher.check(source, head, None)
            assert isinstance(method.action, Upload)
            result = await method.action.run(self._dispatcher.context, call, untrusted_payload)
        await _write(writer, admin.encode_success(result.encode()))

    def _source(self, peer: PeerCredentials, head: RequestHead) -> Qube:
        """:raise QubesVMNotFoundError, CallerRefused:"""
        source = self._dispatcher.find_qube(head.source)
        self._identity.confirm(peer, source)
        return source


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    return PeerCredentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


async def _read_head(reader: asyncio.StreamReader, decoder: RequestDecoder) -> bool:
    """Read until the request line is complete; returns whether the request ended with it."""
    while decoder.head is None:
        data = await reader.read(READ_SIZE)
        if not data:
            return True
        decoder.receive(data)
    return False


async def _whole(reader: asyncio.StreamReader, decoder: RequestDecoder, ended: bool) -> Request:
    while not ended and (untrusted_data := await reader.read(READ_SIZE)):
        decoder.receive(untrusted_data)
    return decoder.finish()


async def _payload(decoder: RequestDecoder, reader: asyncio.StreamReader, ended: bool) -> AsyncGenerator[bytes, None]:
    """The payload as it comes; paced by whoever takes it, since nothing is read ahead."""
    untrusted_start = decoder.stream_payload()
    if untrusted_start:
        yield untrusted_start
    while not ended:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            untrusted_data = await reader.read(READ_SIZE)
        if not untrusted_data:
            return
        yield untrusted_data


async def _discard(reader: asyncio.StreamReader) -> None:
    """Let a client that is still sending find its answer instead of a broken pipe."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_TIMEOUT):
            while await reader.read(READ_SIZE):
                pass


async def _send_events(writer: asyncio.StreamWriter, events: AsyncGenerator[Event, None]) -> None:
    """Write events until the generator ends or the client hangs up.

    A refusal before the first event is raised for the caller to answer by name; later the stream just ends.
    """
    started = False

    async def send() -> None:
        nonlocal started
        async with contextlib.aclosing(events):
            async for event in events:
                started = True
                await _write(writer, admin.encode_event(EventRecord(event.subject, event.name, event.kwargs)))

    sending = asyncio.create_task(send(), name="admin event stream")
    try:
        with hang_up(writer.get_extra_info("socket")) as gone:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    except Overrun:
        _log.warning("an event listener was too slow; its stream ends")
    except PublishedError:
        if not started:
            raise
        _log.exception("an event stream failed")
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    async with asyncio.timeout(WRITE_TIMEOUT):
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    try:
        writer.close()
        async with asyncio.timeout(WRITE_TIMEOUT):
            await writer.wait_closed()
    except (TimeoutError, ConnectionError):
        writer.transport.abort()
