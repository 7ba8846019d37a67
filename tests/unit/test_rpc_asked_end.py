"""The session as the caller's end of a call of the host's, against services that mean harm."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from insula.rpc.asked_end import AskedEnd
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.control import Ask, Payload
from insula.testing.scripted_guest import ScriptedGuest, Stream
from insula_proto import limits
from insula_proto.qrexec import Stdin
from insula_proto.qrexec_channel import ServiceEnd

pytestmark = pytest.mark.timeout(300)
COMMAND = b"QUBESRPC policy.Ask dom0"


class World:
    """Owner of the channel and of the end; the daemon is the test."""

    def __init__(self) -> None:
        host, guest = socket.socketpair()
        self.channel = Channel(host, self)
        self.guest = ScriptedGuest(guest)
        self.daemon, self._theirs = socket.socketpair()
        self.daemon.setblocking(False)
        self.payloads: list[Payload] = []
        self.closed = 0
        self.end: AskedEnd
        self.service = ServiceEnd()

    async def start(self, size: int, limit: int = 10) -> Stream:
        self.channel.start()
        await self.guest.flush()
        while not self.channel._mux.in_sync or not self.guest.mux.in_sync:
            await asyncio.sleep(0.001)
        ask = Ask(7, "", COMMAND, size, limit)
        self.end = AskedEnd(self.channel, self._theirs, self, limits.FIRST_DATA_PORT, ask, self.payloads.append)
        while not self.guest.streams:
            await asyncio.sleep(0.001)
        return self.guest.stream_of(limits.FIRST_DATA_PORT)

    async def close(self) -> None:
        self.channel.close()
        self.daemon.close()
        await self.guest.close()

    def relay_closed(self, port: int) -> None:
        self.closed += 1

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        return StreamHandler()  # the control channel, on which nothing is said here

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, reason: str) -> None:
        raise AssertionError(reason)

    async def heard(self, stream: Stream) -> bytes:
        """All that the service is told, to its end."""
        await stream.send(self.service.hello())
        told, taken = b"", 0
        while True:
            await stream.more_than(taken)
            for message in self.service.receive(bytes(stream.received[taken:])):
                assert isinstance(message, Stdin) or not told
                if isinstance(message, Stdin):
                    if not message.data:
                        return told
                    told += message.data
            taken = len(stream.received)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 20])
async def test_service_is_told_all_and_its_answer_is_one_message(world: World, size: int) -> None:
    stream = await world.start(size)
    words = bytes(range(256)) * (size // 256) + bytes(size % 256)
    hearing = asyncio.create_task(world.heard(stream))
    await asyncio.get_running_loop().sock_sendall(world.daemon, words)
    assert await hearing == words
    for piece in (*world.service.stdout(b"all"), *world.service.stdout(b"ow"), world.service.finish(0)):
        await stream.send(piece)
    await until(lambda: bool(world.payloads))
    assert world.payloads == [Payload(7, b"allow")]
    await stream.finish()
    await until(lambda: world.closed == 1)


async def test_service_that_fails_has_said_nothing(world: World) -> None:
    stream = await world.start(0)
    await world.heard(stream)
    for piece in (*world.service.stdout(b"allow"), world.service.finish(1)):
        await stream.send(piece)
    await stream.finish()
    await until(lambda: world.closed == 1)
    assert world.payloads == []


async def test_answer_over_the_limit_ends_the_call(world: World) -> None:
    """MC-11."""
    stream = await world.start(0, limit=10)
    await world.heard(stream)
    for piece in world.service.stdout(b"x" * 11):
        await stream.send(piece)
    await until(lambda: world.closed == 1)
    await stream.until(lambda: stream.is_reset)
    assert world.payloads == []


@pytest.mark.parametrize("said", [b"\x00" * 8, b"\xff" * 64, b"\x93\x01\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00"])
async def test_service_that_breaks_the_rules_ends_its_own_call(world: World, said: bytes) -> None:
    """MC-12."""
    stream = await world.start(0)
    await stream.send(said)
    await until(lambda: world.closed == 1)
    assert world.payloads == []


async def test_service_that_goes_without_an_exit_code_has_said_nothing(world: World) -> None:
    stream = await world.start(0)
    await world.heard(stream)
    for piece in world.service.stdout(b"allow"):
        await stream.send(piece)
    await stream.finish()
    await until(lambda: world.closed == 1)
    assert world.payloads == []


async def test_daemon_that_does_not_want_to_know_any_more_ends_the_service(world: World) -> None:
    """MC-24."""
    stream = await world.start(3)
    await asyncio.get_running_loop().sock_sendall(world.daemon, b"ask")
    assert await world.heard(stream) == b"ask"
    world.daemon.close()
    await stream.until(lambda: stream.is_reset)
    assert world.closed == 1
