"""What lifecycle uses: start the session of a qube, know when its agent is ready and why the session ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from insula.preload.forks import PreloadedParent
from insula.rpc.call_end import CallEnd
from insula.rpc.control import (
    MAX_NUMBER,
    AgentLost,
    AgentReady,
    Ask,
    CallAccepted,
    CallEnded,
    CallRejected,
    CallsChanged,
    Connect,
    Finish,
    FromSession,
    Host,
    KeyRemoved,
    KeyWritten,
    Memory,
    MemoryWanted,
    Payload,
    Refuse,
    RemoveKey,
    RequestCancelled,
    RequestDropped,
    Serve,
    ServiceRequested,
    SessionEnding,
    SetKey,
    Shutdown,
    ToSession,
)
from insula.rpc.sockets import address
from insula.rpc.spawn import SESSION_PROGRAM, SessionProcess, SessionSpec, spawn_session
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import Hello, Stdin

HOST_DOMAIN = 0
SHUTDOWN_TIMEOUT = 2.0
"""Seconds a session has to end by itself before it is killed."""
TELL_TIMEOUT = 60.0
"""Seconds a service of a qube has that the host calls for its own reasons."""
DISCARD_SIZE = 65536
LISTEN_BACKLOG = 512
DEFAULT_USER = "user"
DEFAULT_USER_KEY = "/default-user"

OpenMemory = Callable[[], Awaitable[int | None]]
"""Returns a descriptor, the caller's, of ``limits.BULK_SIZE`` bytes of memory that the qube's machine has, too, sealed;
None where it cannot have any."""

log = logging.getLogger("insula.rpc")


class Requests(Protocol):
    """Who decides about the services that qubes ask for (:class:`insula.rpc.broker.Broker`)."""

    def session_opened(self, session: RunningSession) -> None:
        """It will answer requests of its qube, and have it serve calls."""

    def requested(self, session: RunningSession, message: ServiceRequested) -> None:
        """To be answered once: by :meth:`RunningSession.refuse`, ``connect`` or ``host``."""

    def cancelled(self, session: RunningSession, request: int) -> None:
        """Nobody waits for that answer."""

    def dropped(self, session: RunningSession, message: RequestDropped) -> None:
        """The session itself refused a request."""

    def agent_lost(self, session: RunningSession) -> None:
        """None of its requests waits for an answer any more."""

    def session_closed(self, session: RunningSession) -> None:
        """As above, and it serves no more."""


class RunningSession:
    """A session process and what it last said. ``on_message`` sees every message, e.g. keys the guest wrote."""

    def __init__(
        self,
        name: str,
        qid: int,
        process: SessionProcess,
        requests: Requests | None = None,
        on_message: Callable[[str, FromSession], None] | None = None,
        open_memory: OpenMemory | None = None,
    ) -> None:
        """``requests``: None: whatever its qube asks for is refused. ``open_memory``: None: it shares none."""
        self._name = name
        self.qid = qid
        self._process = process
        self._requests = requests
        self._on_message = on_message
        self._ends: dict[int, CallEnd] = {}
        self._ready = asyncio.Event()
        self._reason = ""
        self.agent_version: int | None = None
        """qrexec version both speak; None while there is no agent."""
        self.calls = CallsChanged(0, 0, 0)
        """Counters of calls."""
        self._own_calls = itertools.count(MAX_NUMBER, -1)
        """Numbers of calls of the host's own: the broker counts from the other end."""
        self.written: dict[str, bytes] = {}
        """Keys its qube has set and not removed: any bytes a qube likes."""
        self._open_memory = open_memory
        self._memory: asyncio.Task[None] | None = None
        self._listener = asyncio.create_task(self._listen(), name=f"session {name}")

    @property
    def name(self) -> str:
        """Of the qube."""
        return self._name

    @property
    def pid(self) -> int:
        """Process id of the session on the host."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether its agent is there."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Return once commands can be run. :raise ConnectionError: the session ended first."""
        # An agent may be lost again before whoever waits for it is run.
        while not self._ready.is_set():
            ready = asyncio.create_task(self._ready.wait(), name=f"session {self._name} ready")
            try:
                await asyncio.wait((ready, self._listener), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()
            if self._listener.done():
                raise ConnectionError(f"session of {self._name} ended: {await self.wait_closed()}")

    async def wait_closed(self) -> str:
        """Return why the session ended, once it has; may be awaited by many."""
        await asyncio.shield(self._listener)
        return self._reason

    async def set_key(self, path: str, value: bytes) -> None:
        """Tell the qube a key that is new or has changed. :raise OSError: the session is gone."""
        await self._process.send(SetKey(path, value))

    async def remove_key(self, path: str) -> None:
        """Tell the qube that a key is gone. :raise OSError: the session is gone."""
        await self._process.send(RemoveKey(path))

    # --- calls between qubes -------------------------------------------------------------------------------------

    def refuse(self, request: int) -> None:
        """Answer a request: no."""
        self._tell(Refuse(request))

    def connect(self, request: int, call: int, domain: int, service: socket.socket) -> CallEnd:
        """Answer a request: its qube is joined to ``service``, which is taken over."""
        return self._open(call, Connect(request, call, domain), service)

    def host(self, request: int, call: int, limit: int, output: socket.socket, *, is_stream: bool = False) -> CallEnd:
        """Answer a request: the host serves it. What is read from ``output``, taken over, is told to the caller.

        ``is_stream``: and what the caller says is written there, instead of being collected up to ``limit``.
        """
        return self._open(call, Host(request, call, limit, is_stream), output)

    def finish(self, call: int, code: int, last_words: bytes = b"") -> None:
        """How a service of the host ended."""
        self._tell(Finish(call, code, last_words))

    async def tell_service(self, service: str, words: bytes, user: str = "root") -> None:
        """Have the qube run one of its services with ``words`` as its input; return when that is over.

        What it answers is thrown away unseen.

        :raise ConnectionError: no agent is there. :raise TimeoutError: it takes too long and was hung up.
        """
        if not self.is_ready:
            raise ConnectionError(f"no agent of {self._name} is there")
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            # An empty one is the end, of which there is one.
            messages = (Hello(qrexec.VERSION), *([Stdin(words)] if words else []), Stdin(b""))
            await loop.sock_sendall(ours, b"".join(map(qrexec.encode, messages)))
            end = self.serve(next(self._own_calls), HOST_DOMAIN, user, f"QUBESRPC {service} dom0".encode(), theirs)
            async with asyncio.timeout(TELL_TIMEOUT):
                while await loop.sock_recv(ours, DISCARD_SIZE):
                    pass
        await end.ended

    async def ask_service(self, service: str, words: bytes, limit: int) -> bytes | None:
        """Have the qube run one of its services, as its default user, with ``words`` as its input.

        Returns what it answers, any bytes a qube likes; None: it did not end well, or says more than ``limit`` bytes.
        Cancelling ends the service.

        :raise ConnectionError: no agent is there, or it has gone.
        """
        if not self.is_ready:
            raise ConnectionError(f"no agent of {self._name} is there")
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            call, command = next(self._own_calls), f"QUBESRPC {service} dom0".encode()
            end = self._open(call, Ask(call, "", command, len(words), limit), theirs)
            try:
                await asyncio.get_running_loop().sock_sendall(ours, words)
            except OSError:
                raise ConnectionError(f"the session of {self._name} has gone") from None
            return await end.payload

    def serve(self, call: int, domain: int, user: str, command: bytes, caller: socket.socket) -> CallEnd:
        """Have the qube serve a call from ``caller``, which is taken over. ``user`` empty: its default user."""
        return self._open(call, Serve(call, domain, user, command), caller)

    def _open(self, call: int, message: ToSession, connection: socket.socket) -> CallEnd:
        end = self._ends[call] = CallEnd(call)
        try:
            self._process.tell(message, connection)
        except OSError:
            del self._ends[call]
            end.lose()
        return end

    def _tell(self, message: ToSession) -> None:
        try:
            self._process.tell(message)
        except OSError as error:
            log.debug("%s: %s not told: %s", self._name, type(message).__name__, error)

    async def close(self) -> None:
        """End it; idempotent. Running calls fail as after a lost channel."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._process.send(Shutdown())
                await self._process.wait()
        except (OSError, TimeoutError):
            self._process.kill()
        await asyncio.shield(self._listener)

    async def _listen(self) -> None:
        if self._requests is not None:
            self._requests.session_opened(self)
        try:
            while (message := await self._process.receive()) is not None:
                self._take(message)
                # One message a turn of the loop: a session that has many does not keep others waiting (MC-15).
                await asyncio.sleep(0)
        except RemoteProtocolError as error:
            self._reason = f"it broke the protocol: {error}"
            self._process.kill()
        finally:
            self._ready.clear()
            self.agent_version = None
            if self._memory is not None:
                self._memory.cancel()
            self._lose_calls()
            if self._requests is not None:
                self._requests.session_closed(self)
            await self._end_process()
        self._reason = self._reason or f"exit code {await self._process.wait()}"
        if words := self._process.last_words():
            log.info("%s: session said: %r", self._name, words[-2000:])

    async def _end_process(self) -> None:
        """It has said its last word: let it end by itself, or see to it."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s: session does not end, killing it", self._name)
        await self._process.close()

    def _take(self, message: FromSession) -> None:
        if isinstance(message, AgentReady):
            self.agent_version = message.version
            self._ready.set()
        elif isinstance(message, AgentLost):
            self.agent_version = None
            self._ready.clear()
            log.warning("%s: agent lost: %s", self._name, message.reason)
            if self._requests is not None:
                self._requests.agent_lost(self)
        elif isinstance(message, CallsChanged):
            self.calls = message
        elif isinstance(message, KeyWritten | KeyRemoved):
            self._take_key(message)
        elif isinstance(message, MemoryWanted):
            self._begin_sharing()
        elif isinstance(message, SessionEnding):
            self._reason = message.reason
        elif isinstance(message, CallAccepted | CallRejected | Payload | CallEnded):
            self._take_end(message)
        elif isinstance(message, ServiceRequested | RequestCancelled | RequestDropped):
            self._take_request(message)
        if self._on_message is not None:
            self._on_message(self._name, message)

    def _take_key(self, message: KeyWritten | KeyRemoved) -> None:
        if isinstance(message, KeyRemoved):
            self.written.pop(message.path, None)
        elif message.path in self.written or len(self.written) < limits.QUBESDB_MAX_KEYS:
            self.written[message.path] = message.value

    def _begin_sharing(self) -> None:
        if self._open_memory is not None and self._memory is None:
            self._memory = asyncio.create_task(self._share(self._open_memory), name=f"memory of {self._name}")

    def _take_end(self, message: CallAccepted | CallRejected | Payload | CallEnded) -> None:
        end = self._ends.get(message.call)
        # None: of a call that was given up here meanwhile.
        if end is not None and end.take(message):
            del self._ends[message.call]

    def _take_request(self, message: ServiceRequested | RequestCancelled | RequestDropped) -> None:
        if self._requests is None:
            if isinstance(message, ServiceRequested):
                self.refuse(message.request)
        elif isinstance(message, ServiceRequested):
            self._requests.requested(self, message)
        elif isinstance(message, RequestCancelled):
            self._requests.cancelled(self, message.request)
        else:
            self._requests.dropped(self, message)

    async def _share(self, open_memory: OpenMemory) -> None:
        """Give the session memory that the machine has, too. It goes on as it is where there is none."""
        try:
            memory = await open_memory()
            if memory is not None:
                self._process.tell(Memory(), os.fdopen(memory, "rb", buffering=0))
        except OSError as error:
            log.debug("%s: no memory shared: %s", self._name, error)

    def _lose_calls(self) -> None:
        ends, self._ends = self._ends, {}
        for end in ends.values():
            end.lose()


