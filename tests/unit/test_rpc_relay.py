"""A call's bytes between a stream and a socket: what is held, what is lost, who is told of which end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from insula.hal import frames
from insula.rpc.call_table import CallTable
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.lending import LOAN, MAX_LENT, SMALLEST, WORD, Borrower, Lender
from insula.rpc.relay import BULK, Relay
from insula_proto import bulk, limits, mux
from insula_proto.mux import Mux
from insula_proto.mux_events import (
    DataReceived,
    FinReceived,
    MemoryOffered,
    MuxEvent,
    SharedReceived,
    SlotFreed,
    StreamOpened,
    StreamReset,
)

PATIENCE = 120.0
PIECE = b"sixteen bytes..."


class Owner:
    """Of the channel and of the calls; nothing is expected of it here."""

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        raise AssertionError((stream, port))

    wanted = 0
    """How often memory was asked for."""

    def memory_wanted(self) -> None:
        self.wanted += 1

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, reason: str) -> None:
        raise AssertionError(reason)

    def calls_changed(self) -> None:
        pass


class Guest:
    """The other end of the channel, driven by the test."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.mux = Mux(mux.GUEST)
        self.streams: list[int] = []
        self.events: list[MuxEvent] = []

    async def receive(self) -> None:
        for event in self.mux.receive(await self._loop.sock_recv(self._connection, 1 << 18)):
            self.events.append(event)
            if isinstance(event, StreamOpened):
                self.streams.append(event.stream)
        await self.flush()

    async def flush(self) -> None:
        while self.mux.queued:
            data = b"".join(self.mux.data_to_send())
            await self._loop.sock_sendall(self._connection, data)
            self.mux.sent(len(data))


async def test_window_filled_in_small_pieces_for_a_caller_that_does_not_read_is_held_once_and_arrives_whole() -> None:
    owner = Owner()
    host, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    channel = Channel(host, owner)
    guest = Guest(far)
    try:
        async with asyncio.timeout(PATIENCE):
            channel.start()
            while not guest.mux.in_sync:
                await guest.receive()
            while not channel._mux.in_sync:
                await asyncio.sleep(0.001)
            relay = Relay(channel, ours, CallTable(owner), limits.FIRST_DATA_PORT)
            while not guest.streams:
                await guest.receive()
            [stream] = guest.streams
            sent = 0
            # Until nothing is granted any more: the socket takes some of it, and more once the call is a large one.
            while channel._mux._streams.by_number[stream].receive_credit >= len(PIECE):
                while guest.mux.writable(stream) >= len(PIECE):
                    guest.mux.send(stream, PIECE)
                    sent += len(PIECE)
                await guest.flush()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(guest.receive(), 0.005)
            assert limits.MUX_MAX_WINDOW // 2 < len(relay._pending) <= limits.MUX_MAX_WINDOW
            assert sys.getsizeof(relay._pending) < 1.25 * limits.MUX_MAX_WINDOW
            received = 0
            theirs.setblocking(False)
            while received < sent:
                received += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 20))
    finally:
        channel.close()
        for end in (far, theirs):
            end.close()


class World:
    """A relay whose guest and whose peer are the test's."""

    def __init__(self) -> None:
        self.owner = Owner()
        host, self.far = socket.socketpair()
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.channel = Channel(host, self.owner)
        self.guest = Guest(self.far)
        self.ours = ours
        self.closed: list[int] = []
        self.relay: Relay

    async def start(self, *, peer_serves: bool) -> int:
        """Returns the guest's number of the stream."""
        self.channel.start()
        while not self.guest.mux.in_sync:
            await self.guest.receive()
        while not self.channel._mux.in_sync:
            await asyncio.sleep(0.001)
        self.relay = Relay(self.channel, self.ours, self, limits.FIRST_DATA_PORT, peer_serves=peer_serves)
        while not self.guest.streams:
            await self.guest.receive()
        return self.guest.streams[0]

    def relay_closed(self, port: int) -> None:
        self.closed.append(port)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.guest.receive(), 0.005)

    def close(self) -> None:
        self.channel.close()
        self.far.close()
        self.peer.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


def has(guest: Guest, kind: type[MuxEvent], stream: int) -> bool:
    return any(isinstance(event, kind) and getattr(event, "stream", None) == stream for event in guest.events)


async def test_service_that_ends_is_an_end_of_file_for_its_caller_and_nothing_is_lost(world: World) -> None:
    stream = await world.start(peer_serves=True)
    world.peer.send(b"last words")
    world.peer.close()
    await world.until(lambda: has(world.guest, FinReceived, stream))
    assert b"".join(event.data for event in world.guest.events if isinstance(event, DataReceived)) == b"last words"
    assert not has(world.guest, StreamReset, stream)
    assert world.closed == []
    # What the caller still says is for nobody, and does not end what it reads.
    world.guest.mux.send(stream, b"too late")
    world.guest.mux.finish(stream)
    await world.guest.flush()
    await world.until(lambda: world.closed == [limits.FIRST_DATA_PORT])
    assert (world.relay.to_qube, world.relay.from_qube) == (10, 8)


