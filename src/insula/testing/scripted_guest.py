"""A guest whose agent is the test: it calls services, serves calls, and breaks rules when told to.

The mux and the state machines are the agent's own (:mod:`insula_proto`); there is no process behind them. Services are
functions of the test: ``guest.services["test.Echo"] = lambda call: Answer(0, call.stdin)``.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from insula_proto import mux, qrexec
from insula_proto.mux import Mux
from insula_proto.mux_events import (
    CreditReceived,
    DataReceived,
    FinReceived,
    MuxEvent,
    Reset,
    StreamOpened,
    StreamReset,
    Synced,
)
from insula_proto.qrexec import (
    ExecCmdline,
    ExitCode,
    Hello,
    JustExec,
    Message,
    ServiceConnect,
    ServiceRefused,
    Stderr,
    Stdin,
    Stdout,
)
from insula_proto.qrexec_channel import AgentControl, CallerEnd, ServiceEnd

READ_SIZE = 1 << 18


@dataclass
class Result:
    """What a caller got."""

    code: int | None
    """None: the channel ended without one."""
    out: bytes = b""
    err: bytes = b""
    domain: int = 0


@dataclass
class Served:
    """A call this guest serves."""

    command: str
    """``user:QUBESRPC SERVICE+ARGUMENT SOURCE``"""
    domain: int
    stdin: bytes = b""


@dataclass(frozen=True)
class Answer:
    code: int
    out: bytes = b""


Service = Callable[[Served], Awaitable[Answer]]


@dataclass
class Stream:
    """A data stream, as seen by the guest."""

    guest: ScriptedGuest
    number: int
    port: int
    received: bytearray = field(default_factory=bytearray)
    is_finished: bool = False
    """By the host."""
    is_reset: bool = False
    reads: bool = True
    """Whether what comes is granted again."""
    unread: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def grant(self) -> None:
        self.guest.mux.consumed(self.number, self.unread)
        self.unread = 0

    async def read_all(self) -> None:
        """Begin to read, after all."""
        self.reads = True
        self.grant()
        await self.guest.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def more_than(self, size: int) -> None:
        """Until more has come, or will not."""
        await self.until(lambda: len(self.received) > size or self.is_finished or self.is_reset)

    async def send(self, data: bytes) -> None:
        """All of it, as credit comes; none if the stream is gone."""
        view = memoryview(data)
        while view and not self.is_reset:
            room = self.guest.mux.writable(self.number)
            if room:
                self.guest.mux.send(self.number, bytes(view[:room]))
                view = view[room:]
                await self.guest.flush()
            else:
                self.changed.clear()
                await self.changed.wait()

    async def finish(self) -> None:
        self.guest.mux.finish(self.number)
        await self.guest.flush()

    async def reset(self) -> None:
        self.guest.mux.reset(self.number)
        self.is_reset = True
        self.changed.set()
        await self.guest.flush()


class ScriptedGuest:
    """``connection``: the guest's end of the channel; taken over."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self.mux = Mux(mux.GUEST)
        self.control = AgentControl()
        self._control_stream = 0
        self.streams: dict[int, Stream] = {}
        self.ready = asyncio.Event()
        self.services: dict[str, Service] = {}
        """By name, without argument; what is not there ends with 127."""
        self.executed: list[Served] = []
        self._idents = itertools.count(1)
        self._asked: dict[bytes, asyncio.Future[ServiceConnect | None]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._reader = asyncio.create_task(self._read(), name="scripted guest")

    async def close(self) -> None:
        for task in (self._reader, *self._tasks):
            task.cancel()
        await asyncio.gather(self._reader, *self._tasks, return_exceptions=True)
        self._connection.close()

    # --- the channel ---------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        async with self._writing:
            while self.mux.queued:
                data = b"".join(self.mux.data_to_send())
                await self._loop.sock_sendall(self._connection, data)
                self.mux.sent(len(data))

    async def _read(self) -> None:
        while data := await self._loop.sock_recv(self._connection, READ_SIZE):
            for event in self.mux.receive(data):
                self._dispatch(event)
            await self.flush()
        for stream in self.streams.values():
            stream.is_reset = True
            stream.changed.set()

    def _dispatch(self, event: MuxEvent) -> None:
        if isinstance(event, Synced):
            self.control = AgentControl()
            self._control_stream = self.mux.open(qrexec.CONTROL_PORT)
            self.mux.send(self._control_stream, self.control.hello())
        elif isinstance(event, Reset):
            self.ready.clear()
            self.streams.clear()
        elif isinstance(event, StreamOpened):
            self.streams[event.stream] = Stream(self, event.stream, event.port)
        elif isinstance(event, DataReceived):
            if event.stream == self._control_stream:
                self.mux.consumed(event.stream, len(event.data))
                for message in self.control.receive(bytes(event.data)):
                    self._obey(message)
            elif event.stream in self.streams:
                stream = self.streams[event.stream]
                stream.received += event.data
                stream.unread += len(event.data)
                if stream.reads:
                    stream.grant()
                stream.changed.set()
        elif isinstance(event, CreditReceived | FinReceived | StreamReset) and event.stream in self.streams:
            stream = self.streams[event.stream]
            stream.is_finished = stream.is_finished or isinstance(event, FinReceived)
            stream.is_reset = stream.is_reset or isinstance(event, StreamReset)
            stream.changed.set()

    def _obey(self, message: Message) -> None:
        if isinstance(message, Hello):
            self.ready.set()
        elif isinstance(message, ServiceConnect | ServiceRefused):
            assert message.ident is not None
            asked = self._asked.pop(message.ident, None)
            assert asked is not None, f"{message.ident!r} is answered twice, or was never asked"
            if not asked.done():
                asked.set_result(message if isinstance(message, ServiceConnect) else None)
        elif isinstance(message, ExecCmdline | JustExec):
            task = self._loop.create_task(self._serve(message), name="service")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stream_of(self, port: int) -> Stream:
        """The newest on that port."""
        return [stream for stream in self.streams.values() if stream.port == port][-1]

    async def say(self, data: bytes) -> None:
        """Send bytes on the control channel."""
        self.mux.send(self._control_stream, data)
        await self.flush()

    async def terminated(self, domain: int, port: int) -> None:
        await self.say(self.control.connection_terminated(domain, port))

    # --- as a caller ---------------------------------------------------------------------------------------------

    def new_ident(self) -> bytes:
        return b"SOCKET%d" % next(self._idents)

    async def ask(
        self, service: str, target: str = "", *, source: str = "", ident: bytes | None = None
    ) -> asyncio.Future[ServiceConnect | None]:
        """Send a request; the future has the answer, None for a refusal."""
        ident = ident or self.new_ident()
        answer: asyncio.Future[ServiceConnect | None] = self._loop.create_future()
        self._asked[ident] = answer
        await self.say(self.control.trigger_service(target.encode(), ident, service.encode(), source.encode()))
        return answer

    async def call(self, service: str, target: str = "", *, source: str = "", stdin: bytes = b"") -> Result | None:
        """A whole call; None: refused."""
        connected = await (await self.ask(service, target, source=source))
        if connected is None:
            return None
        stream = self.stream_of(connected.port)
        result = await talk(stream, stdin)
        result.domain = connected.domain
        await stream.finish()
        await self.terminated(connected.domain, connected.port)
        return result

    # --- as a service --------------------------------------------------------------------------------------------

    async def _serve(self, message: ExecCmdline | JustExec) -> None:
        stream = self.stream_of(message.port)
        served = Served((message.command or b"").decode(), message.domain)
        self.executed.append(served)
        end = ServiceEnd()
        await stream.send(end.hello())
        taken, has_ended = 0, False
        while not has_ended:
            await stream.more_than(taken)
            if len(stream.received) == taken:
                await self.terminated(message.domain, message.port)
                return
            for part in end.receive(bytes(stream.received[taken:])):
                if isinstance(part, Stdin):
                    served.stdin += part.data
                    has_ended = not part.data
            taken = len(stream.received)
        name = served.command.partition("QUBESRPC ")[2].partition(" ")[0].partition("+")[0]
        service = self.services.get(name)
        answer = Answer(qrexec.EXIT_NOT_FOUND) if service is None else await service(served)
        for piece in end.stdout(answer.out):
            await stream.send(piece)
        await stream.send(end.finish(answer.code))
        await stream.finish()
        await self.terminated(message.domain, message.port)


async def talk(stream: Stream, stdin: bytes) -> Result:
    """Be the caller on a data channel, to its end."""
    end = CallerEnd()
    await stream.send(end.hello())
    await stream.more_than(0)
    result = Result(None)
    taken = 0
    has_spoken = False
    while True:
        for message in end.receive(bytes(stream.received[taken:])):
            if isinstance(message, Stdout):
                result.out += message.data
            elif isinstance(message, Stderr):
                result.err += message.data
            elif isinstance(message, ExitCode):
                result.code = message.code
        taken = len(stream.received)
        if end.version is not None and not has_spoken:
            has_spoken = True
            for piece in end.stdin(stdin):
                await stream.send(piece)
            await stream.send(end.stdin_end())
        if result.code is not None or ((stream.is_finished or stream.is_reset) and taken == len(stream.received)):
            return result
        await stream.more_than(taken)
