"""A session against guests that mean harm: raw bytes on its channel, and clients of its socket."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.hal import frames
from insula.rpc import callers, channel, client, guest, pacing, service_calls, session
from insula.rpc import control as control_module
from insula.rpc.control import (
    AgentLost,
    AgentReady,
    Begin,
    Configure,
    FromSession,
    KeyRemoved,
    KeyWritten,
    Memory,
    Refuse,
    RequestCancelled,
    RequestDropped,
    ServiceRequested,
    SessionEnding,
    SetKey,
    Shutdown,
    ToSession,
)
from insula_proto import bulk, limits, mux, mux_events, mux_frames, qrexec, qubesdb
from insula_proto.mux import Mux
from insula_proto.mux_events import DataReceived, MemoryOffered, MuxEvent, StreamOpened, StreamReset, Synced
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    Hello,
    Message,
    ServiceRefused,
    Stdout,
    TriggerService,
)
from insula_proto.qrexec_channel import AgentControl, DaemonControl
from insula_proto.qrexec_channel import ServiceRequested as ServiceRequest

PATIENCE = 120.0


class World:
    """The session runs in this process; the test holds the other ends of its three sockets."""

    def __init__(self, folder: Path) -> None:
        self.rpc_socket = folder / "rpc.sock"
        self.guest, self._channel = socket.socketpair()
        self.daemon, self._daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.rpc_socket))
        self._listener.listen(64)
        for end in (self.guest, self.daemon):
            end.setblocking(False)
        self.mux = Mux(mux.GUEST)
        self.events: list[MuxEvent] = []
        self.messages: list[FromSession] = []
        self.control = AgentControl()
        self.control_stream = 0
        self.wants_control = False
        """Open the control channel whenever a connection is new, as an agent does."""
        self.from_control: list[Message] = []
        self.task: asyncio.Task[int] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        self.task = asyncio.create_task(session.serve(self._channel, self._listener, self._daemon), name="session")
        self._reader = asyncio.create_task(self._read_messages(), name="daemon")
        for message in (Configure("work", 7, "user"), SetKey("/name", b"work"), Begin()):
            await self.tell(message)

    async def close(self) -> None:
        assert self.task is not None
        if not self.task.done():
            await self.tell(Shutdown())
        assert await asyncio.wait_for(self.task, PATIENCE) == 0
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self.guest.close()
        self.daemon.close()

    async def tell(self, message: ToSession) -> None:
        await self._loop.sock_sendall(self.daemon, control_module.encode(message))

    async def _read_messages(self) -> None:
        while data := await self._loop.sock_recv(self.daemon, control_module.MAX_MESSAGE):
            self.messages.append(control_module.decode_from_session(data))

    async def until(self, condition: object) -> None:
        """Let the session run, and the guest's mux with it, until the condition holds."""
        assert callable(condition)
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.exchange()

    async def exchange(self) -> None:
        while self.mux.queued:
            data = b"".join(self.mux.data_to_send())
            await self._loop.sock_sendall(self.guest, data)
            self.mux.sent(len(data))
        try:
            received = await asyncio.wait_for(self._loop.sock_recv(self.guest, 1 << 18), 0.005)
        except TimeoutError:
            return
        events = mux_events.current(self.mux.receive(received))
        if any(isinstance(event, Synced) for event in events):
            self.events.clear()
            if self.wants_control:
                self._greet()
        self.events += events
        for event in events:
            if isinstance(event, DataReceived) and event.stream == self.control_stream:
                self.from_control += self.control.receive(event.data)
                self.mux.consumed(event.stream, len(event.data))

    async def sync(self) -> None:
        await self.until(lambda: self.mux.in_sync)

    async def open_control(self) -> None:
        """What an agent does; both it and the session are ready then."""
        known = len(self.ready)
        self.wants_control = True
        if self.mux.in_sync:
            self._greet()
        await self.until(lambda: len(self.ready) > known and self.control.version is not None)

    def _greet(self) -> None:
        self.control = AgentControl()
        self.control_stream = self.mux.open(qrexec.CONTROL_PORT)
        self.from_control.clear()
        self.send(self.control.hello())

    def send(self, data: bytes) -> None:
        self.mux.send(self.control_stream, data)

    @property
    def ready(self) -> list[AgentReady]:
        return [message for message in self.messages if isinstance(message, AgentReady)]

    @property
    def lost(self) -> list[AgentLost]:
        return [message for message in self.messages if isinstance(message, AgentLost)]

    async def raw(self, data: bytes) -> None:
        """Bytes past the guest's mux."""
        await self.exchange()
        await self._loop.sock_sendall(self.guest, data)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(pacing, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(channel, "HELLO_INTERVAL", 0.05)
    made = World(tmp_path)
    await made.start()
    yield made
    await made.close()


def frame(stream: int, kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<III", stream, kind, len(body) if length is None else length) + body


async def test_agent_is_ready_when_hello_is_exchanged(world: World) -> None:
    await world.open_control()
    assert world.ready == [AgentReady(4)]
    await world.until(lambda: world.from_control == [Hello(4)])


async def test_agent_of_version_3_is_taken(world: World) -> None:
    await world.sync()
    world.control = AgentControl(own_version=3)
    world.control_stream = world.mux.open(qrexec.CONTROL_PORT)
    world.send(world.control.hello())
    await world.until(lambda: world.ready == [AgentReady(3)])


HOSTILE_FRAMES = {
    "length_0": frame(1, mux_frames.DATA),
    "length_negative": frame(1, mux_frames.DATA, length=0xFFFFFFFF),
    "length_over_limit": frame(1, mux_frames.DATA, length=65537),
    "unknown_type": frame(1, 99),
    "stream_never_opened": frame(9, mux_frames.DATA, b"x"),
    "second_control_channel": frame(77, mux_frames.OPEN, struct.pack("<II", 512, 1)),
    "fin_of_control_channel": frame(1, mux_frames.FIN),
}


@pytest.mark.parametrize("name", HOSTILE_FRAMES)
async def test_hostile_frame_drops_the_guest_with_one_reason_then_greets_it_again(world: World, name: str) -> None:
    """MC-11, MC-12, MC-21."""
    await world.open_control()
    await world.raw(HOSTILE_FRAMES[name])
    await world.until(lambda: world.lost)
    world.mux.start()
    await world.open_control()
    assert len(world.lost) == 1
    assert len(world.ready) == 2


HOSTILE_CONTROL = {
    "length_0": struct.pack("<II", qrexec.CONNECTION_TERMINATED, 0),
    "length_negative": struct.pack("<II", qrexec.TRIGGER_SERVICE4, 0xFFFFFFFF),
    "unknown_type": struct.pack("<II", 0x999, 8),
    "second_hello": qrexec.encode(Hello(4)),
    "data_on_control": struct.pack("<II", qrexec.STDOUT, 3) + b"abc",
    "daemons_message": qrexec.encode(ExecCmdline(0, 513, b"user:id")),
    "trigger_of_version_2": struct.pack("<II", qrexec.TRIGGER_SERVICE, 128),
    "trigger_of_version_3": qrexec.encode(TriggerService(None, b"dom0", b"S", b"a.B")),
    "terminated_bad_port": qrexec.encode(ConnectionTerminated(0, 80)),
}


@pytest.mark.parametrize("name", HOSTILE_CONTROL)
async def test_hostile_control_message_drops_the_guest(world: World, name: str) -> None:
    """MC-11, MC-12."""
    await world.open_control()
    world.send(HOSTILE_CONTROL[name])
    await world.until(lambda: world.lost)


async def test_unsupported_version_drops_the_guest(world: World) -> None:
    """MC-12."""
    await world.sync()
    stream = world.mux.open(qrexec.CONTROL_PORT)
    world.mux.send(stream, qrexec.encode(Hello(2)))
    await world.until(lambda: not world.mux.in_sync or any(isinstance(e, Synced) for e in world.events[1:]))
    assert not world.ready


@pytest.mark.parametrize("sent", [b"", b"\0\3", qrexec.encode(Hello(4))[:9]])
async def test_half_a_hello_and_silence_times_out(world: World, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """MC-13."""
    monkeypatch.setattr(guest, "SILENCE_TIMEOUT", 0.05)
    await world.sync()
    stream = world.mux.open(qrexec.CONTROL_PORT)
    world.mux.send(stream, sent)
    await world.until(lambda: not world.mux.is_open(stream))
    await world.open_control()


async def test_half_a_message_and_silence_times_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-13."""
    await world.open_control()
    monkeypatch.setattr(guest, "SILENCE_TIMEOUT", 0.05)
    world.send(struct.pack("<II", qrexec.TRIGGER_SERVICE4, 200) + b"x" * 10)
    await world.until(lambda: world.lost)
    assert "not finished" in world.lost[0].reason


async def test_keys_are_served_and_only_the_guests_own_are_told(world: World) -> None:
    await world.sync()
    keys = qubesdb.KeyClient()
    stream = world.mux.open(qubesdb.PORT)
    world.mux.send(stream, keys.read_all() + keys.write("/dns/1/a", b"x") + keys.write("/name", b"dom0"))

    def received() -> bool:
        data = b"".join(e.data for e in world.events if isinstance(e, DataReceived) and e.stream == stream)
        return len(qubesdb.Decoder().receive(data)) == 5

    await world.until(received)
    data = b"".join(e.data for e in world.events if isinstance(e, DataReceived) and e.stream == stream)
    messages = qubesdb.Decoder().receive(data)
    assert [message.kind for message in messages] == [
        *[qubesdb.RESP_MULTIREAD] * 3,
        qubesdb.RESP_OK,
        qubesdb.RESP_ERROR,
    ]
    assert [message.path for message in messages[:3]] == ["/insula-clock", "/name", ""]
    await world.until(lambda: world.messages)
    assert world.messages == [KeyWritten("/dns/1/a", b"x")]
    world.mux.send(stream, keys.remove("/dns/1/a") + keys.remove("/name"))
    await world.until(lambda: len(world.messages) == 2)
    assert world.messages[1] == KeyRemoved("/dns/1/a")


async def test_clock_is_the_time_at_which_the_keys_are_read(world: World) -> None:
    await world.sync()
    before = time.time_ns()
    stream = world.mux.open(qubesdb.PORT)
    keys = qubesdb.KeyClient()
    world.mux.send(stream, keys.read_all())

    def read() -> bool:
        return any(isinstance(e, DataReceived) and e.stream == stream for e in world.events)

    await world.until(read)
    for event in world.events:
        if isinstance(event, DataReceived):
            keys.receive(event.data)
    assert before <= int(keys.keys["/insula-clock"]) <= time.time_ns()


async def test_clock_is_checked_after_the_agent_is_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "CLOCK_CHECKS_S", (0.0, 0.05))
    keys = qubesdb.KeyClient()
    await world.sync()
    stream = world.mux.open(qubesdb.PORT)
    world.mux.send(stream, keys.read_all())
    before = time.time_ns()
    await world.open_control()

    def checks() -> list[bytes]:
        data = b"".join(e.data for e in world.events if isinstance(e, DataReceived) and e.stream == stream)
        messages = qubesdb.Decoder().receive(data)
        return [m.value for m in messages if m.kind == qubesdb.WRITE and m.path == guest.CLOCK_KEY]

    await world.until(lambda: len(checks()) == 2)
    times = [int(value.removesuffix(guest.CLOCK_CHECK)) for value in checks()]
    assert before <= times[0] < times[1] <= time.time_ns()


async def test_clock_is_not_checked_any_more_when_the_agent_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "CLOCK_CHECKS_S", (0.0,))
    services = guest.GuestServices(_Deaf())
    protocol = DaemonControl()
    protocol.receive(AgentControl().hello())
    services.ready(protocol)
    services.control_closed()
    await asyncio.sleep(0.01)
    assert services.keys == {}
    services.ready(protocol)
    await asyncio.sleep(0.01)
    assert list(services.keys) == [guest.CLOCK_KEY]


class _Deaf(guest.GuestListener):
    def agent_ready(self, version: int) -> None:
        del version


async def test_key_writes_without_end_are_answered_with_errors_not_passed_on(world: World) -> None:
    """MC-15: the daemon hears of a bounded number."""
    await world.sync()
    keys = qubesdb.KeyClient()
    stream = world.mux.open(qubesdb.PORT)
    for number in range(400):
        world.mux.send(stream, keys.write("/dns/1/a", b"%d" % number))
    answers = qubesdb.Decoder()
    kinds: list[int] = []

    def answered() -> bool:
        for event in world.events:
            if isinstance(event, DataReceived):
                kinds.extend(message.kind for message in answers.receive(event.data))
        world.events.clear()
        return len(kinds) == 400

    await world.until(answered)
    assert kinds.count(qubesdb.RESP_ERROR) > 100
    assert sum(isinstance(m, KeyWritten) for m in world.messages) <= guest.KEY_WRITES_BURST + 100


async def test_service_request_is_told_with_its_words_and_answered_once(world: World) -> None:
    """MC-18: who asks is not said, the daemon knows; MC-16: a name outside the alphabet is refused here."""
    await world.open_control()
    world.send(world.control.trigger_service(b"dom0", b"SOCKET1", b"a.B+c", source=b"vault"))
    world.send(world.control.trigger_service(b"dom0", b"SOCKET2", b"a/../$b"))
    await world.until(lambda: len(world.from_control) == 2)
    assert world.from_control[1:] == [ServiceRefused(b"SOCKET2")]
    await world.until(lambda: len(world.messages) == 3)
    assert world.messages[1:] == [
        ServiceRequested(1, "a.B+c", "dom0", "vault"),
        RequestDropped("a_..__b", service_calls.BAD_NAME),
    ]
    for _ in range(2):
        await world.tell(Refuse(1))
    await world.until(lambda: ServiceRefused(b"SOCKET1") in world.from_control)
    await world.tell(Refuse(1))
    await world.exchange()
    assert world.from_control.count(ServiceRefused(b"SOCKET1")) == 1


@pytest.mark.parametrize("name", [b".hidden", b"..", b"x" * 256, b"a.B+" + b"c" * 64000 + b"\n"])
async def test_service_name_that_can_be_no_file_of_ours_is_refused(world: World, name: bytes) -> None:
    """MC-16."""
    await world.open_control()
    world.send(world.control.trigger_service(b"dom0", b"SOCKET1", name))
    await world.until(lambda: len(world.from_control) == 2)
    assert world.from_control[1] == ServiceRefused(b"SOCKET1")
    assert not any(isinstance(message, ServiceRequested) for message in world.messages)


async def test_argument_of_the_longest_kind_is_told_whole(world: World) -> None:
    await world.open_control()
    name = "a.B+" + "c" * (limits.QREXEC_MAX_SERVICE - 5)
    world.send(world.control.trigger_service(b"dom0", b"SOCKET1", name.encode()))
    await world.until(lambda: len(world.messages) == 2)
    assert world.messages[1] == ServiceRequested(1, name, "dom0", "")


async def test_request_under_an_ident_that_waits_takes_the_first_one_back(world: World) -> None:
    """The agent gave the number to another client: the first is gone."""
    await world.open_control()
    for name in (b"a.B", b"a.C"):
        world.send(world.control.trigger_service(b"dom0", b"SOCKET1", name))
    await world.until(lambda: len(world.messages) == 4)
    assert world.messages[2:] == [RequestCancelled(1), ServiceRequested(2, "a.C", "dom0", "")]
    await world.tell(Refuse(1))
    await world.tell(Refuse(2))
    await world.until(lambda: len(world.from_control) == 2)
    assert world.from_control[1:] == [ServiceRefused(b"SOCKET1")]


async def test_request_taken_back_is_told_and_not_answered_any_more(world: World) -> None:
    """MC-24: the agent's client has gone; an ident that nobody waits under is passed over."""
    await world.open_control()
    world.send(world.control.trigger_service(b"dom0", b"SOCKET1", b"a.B"))
    world.send(world.control.withdraw_service(b"SOCKET9"))
    world.send(world.control.withdraw_service(b"SOCKET1"))
    await world.until(lambda: len(world.messages) == 3)
    assert world.messages[2] == RequestCancelled(1)
    world.send(world.control.trigger_service(b"dom0", b"SOCKET2", b"a.B"))
    await world.tell(Refuse(1))
    await world.until(lambda: len(world.messages) == 4)
    await world.tell(Refuse(2))
    await world.until(lambda: len(world.from_control) == 2)
    assert world.from_control[1:] == [ServiceRefused(b"SOCKET2")]


async def test_service_requests_without_end_and_unread_answers_are_paced(world: World) -> None:
    """MC-14, MC-15: the guest sends requests and never takes what they are answered with."""
    await world.open_control()
    world.mux.consumed = lambda stream, count: None  # type: ignore[method-assign]
    sent, begin = 0, time.monotonic()
    async with asyncio.timeout(PATIENCE):
        for number in range(40):
            request = world.control.trigger_service(b"dom0", b"SOCKET%d" % number, b"a.B")
            while world.mux.writable(world.control_stream) >= len(request):
                number += 40  # noqa: PLW2901
                request = world.control.trigger_service(b"dom0", b"SOCKET%d" % number, b"a.B")
                world.send(request)
                sent += len(request)
            await world.exchange()
    assert sent < 20 * limits.MUX_MAX_WINDOW
    asked = sum(isinstance(message, ServiceRequested) for message in world.messages)
    taken_back = sum(isinstance(message, RequestCancelled) for message in world.messages)
    assert asked - taken_back <= service_calls.MAX_REQUESTS
    passed_s = time.monotonic() - begin
    assert asked <= service_calls.REQUESTS_BURST + (passed_s + 1) * service_calls.REQUESTS_PER_SECOND


@pytest.mark.parametrize("name", [b"a.B", b"a/B"])
async def test_flood_of_requests_is_read_slowly(world: World, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-15: under one ident, each taking the last one back; or refused by its name. Windows, and pauses."""
    read = 0
    original = service_calls.ServiceCalls.requested

    def counted(self: service_calls.ServiceCalls, request: ServiceRequest) -> None:
        nonlocal read
        read += 1
        original(self, request)

    monkeypatch.setattr(service_calls.ServiceCalls, "requested", counted)
    monkeypatch.setattr(guest, "SLOW_DOWN", 1.0)
    await world.open_control()
    request = world.control.trigger_service(b"dom0", b"SOCKET1", name)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        while world.mux.writable(world.control_stream) >= len(request):
            world.send(request)
        await world.exchange()
    assert 0 < read <= 5 * limits.MUX_MAX_WINDOW / len(request)


async def test_stream_to_another_port_is_refused_without_dropping(world: World) -> None:
    await world.open_control()
    stream = world.mux.open(513)
    await world.until(lambda: StreamReset(stream, mux_frames.RESET_REFUSED) in world.events)
    assert not world.lost


# --- calls ---------------------------------------------------------------------------------------------------------


async def started(world: World, command: str = "true") -> tuple[asyncio.Task[tuple[int, bytes, bytes]], int, int]:
    """A call under way: its task, its stream and its port at the guest."""
    before = len([m for m in world.from_control if isinstance(m, ExecCmdline)])
    call = asyncio.create_task(client.run_collect(world.rpc_socket, command, timeout=PATIENCE))
    await world.until(lambda: len([m for m in world.from_control if isinstance(m, ExecCmdline)]) > before)
    message = [m for m in world.from_control if isinstance(m, ExecCmdline)][-1]
    [stream] = [e.stream for e in world.events if isinstance(e, StreamOpened) and e.port == message.port][-1:]
    return call, stream, message.port


async def test_call_is_forwarded_with_its_port_and_default_user(world: World) -> None:
    await world.open_control()
    call, stream, port = await started(world, "ls")
    assert world.from_control[-1] == ExecCmdline(0, limits.FIRST_DATA_PORT, b"user:ls")
    world.mux.send(stream, qrexec.encode(Hello(4)) + qrexec.encode(Stdout(b"out")) + qrexec.encode(qrexec.ExitCode(3)))
    await world.until(call.done)
    assert call.result() == (3, b"out", b"")
    world.mux.finish(stream)
    world.send(world.control.connection_terminated(0, port))
    again, _, port_again = await started(world)
    assert port_again == port
    again.cancel()


async def share(world: World, size: int) -> int:
    """Give the session memory of that size, as the daemon does; return it."""
    memory = frames.make(size, frames.BULK_NAME)
    socket.send_fds(world.daemon, [control_module.encode(Memory())], [memory])
    return memory


async def test_memory_is_offered_to_the_guest_with_a_token_that_is_in_it(world: World) -> None:
    await world.open_control()
    memory = await share(world, limits.BULK_SIZE)
    await world.until(lambda: any(isinstance(event, MemoryOffered) for event in world.events))
    [token] = [event.token for event in world.events if isinstance(event, MemoryOffered)]
    assert os.pread(memory, bulk.TOKEN_SIZE, 0) == token
    os.close(memory)


async def test_memory_of_another_size_is_not_shared_and_nothing_is_lost(world: World) -> None:
    """A machine monitor that was taken over may have put something else in its place."""
    await world.open_control()
    os.close(await share(world, limits.BULK_SIZE // 2))
    call, stream, _ = await started(world)
    world.mux.send(stream, qrexec.encode(Hello(4)) + qrexec.encode(qrexec.ExitCode(7)))
    await world.until(call.done)
    assert call.result()[0] == 7
    assert not any(isinstance(event, MemoryOffered) for event in world.events)


async def test_memory_without_a_descriptor_ends_the_session(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    await world.tell(Memory())
    assert world.task is not None
    assert await asyncio.wait_for(world.task, PATIENCE) == session.EXIT_DAEMON_PROTOCOL
    world._reader.cancel()
    await asyncio.gather(world._reader, return_exceptions=True)
    world.guest.close()
    world.daemon.close()


async def test_call_before_the_agent_is_ready_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READY_PATIENCE_S", 0.0)
    call = asyncio.create_task(client.run_collect(world.rpc_socket, "true", timeout=PATIENCE))
    with pytest.raises(client.AgentNotReady):
        await call


async def test_call_is_asked_for_again_until_the_agent_is_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = asyncio.Event()
    request = client.request

    async def watched(*arguments: object) -> client.Connection:
        try:
            return await request(*arguments)  # type: ignore[arg-type]
        except client.AgentNotReady:
            refused.set()
            raise

    monkeypatch.setattr(client, "request", watched)
    call = asyncio.create_task(client.run_collect(world.rpc_socket, "true", timeout=PATIENCE))
    await refused.wait()
    await world.open_control()
    await world.until(lambda: any(isinstance(message, ExecCmdline) for message in world.from_control))
    call.cancel()


HOSTILE_DATA = {
    "exit_code_twice": qrexec.encode(qrexec.ExitCode(0)) * 2,
    "output_after_its_end": qrexec.encode(Stdout(b"")) + qrexec.encode(Stdout(b"x")),
    "unknown_type": struct.pack("<II", 0x999, 0),
    "length_over_limit": struct.pack("<II", qrexec.STDOUT, 65537),
    "length_negative": struct.pack("<II", qrexec.STDOUT, 0xFFFFFFFF),
    "second_hello": qrexec.encode(Hello(4)),
    "version_2": b"",
}


@pytest.mark.parametrize("name", HOSTILE_DATA)
async def test_hostile_data_channel_ends_that_call_only(world: World, name: str) -> None:
    """MC-11, MC-12, MC-21: the caller gets the defined code, the other call goes on."""
    await world.open_control()
    call, stream, _ = await started(world)
    other, other_stream, _ = await started(world)
    world.mux.send(stream, qrexec.encode(Hello(2 if name == "version_2" else 4)) + HOSTILE_DATA[name])
    await world.until(call.done)
    assert call.result()[0] in ((0, 255) if name == "exit_code_twice" else (255,))
    assert call.result()[1] == b""
    world.mux.send(other_stream, qrexec.encode(Hello(4)) + qrexec.encode(qrexec.ExitCode(7)))
    await world.until(other.done)
    assert other.result()[0] == 7


@pytest.mark.parametrize("code", [-1, 256, 2**31 - 1, -(2**31)])
async def test_exit_code_out_of_range_is_never_success(world: World, code: int) -> None:
    await world.open_control()
    call, stream, _ = await started(world)
    world.mux.send(stream, qrexec.encode(Hello(4)) + qrexec.encode(qrexec.ExitCode(code)))
    await world.until(call.done)
    assert call.result()[0] == 255


async def test_data_channel_reset_before_exit_code_is_255(world: World) -> None:
    """MC-22."""
    await world.open_control()
    call, stream, _ = await started(world)
    world.mux.reset(stream)
    await world.until(call.done)
    assert call.result()[0] == 255


async def test_guest_that_never_says_hello_on_a_data_channel_times_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-13, MC-22: a handler that hangs from the start."""
    await world.open_control()
    monkeypatch.setattr(client, "HANDSHAKE_TIMEOUT", 0.2)
    call, stream, _ = await started(world)
    await world.until(call.done)
    assert isinstance(call.exception(), TimeoutError)
    await world.until(lambda: not world.mux.is_open(stream))


async def test_cancelled_call_resets_the_stream_even_if_the_guest_reads_nothing(world: World) -> None:
    """MC-14: the caller's bytes wait in front of its going; it is noticed all the same."""
    await world.open_control()
    data = os.urandom(4_000_000)
    call = asyncio.create_task(client.run_collect(world.rpc_socket, "cat", stdin=data, timeout=PATIENCE))
    await world.until(lambda: isinstance(world.from_control[-1], ExecCmdline))
    [stream] = [e.stream for e in world.events if isinstance(e, StreamOpened)][-1:]
    world.mux.send(stream, qrexec.encode(Hello(4)))
    # Nothing is consumed, so the window runs full.
    await world.until(
        lambda: (
            sum(len(e.data) for e in world.events if isinstance(e, DataReceived) and e.stream == stream)
            >= limits.MUX_MAX_WINDOW
        )
    )
    call.cancel()
    await world.until(lambda: StreamReset(stream, mux_frames.RESET_CANCELLED) in world.events)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_agent_starts_over_running_calls_end_with_255(world: World) -> None:
    await world.open_control()
    call, _, _ = await started(world)
    world.mux.start()
    await world.until(call.done)
    assert call.result()[0] == 255
    await world.until(lambda: len(world.ready) == 2)
    assert len(world.lost) == 1


async def test_terminated_for_a_port_or_domain_not_in_use_changes_nothing(world: World) -> None:
    """MC-21."""
    await world.open_control()
    call, stream, port = await started(world)
    world.send(world.control.connection_terminated(0, 700))
    world.send(world.control.connection_terminated(5, port))
    world.send(world.control.connection_terminated(0, port))
    other, _, other_port = await started(world)
    assert other_port == port + 1  # the first call's stream is still open
    world.mux.send(stream, qrexec.encode(Hello(4)) + qrexec.encode(qrexec.ExitCode(1)))
    await world.until(call.done)
    other.cancel()


# --- clients -------------------------------------------------------------------------------------------------------


async def answered(world: World, request: bytes) -> bytes:
    """What a client gets until the session closes its connection."""
    reader, writer = await asyncio.open_unix_connection(world.rpc_socket)
    writer.write(request)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    return answer


HELLO3 = qrexec.encode(Hello(3))
REFUSED = qrexec.encode(ServiceRefused(callers.REFUSED_BAD_REQUEST))


@pytest.mark.parametrize(
    "request_bytes",
    [
        qrexec.encode(Hello(2)),
        qrexec.encode(ExecCmdline(0, 0, b"user:ls")),
        HELLO3 + HELLO3,
        HELLO3 + qrexec.encode(ExecCmdline(0, 0, b"no colon")),
        HELLO3 + struct.pack("<II", qrexec.EXEC_CMDLINE, 8) + bytes(8),
        HELLO3 + struct.pack("<II", qrexec.EXEC_CMDLINE, 70000),
        HELLO3 + struct.pack("<IIII", qrexec.EXEC_CMDLINE, 11, 0, 0) + b"a:b",
        HELLO3 + qrexec.encode(ConnectionTerminated(0, 513)),
    ],
)
async def test_client_bad_request_is_refused_and_nothing_reaches_the_agent(world: World, request_bytes: bytes) -> None:
    """MC-12, MC-16."""
    await world.open_control()
    assert await answered(world, request_bytes) == HELLO3 + REFUSED
    await world.exchange()
    assert world.from_control == [Hello(4)]


async def test_client_that_says_nothing_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-13."""
    monkeypatch.setattr(callers, "REQUEST_TIMEOUT", 0.05)
    assert await answered(world, b"") == HELLO3


# --- the session's end ---------------------------------------------------------------------------------------------


async def test_machine_gone_is_told_and_ends_the_session(world: World) -> None:
    await world.open_control()
    world.guest.close()
    assert world.task is not None
    assert await asyncio.wait_for(world.task, PATIENCE) == 0
    assert isinstance(world.messages[-1], SessionEnding) or await _drained(world)


async def _drained(world: World) -> bool:
    async with asyncio.timeout(PATIENCE):
        while not any(isinstance(message, SessionEnding) for message in world.messages):
            await asyncio.sleep(0.001)
    return True


async def test_daemon_gone_ends_the_session(world: World) -> None:
    world._reader.cancel()
    await asyncio.gather(world._reader, return_exceptions=True)
    world.daemon.close()
    assert world.task is not None
    assert await asyncio.wait_for(world.task, PATIENCE) == 0


async def test_nonsense_from_the_daemon_ends_the_session(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    await world._loop.sock_sendall(world.daemon, b"nonsense")
    assert world.task is not None
    assert await asyncio.wait_for(world.task, PATIENCE) == session.EXIT_DAEMON_PROTOCOL
    world._reader.cancel()
    await asyncio.gather(world._reader, return_exceptions=True)
    world.guest.close()
    world.daemon.close()


# --- what it imports -----------------------------------------------------------------------------------------------

LOADED = """
import sys, insula.rpc.session
print(*(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("insula", "insula_proto")), sep="\\n")
"""


def test_no_module_of_a_session_imports_inside_a_function() -> None:
    """When it runs there is no file to import from."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=PATIENCE)
    sources = [Path(line) for line in done.stdout.split()]
    assert Path(session.__file__) in sources
    late = [
        f"{path}:{inner.lineno}"
        for path in sources
        for outer in ast.walk(ast.parse(path.read_text()))
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert late == []