async def test_caller_that_goes_resets_the_stream_of_its_service(world: World) -> None:
    stream = await world.start(peer_serves=False)
    world.peer.close()
    await world.until(lambda: has(world.guest, StreamReset, stream))
    assert world.closed == [limits.FIRST_DATA_PORT]


@pytest.mark.parametrize("peer_serves", [True, False])
async def test_stream_reset_by_the_guest_closes_the_socket_once(world: World, peer_serves: bool) -> None:
    stream = await world.start(peer_serves=peer_serves)
    world.guest.mux.reset(stream)
    await world.guest.flush()
    assert await asyncio.get_running_loop().sock_recv(world.peer, 1) == b""
    assert world.closed == [limits.FIRST_DATA_PORT]
    world.relay.caller_gone()
    assert world.closed == [limits.FIRST_DATA_PORT]


async def test_guest_that_does_not_read_paces_the_peer(world: World) -> None:
    """MC-14: only what the stream has credit for is taken from the socket."""
    await world.start(peer_serves=True)
    loop = asyncio.get_running_loop()
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while True:
                await loop.sock_sendall(world.peer, bytes(65536))
                sent += 65536
    assert world.relay.to_qube <= limits.MUX_MAX_WINDOW
    assert sent < 4 * limits.MUX_MAX_WINDOW


# Memory that qube and session share


class SharingGuest:
    """What a guest with memory does: takes it, reads what is lent and gives it back."""

    def __init__(self, guest: Guest, memory: memoryview) -> None:
        self.guest = guest
        self.memory = memory
        self.received = bytearray()
        self.slots: list[int] = []
        """That were lent to it, in order."""
        self.frees = True
        self._seen = 0

    def take(self) -> None:
        """Deal with what came since the last time."""
        events, self._seen = self.guest.events[self._seen :], len(self.guest.events)
        mux = self.guest.mux
        for event in events:
            if isinstance(event, MemoryOffered):
                assert self.memory[: bulk.TOKEN_SIZE] == event.token
                mux.accept_memory(event.token)
            elif isinstance(event, DataReceived):
                self.received += event.data
                mux.consumed(event.stream, len(event.data))
            elif isinstance(event, SharedReceived):
                start = bulk.offset(event.slot)
                self.received += self.memory[start : start + event.size]
                self.slots.append(event.slot)
                mux.consumed(event.stream, event.size)
                if self.frees:
                    mux.free(event.slot)

    def lend(self, stream: int, data: bytes) -> None:
        slot = self.guest.mux.reserve_slot()
        start = bulk.offset(slot)
        self.memory[start : start + len(data)] = data
        self.guest.mux.send_shared(stream, slot, len(data))


async def send_and_take(world: World, guest: SharingGuest, data: bytes) -> None:
    """Have the peer send and the guest take it all."""
    loop = asyncio.get_running_loop()
    total = len(guest.received) + len(data)
    sending = asyncio.create_task(loop.sock_sendall(world.peer, data))
    while len(guest.received) < total:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(world.guest.receive(), 0.005)
        guest.take()
        await world.guest.flush()
    await sending


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(limits.BULK_SIZE))


async def test_large_call_asks_for_memory_once_and_goes_on_through_it(world: World, memory: memoryview) -> None:
    await world.start(peer_serves=True)
    guest = SharingGuest(world.guest, memory)
    first, second = os.urandom(BULK), os.urandom(3 * BULK)
    await send_and_take(world, guest, first)
    assert world.owner.wanted == 1
    world.channel.give_memory(memory)
    await world.until(lambda: has_memory(world, guest))
    await send_and_take(world, guest, second)
    assert guest.received == first + second
    assert len(guest.slots) >= 3
    assert world.owner.wanted == 1
    assert world.relay.to_qube == len(first + second)


def has_memory(world: World, guest: SharingGuest) -> bool:
    guest.take()
    return world.channel._mux.has_memory or world.guest.mux.queued > 0


async def shared(world: World, memory: memoryview, *, peer_serves: bool = True) -> tuple[int, SharingGuest]:
    """A call that is large already, with memory."""
    stream = await world.start(peer_serves=peer_serves)
    guest = SharingGuest(world.guest, memory)
    world.channel.give_memory(memory)
    while not world.channel._mux.has_memory:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(world.guest.receive(), 0.005)
        guest.take()
        await world.guest.flush()
    world.relay._is_bulk = True
    return stream, guest


