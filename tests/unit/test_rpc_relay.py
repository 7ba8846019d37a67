"""A call's bytes between a stream and a socket: what is held, what is lost, who is told of which end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from insula.rpc.call_table import CallTable
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.relay import Relay
from insula_proto import limits, mux
from insula_proto.mux import DataReceived, FinReceived, Mux, MuxEvent, StreamOpened, StreamReset

PATIENCE = 60.0
PIECE = b"sixteen bytes..."


class Owner:
    """Of the channel and of the calls; nothing is expected of it here."""

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        raise AssertionError((stream, port))

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
            while guest.mux.writable(stream) >= len(PIECE):
                while guest.mux.writable(stream) >= len(PIECE):
                    guest.mux.send(stream, PIECE)
                    sent += len(PIECE)
                await guest.flush()
            while channel._mux._streams[stream].receive_credit >= len(PIECE):
                await asyncio.sleep(0.001)
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

    async def until(self, condition: Callable[[], bool]) -> None:
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
