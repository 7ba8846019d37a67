"""The agent's link against a host made of a bare mux, over a unix socket as transport."""

from __future__ import annotations

import mmap
import os
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula_agent import conveyor
from insula_agent import link as link_module
from insula_agent.link import Link, TransportError, open_transport
from insula_agent.loop import READ, Loop
from insula_agent.streams import StreamHandler, StreamWriter
from insula_proto import bulk, limits
from insula_proto.mux import GUEST, HOST, Mux
from insula_proto.mux_events import DataReceived, MuxEvent, SharedReceived, SlotFreed, StreamOpened, StreamReset, Synced


class Recorder(StreamHandler):
    def __init__(self) -> None:
        self.received = b""
        self.log: list[str] = []

    def data(self, stream: int, data: bytes) -> None:
        self.received += data

    def fin(self, stream: int) -> None:
        self.log.append("fin")

    def closed(self, stream: int, code: int) -> None:
        self.log.append(f"closed {code}")


def taken(end: Mux) -> bytes:
    data = b"".join(end.data_to_send(1 << 20))
    end.sent(len(data))
    return data


class World:
    """The agent's loop is run until the host end has seen what a test waits for."""

    def __init__(self, device: str, host: socket.socket) -> None:
        self.loop = Loop()
        self.synced = 0
        self.accepted: dict[int, Recorder] = {}
        self.devices = tempfile.mkdtemp()
        """Where the agent looks for the memory that the host offers."""
        self.link = Link(self.loop, device, self._on_sync, self._accept, self.devices)
        self.host = host
        self.mux = Mux(HOST)
        self.events: list[MuxEvent] = []

    def _on_sync(self) -> None:
        self.synced += 1

    def _accept(self, stream: int, port: int) -> StreamHandler | None:
        if port == 600:
            return None
        self.accepted[stream] = Recorder()
        return self.accepted[stream]

    def turn(self) -> None:
        """One exchange: what the host has, one run of the agent's loop, what the agent answered."""
        while self.mux.queued:
            self.mux.sent(self.host.send(b"".join(self.mux.data_to_send())))
        self.run_agent()
        try:
            while data := self.host.recv(1 << 18, socket.MSG_DONTWAIT):
                self.events += self.mux.receive(data)
        except BlockingIOError:
            pass

    def run_agent(self) -> None:
        """One run of the agent's loop alone."""
        self.loop._exit_code = None
        self.loop.after(0.005, lambda: self.loop.stop(0))
        self.loop.run()

    def until(self, condition: object, turns: int = 400) -> None:
        assert callable(condition)
        for _ in range(turns):
            if condition():
                return
            self.turn()
        pytest.fail("it never happened")

    def sync(self) -> None:
        self.mux.start()
        self.until(lambda: any(isinstance(event, Synced) for event in self.events) and self.mux.in_sync)


@pytest.fixture
def world() -> Iterator[World]:
    ours, theirs = socket.socketpair()
    with ours:
        fd = theirs.detach()
        made = World(f"fd:{fd}", ours)
        made.link.start()
        made.sync()
        yield made
        if made.link._fd >= 0:
            os.close(fd)
        shutil.rmtree(made.devices)


def test_sync_is_announced_and_streams_flow_both_ways(world: World) -> None:
    stream = world.mux.open(513)
    world.mux.send(stream, b"hello")
    world.until(lambda: stream in world.accepted and world.accepted[stream].received == b"hello")
    own = world.link.open(111, Recorder())
    StreamWriter(world.link, own).write(b"key")
    world.until(lambda: DataReceived(own, b"key") in world.events)
    assert world.synced >= 1


def test_stream_to_unknown_port_is_refused(world: World) -> None:
    stream = world.mux.open(600)
    world.until(lambda: any(isinstance(e, StreamReset) and e.stream == stream for e in world.events))


def test_writer_waits_for_credit_and_loses_nothing(world: World) -> None:
    class Writing(Recorder):
        writer: StreamWriter

        def writable(self, stream: int) -> None:
            self.writer.flush()

    handler = Writing()
    stream = world.link.open(111, handler)
    handler.writer = StreamWriter(world.link, stream)
    payload = os.urandom(3 * limits.MUX_MAX_WINDOW)
    handler.writer.write(payload)
    received = b""

    def everything() -> bool:
        nonlocal received
        for event in world.events:
            if isinstance(event, DataReceived):
                received += event.data
                world.mux.consumed(stream, len(event.data))
        world.events.clear()
        return len(received) == len(payload)

    world.until(everything)
    assert received == payload
    assert handler.writer.is_empty