async def test_while_a_slot_is_read_the_next_one_is_filled_and_goes_as_one(world: World, memory: memoryview) -> None:
    stream, guest = await shared(world, memory)
    guest.frees = False
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(world.peer, b"a" * 10000)
    await world.until(lambda: guest.take() or len(guest.slots) == 1)
    for _ in range(20):
        await loop.sock_sendall(world.peer, b"b" * 5000)
    await world.until(lambda: world.relay._filled == 100000)
    assert guest.received == b"a" * 10000
    world.guest.mux.free(guest.slots[0])
    await world.guest.flush()
    await world.until(lambda: guest.take() or len(guest.slots) == 2)
    assert guest.received == b"a" * 10000 + b"b" * 100000
    assert stream == world.relay.stream


async def test_little_of_a_large_call_is_sent_and_not_lent(world: World, memory: memoryview) -> None:
    _, guest = await shared(world, memory)
    await send_and_take(world, guest, b"a few words")
    assert guest.slots == []
    free = 0
    while world.channel._mux.reserve_slot():
        free += 1
    assert free == limits.BULK_SIZE // limits.BULK_SLOT_SIZE // 2


async def test_end_of_a_service_comes_after_what_waits_in_a_slot(world: World, memory: memoryview) -> None:
    stream, guest = await shared(world, memory)
    guest.frees = False
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(world.peer, b"a" * 10000)
    await world.until(lambda: guest.take() or len(guest.slots) == 1)
    await loop.sock_sendall(world.peer, b"b" * 10000)
    world.peer.close()
    await world.until(lambda: world.relay._filled == 10000)
    assert not has(world.guest, FinReceived, stream)
    world.guest.mux.free(guest.slots[0])
    await world.guest.flush()
    await world.until(lambda: guest.take() or has(world.guest, FinReceived, stream))
    assert guest.received == b"a" * 10000 + b"b" * 10000


async def test_slot_of_a_call_that_is_cancelled_is_free_again(world: World, memory: memoryview) -> None:
    stream, guest = await shared(world, memory, peer_serves=False)
    guest.frees = False
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(world.peer, b"a" * 10000)
    await world.until(lambda: guest.take() or len(guest.slots) == 1)
    await loop.sock_sendall(world.peer, b"b" * 10000)
    await world.until(lambda: world.relay._filled == 10000)
    world.guest.mux.reset(stream)
    world.guest.mux.free(guest.slots[0])
    await world.guest.flush()
    await world.until(lambda: world.closed == [limits.FIRST_DATA_PORT])
    free = 0
    while world.channel._mux.reserve_slot():
        free += 1
    assert free == limits.BULK_SIZE // limits.BULK_SLOT_SIZE // 2


async def test_what_a_guest_lends_arrives_and_its_slot_returns_though_the_caller_does_not_read(
    world: World, memory: memoryview
) -> None:
    """MC-14: a reader that waits keeps no slot from other streams."""
    stream, guest = await shared(world, memory, peer_serves=False)
    await world.until(lambda: world.guest.mux.writable(stream) >= limits.BULK_SLOT_SIZE)
    data = os.urandom(limits.BULK_SLOT_SIZE)
    guest.lend(stream, data)
    await world.guest.flush()
    await world.until(lambda: has(world.guest, SlotFreed, stream))
    # The guest may write anything there now.
    memory[bulk.offset(1) :] = bytes(limits.BULK_SIZE - bulk.offset(1))
    received = bytearray()
    loop = asyncio.get_running_loop()
    while len(received) < len(data):
        received += await loop.sock_recv(world.peer, 1 << 20)
    assert received == data


async def test_call_whose_guest_lends_is_large_from_its_beginning(world: World, memory: memoryview) -> None:
    """Its socket then holds as much as this machine lets it, so that little of a slot is kept in the session."""
    _, guest = await shared(world, memory, peer_serves=False)
    ours, peer = socket.socketpair()
    with peer:
        before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # Less than would hold a slot, whatever is the default here.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 4)
        relay = Relay(world.channel, ours, world, limits.FIRST_DATA_PORT + 1)
        await world.until(lambda: len(world.guest.streams) == 2)
        stream = world.guest.streams[1]
        await world.until(lambda: world.guest.mux.writable(stream) >= limits.BULK_SLOT_SIZE)
        guest.lend(stream, os.urandom(100_000))
        await world.guest.flush()
        await world.until(lambda: relay.from_qube)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= before
        relay.caller_gone()


# Memory lent on to the caller