def listen(path: Path) -> socket.socket:
    """Return a socket listening at ``path``, in place of what an earlier session left there. :raise OSError:"""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as where:
            listener.bind(where)
        path.chmod(0o600)
        listener.listen(LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class SessionLauncher:
    """Starts session processes; owns the preloaded parent they come from. They end with it.

    ``async with SessionLauncher() as launch: session = await launch(name=…, …)``. Without the context the first call
    starts the parent; :meth:`close` is needed in any case.
    """

    def __init__(self, programs: Sequence[str] = ()) -> None:
        """``programs``: others that are to be forked from the same parent, which is one interpreter less."""
        self.parent = PreloadedParent([SESSION_PROGRAM, *programs])
        self.requests: Requests | None = None
        """Who decides about services that qubes ask for; sessions launched while there is nobody refuse them all."""

    async def __aenter__(self) -> Self:
        """Have the parent begin with its imports; the first session waits for them, nobody else. :raise OSError:"""
        await self.parent.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def parent_pid(self) -> int | None:
        """Of the preloaded parent that runs at present."""
        return self.parent.pid

    async def close(self) -> None:
        """End the parent and every session; idempotent."""
        await self.parent.close()

    async def __call__(
        self,
        *,
        name: str,
        qid: int,
        channel: socket.socket,
        rpc_socket: Path,
        keys: Mapping[str, str],
        on_message: Callable[[str, FromSession], None] | None = None,
        open_memory: OpenMemory | None = None,
    ) -> RunningSession:
        """Start the session process of a qube; takes over ``channel``. Clients find it at ``rpc_socket``.

        :raise OSError: it could not be started; ``channel`` is still the caller's then.
        """
        user = keys.get(DEFAULT_USER_KEY, DEFAULT_USER)
        spec = SessionSpec(name, qid, user, {path: value.encode() for path, value in keys.items()})
        with listen(rpc_socket) as listener:
            process = await spawn_session(self.parent, spec, channel, listener)
        channel.close()
        return RunningSession(name, qid, process, self.requests, on_message, open_memory)