class Conveying(Recorder):
    """Sends all a pipe gives, as a call does."""

    def __init__(self, world: World, pipe: int) -> None:
        super().__init__()
        self.world = world
        self.pipe = pipe
        self.conveyed = 0
        self.stream = world.link.open(111, self)
        self.sent = StreamWriter(world.link, self.stream)
        self.advance()

    def advance(self) -> None:
        link = self.world.link
        if self.sent.is_empty and link.has_room(self.stream):
            self.world.loop.watch(self.pipe, READ, self.readable)
        else:
            self.world.loop.forget(self.pipe)
            link.notify_writable(self.stream)

    def readable(self, events: int) -> None:
        if self.world.link.convey(self.stream, self.pipe, lambda size: b"<%d>" % size):
            self.conveyed += 1
            self.advance()
        elif data := os.read(self.pipe, 65536):
            self.sent.write(b"<%d>" % len(data), data)
            self.advance()
        else:
            self.world.loop.forget(self.pipe)

    def writable(self, stream: int) -> None:
        self.sent.flush()
        self.advance()


def unwrapped(data: bytes) -> bytes:
    """What is left of ``<SIZE>`` and that many bytes, repeated."""
    parts = []
    while data:
        size, _, data = data.removeprefix(b"<").partition(b">")
        parts.append(data[: int(size)])
        data = data[int(size) :]
    return b"".join(parts)


def feed(pipe: int, payload: bytes, piece: int) -> threading.Thread:
    def write() -> None:
        with os.fdopen(pipe, "wb", buffering=0) as file:
            for start in range(0, len(payload), piece):
                rest = memoryview(payload)[start : start + piece]
                while rest:
                    rest = rest[file.write(rest) :]

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("piece", [100, 8192, 65536, 1 << 20])
def test_bulk_is_conveyed_in_order_past_full_ports_and_spent_credit(world: World, piece: int) -> None:
    world.host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    payload = os.urandom(3 * limits.MUX_MAX_WINDOW)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(writing, True)
    conveyor.enlarge(writing, 1 << 18)
    handler = Conveying(world, pipe)
    thread = feed(writing, payload, piece)
    received = b""

    def everything() -> bool:
        nonlocal received
        for event in world.events:
            if isinstance(event, DataReceived):
                received += event.data
                world.mux.consumed(handler.stream, len(event.data))
        world.events.clear()
        return not thread.is_alive() and len(unwrapped(received)) == len(payload)

    world.until(everything, turns=4000)
    thread.join()
    assert unwrapped(received) == payload
    assert handler.conveyed or piece == 100
    os.close(pipe)


def test_little_is_not_conveyed(world: World) -> None:
    pipe, writing = os.pipe()
    os.write(writing, b"x" * (conveyor.SMALLEST - 1))
    assert not world.link.convey(world.link.open(111, Recorder()), pipe, lambda size: b"")
    assert conveyor.waiting(pipe) == conveyor.SMALLEST - 1
    os.close(pipe)
    os.close(writing)


def test_host_starts_over_while_bulk_is_on_its_way_and_finds_its_hello(world: World) -> None:
    world.host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    conveyor.enlarge(writing, 1 << 18)
    handler = Conveying(world, pipe)
    os.write(writing, bytes(1 << 18))
    while not handler.conveyed:
        world.run_agent()
    world.events.clear()
    world.mux.start()
    world.until(lambda: any(isinstance(event, Synced) for event in world.events))
    assert handler.log == ["closed 3"]
    world.loop.forget(pipe)
    os.close(pipe)
    os.close(writing)


def test_host_starts_over_streams_are_closed_and_a_new_epoch_begins(world: World) -> None:
    epoch = world.link.epoch
    stream = world.mux.open(513)
    world.until(lambda: stream in world.accepted)
    world.mux.start()
    world.until(lambda: world.accepted[stream].log == ["closed 3"])
    world.until(lambda: world.mux.in_sync)
    assert world.link.epoch == epoch + 1


def test_host_inside_a_frame_of_an_earlier_agent_is_asked_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HELLO_INTERVAL", 0.01)
    ours, theirs = socket.socketpair()
    with ours:
        world = World(f"fd:{theirs.detach()}", ours)
        earlier = Mux(GUEST)
        world.mux.start()
        earlier.receive(taken(world.mux))
        world.mux.receive(taken(earlier))
        stream = earlier.open(512)
        earlier.send(stream, bytes(20000))
        world.mux.receive(taken(earlier)[:-10000])
        assert world.mux.in_sync
        world.link.start()
        world.until(lambda: world.synced)
        assert world.mux.in_sync
        assert not world.mux.is_open(stream)
        # It asks no more.
        world.turn()
        assert not world.mux.queued
        os.close(world.link._fd)


def test_host_hangs_up_on_a_descriptor_ends_the_loop() -> None:
    ours, theirs = socket.socketpair()
    world = World(f"fd:{theirs.detach()}", ours)
    world.link.start()
    ours.close()
    assert world.loop.run() == 0