class Caller:
    """The other end of a caller's connection, and how its session sees it."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.lender = Lender()
        self.lender.descriptor = frames.make(limits.BULK_SIZE, frames.BULK_NAME)
        self.borrower = Borrower(self._ours, self.lender)
        self.borrower.receive(WORD.pack(0))
        self._theirs.setblocking(False)

    def told(self) -> list[tuple[int, ...]]:
        with contextlib.suppress(BlockingIOError):
            return list(LOAN.iter_unpack(self._theirs.recv(4096)))
        return []

    def close(self) -> None:
        self.lender.close()
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def caller() -> Iterator[Caller]:
    made = Caller()
    yield made
    made.close()


async def borrowing(world: World, memory: memoryview, caller: Caller) -> tuple[int, SharingGuest]:
    stream, guest = await shared(world, memory, peer_serves=False)
    world.relay._borrower = caller.borrower
    caller.borrower.on_returned = world.relay._returned
    await world.until(lambda: world.guest.mux.writable(stream) >= limits.BULK_SLOT_SIZE)
    return stream, guest


async def test_slot_is_lent_on_and_is_the_guests_again_when_the_caller_returns_it(
    world: World, memory: memoryview, caller: Caller
) -> None:
    stream, guest = await borrowing(world, memory, caller)
    world.guest.mux.send(stream, b"before")
    await world.guest.flush()
    guest.lend(stream, bytes(SMALLEST))
    guest.lend(stream, bytes(2 * SMALLEST))
    await world.guest.flush()
    told: list[tuple[int, ...]] = []
    await world.until(lambda: told.extend(caller.told()) or len(told) == 2)
    assert [part[1:] for part in told] == [(SMALLEST, 6), (2 * SMALLEST, 6 + SMALLEST)]
    assert await asyncio.get_running_loop().sock_recv(world.peer, 100) == b"before"
    assert not has(world.guest, SlotFreed, stream)
    credit = world.guest.mux.credit(stream)
    for slot, _, _ in told:
        caller.borrower.receive(WORD.pack(slot))
    await world.until(lambda: sum(isinstance(event, SlotFreed) for event in world.guest.events) == 2)
    assert world.relay.from_qube == 6 + 3 * SMALLEST
    # What was dealt with may be sent again.
    guest.lend(stream, bytes(limits.BULK_SLOT_SIZE))
    await world.guest.flush()
    await world.until(lambda: caller.lender.lent)
    [(slot, _, _)] = caller.told()
    caller.borrower.receive(WORD.pack(slot))
    await world.until(lambda: world.guest.mux.credit(stream) > credit)


async def test_caller_that_goes_gives_its_slots_back(world: World, memory: memoryview, caller: Caller) -> None:
    stream, guest = await borrowing(world, memory, caller)
    guest.lend(stream, bytes(SMALLEST))
    guest.lend(stream, bytes(SMALLEST))
    await world.guest.flush()
    await world.until(lambda: caller.lender.lent == 2)
    world.peer.close()
    await world.until(lambda: has(world.guest, StreamReset, stream))
    await world.until(lambda: sum(isinstance(event, SlotFreed) for event in world.guest.events) == 2)
    assert caller.lender.lent == 0
    assert world.closed == [limits.FIRST_DATA_PORT]


async def test_guest_that_ends_its_stream_has_its_slots_back(world: World, memory: memoryview, caller: Caller) -> None:
    stream, guest = await borrowing(world, memory, caller)
    guest.lend(stream, bytes(SMALLEST))
    await world.guest.flush()
    await world.until(lambda: caller.lender.lent)
    world.guest.mux.reset(stream)
    await world.guest.flush()
    await world.until(lambda: any(isinstance(event, SlotFreed) for event in world.guest.events))
    assert caller.lender.lent == 0
    caller.borrower.receive(WORD.pack(caller.told()[0][0]))


async def test_slot_that_cannot_be_lent_on_is_copied(world: World, memory: memoryview, caller: Caller) -> None:
    """MC-14: callers that do not read hold a share of the slots, and no more."""
    stream, guest = await borrowing(world, memory, caller)
    caller.lender.lent = MAX_LENT
    data = os.urandom(SMALLEST)
    guest.lend(stream, data)
    await world.guest.flush()
    await world.until(lambda: has(world.guest, SlotFreed, stream))
    received = bytearray()
    while len(received) < len(data):
        received += await asyncio.get_running_loop().sock_recv(world.peer, 1 << 20)
    assert received == data


async def test_channel_that_starts_over_takes_lent_slots_with_it(
    world: World, memory: memoryview, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a caller returns later is none of the new epoch's."""
    stream, guest = await borrowing(world, memory, caller)
    guest.lend(stream, bytes(SMALLEST))
    await world.guest.flush()
    await world.until(lambda: caller.lender.lent)
    monkeypatch.setattr(world.owner, "lost", lambda reason: None)
    world.channel.drop("nonsense")
    assert caller.lender.lent == 0
    assert world.closed == [limits.FIRST_DATA_PORT]
    caller.borrower.receive(WORD.pack(caller.told()[0][0]))