def test_host_hangs_up_on_a_socket_path_agent_connects_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RECONNECT_INTERVAL", 0.001)
    path = tmp_path / "port"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        world = World(str(path), socket.socket())
        world.link.start()
        world.host.close()
        world.host, _ = listener.accept()
        world.sync()
        stream = world.mux.open(513)
        world.until(lambda: stream in world.accepted)
        world.host.close()
        ours, theirs = socket.socketpair()
        world.host, world.mux, world.events = ours, Mux(HOST), []
        world.until(lambda: world.accepted[stream].log == ["closed 3"])
        ours.close()
        theirs.close()
        world.until(lambda: bool(select.select([listener], [], [], 0)[0]))
        world.host, _ = listener.accept()
        world.sync()
        assert world.link.epoch >= 2
        world.host.close()


def test_open_transport_absent_or_malformed_refused(tmp_path: Path) -> None:
    for device in (str(tmp_path / "none"), "fd:x", "fd:99999", str(tmp_path)):
        with pytest.raises(TransportError):
            open_transport(device)


def test_stream_opened_by_agent_is_seen_by_host(world: World) -> None:
    stream = world.link.open(512, Recorder())
    world.until(lambda: StreamOpened(stream, 512) in world.events)


# Memory that both sides see


def plug(world: World, *, size: int = limits.BULK_SIZE, kind: str = "0x1110", name: str = "0000:06:00.0") -> Path:
    """Have a device appear; return its memory, of which this test is the host's end."""
    folder = Path(world.devices, name)
    folder.mkdir()
    (folder / "enable").touch()
    (folder / "vendor").write_text("0x1af4\n")
    memory = folder / "resource2"
    memory.touch()
    os.truncate(memory, size)
    (folder / "device").write_text(f"{kind}\n")
    return memory


TOKEN = b"where the memory"


def share(world: World) -> mmap.mmap:
    path = plug(world)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), limits.BULK_SIZE)
    memory[: len(TOKEN)] = TOKEN
    world.mux.offer_memory(TOKEN)
    world.until(lambda: world.mux.has_memory)
    return memory


def received_of(world: World, stream: int, memory: mmap.mmap) -> tuple[bytes, int]:
    """What came on a stream, dealt with; and how much of it was shared."""
    data, count = b"", 0
    for event in world.events:
        if isinstance(event, DataReceived) and event.stream == stream:
            data += event.data
            world.mux.consumed(stream, len(event.data))
        elif isinstance(event, SharedReceived):
            start = bulk.offset(event.slot)
            data += memory[start : start + event.size]
            count += event.size
            world.mux.consumed(event.stream, event.size)
            world.mux.free(event.slot)
    world.events.clear()
    return data, count


def header(size: int) -> bytes:
    return b"<%06d>" % size


class Lending(Conveying):
    def readable(self, events: int) -> None:
        if self.world.link.convey(self.stream, self.pipe, header):
            self.conveyed += 1
            self.advance()
        elif data := os.read(self.pipe, 65536):
            self.sent.write(header(len(data)), data)
            self.advance()
        else:
            self.world.loop.forget(self.pipe)


@pytest.mark.parametrize("piece", [100, 8192, 100_000, 1 << 20])
def test_bulk_goes_through_memory_once_the_host_has_offered_some(world: World, piece: int) -> None:
    memory = share(world)
    payload = os.urandom(3 * limits.MUX_MAX_WINDOW)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(writing, True)
    conveyor.enlarge(writing, 1 << 20)
    handler = Lending(world, pipe)
    thread = feed(writing, payload, piece)
    received, lent = b"", 0

    def everything() -> bool:
        nonlocal received, lent
        data, count = received_of(world, handler.stream, memory)
        received += data
        lent += count
        return not thread.is_alive() and len(unwrapped(received)) == len(payload)

    world.until(everything, turns=8000)
    thread.join()
    assert unwrapped(received) == payload
    assert lent or piece == 100
    os.close(pipe)


class Waiting(Recorder):
    def writable(self, stream: int) -> None:
        self.log.append("writable")


def test_second_slot_is_lent_only_with_much_and_its_stream_hears_when_the_first_is_back(world: World) -> None:
    share(world)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    conveyor.enlarge(writing, 1 << 20)
    handler = Waiting()
    stream = world.link.open(111, handler)
    world.until(lambda: world.link.writable(stream) > limits.MUX_INITIAL_CREDIT)
    counts = []
    # Whole messages go; what is left then waits while one slot is under way, until much has come.
    for size in (100_000, 400_000, 200_000, 600_000):
        os.write(writing, bytes(size))
        assert world.link.convey(stream, pipe, header)
        counts.append((world.link._mux.lent(stream), conveyor.waiting(pipe)))
    rest = 100_000 - conveyor.FULL_BODY
    much = (rest + 600_000) % conveyor.FULL_BODY
    assert counts == [(1, rest), (1, rest + 400_000), (2, much), (2, much + 600_000)]
    assert not world.link.has_room(stream)
    world.link.notify_writable(stream)
    slots: list[int] = []
    world.until(lambda: slots.extend(e.slot for e in world.events if isinstance(e, SharedReceived)) or slots)
    assert handler.log == []
    world.mux.free(slots[0])
    world.until(lambda: handler.log)
    assert world.link._mux.lent(stream) == 1
    assert world.link.writable(stream) == 0
    os.close(pipe)
    os.close(writing)


def test_credit_and_a_slot_that_come_together_are_told_once(world: World) -> None:
    share(world)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    conveyor.enlarge(writing, 1 << 20)
    handler = Waiting()
    stream = world.link.open(111, handler)
    world.until(lambda: world.link.writable(stream) > limits.MUX_INITIAL_CREDIT)
    os.write(writing, bytes(1 << 20))
    assert world.link.convey(stream, pipe, header)
    world.until(lambda: any(isinstance(event, SharedReceived) for event in world.events))
    world.link.notify_writable(stream)
    shared = next(event for event in world.events if isinstance(event, SharedReceived))
    world.mux.consumed(stream, shared.size)
    world.mux.free(shared.slot)
    world.until(lambda: handler.log)
    assert handler.log == ["writable"]
    assert world.link.has_room(stream)
    os.close(pipe)
    os.close(writing)


def test_messages_that_are_framed_already_are_lent_as_they_are(world: World) -> None:
    memory = share(world)
    payload = os.urandom(200_000)
    pipe, writing = os.pipe2(os.O_NONBLOCK)
    conveyor.enlarge(writing, 1 << 20)
    os.write(writing, payload)
    stream = world.link.open(111, Recorder())
    world.until(lambda: StreamOpened(stream, 111) in world.events)
    world.until(lambda: world.link.writable(stream) > len(payload))
    assert world.link.convey(stream, pipe, header, is_framed=True)
    world.until(lambda: any(isinstance(event, SharedReceived) for event in world.events))
    assert received_of(world, stream, memory) == (payload, len(payload))
    os.close(pipe)
    os.close(writing)


def test_what_the_host_lends_is_handed_on_and_given_back(world: World) -> None:
    memory = share(world)
    stream = world.mux.open(513)
    world.until(lambda: world.mux.writable(stream) >= limits.BULK_SLOT_SIZE)
    data = os.urandom(limits.BULK_SLOT_SIZE)
    slot = world.mux.reserve_slot()
    memory[bulk.offset(slot) : bulk.offset(slot) + len(data)] = data
    world.mux.send_shared(stream, slot, len(data))
    world.until(lambda: SlotFreed(stream) in world.events)
    assert world.accepted[stream].received == data


def test_memory_that_comes_late_is_found_and_other_devices_are_not_taken_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MEMORY_INTERVAL", 0.001)
    plug(world, name="0000:05:00.0", size=1 << 20)
    plug(world, name="0000:07:00.0")  # of that size, without the token
    plug(world, name="0000:08:00.0", kind="0x1000")
    world.mux.offer_memory(TOKEN)
    for _ in range(20):
        world.turn()
    assert not world.mux.has_memory
    path = plug(world)
    with path.open("r+b") as file:
        file.write(TOKEN)
    world.until(lambda: world.mux.has_memory)


def test_memory_that_never_comes_is_given_up_and_nothing_waits_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MEMORY_INTERVAL", 0.0001)
    monkeypatch.setattr(link_module, "MEMORY_LOOKS", 3)
    looks = []
    monkeypatch.setattr(link_module.bulk_memory, "find", lambda token, devices: looks.append(devices))
    world.mux.offer_memory(TOKEN)
    stream = world.mux.open(513)
    world.mux.send(stream, b"hello")
    world.until(lambda: stream in world.accepted and world.accepted[stream].received == b"hello")
    world.until(lambda: len(looks) == 4)
    for _ in range(5):
        world.turn()
    assert len(looks) == 4
    assert not world.mux.has_memory


def test_new_session_offers_memory_anew_and_the_agent_forgets_the_old(world: World) -> None:
    memory = share(world)
    world.events.clear()
    world.mux.start()
    world.until(lambda: world.mux.in_sync)
    assert world.link._memory is None
    memory[: len(TOKEN)] = TOKEN[::-1]
    world.mux.offer_memory(TOKEN[::-1])
    world.until(lambda: world.mux.has_memory)
