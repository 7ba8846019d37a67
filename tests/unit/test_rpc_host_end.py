"""The session as the service's end of a call to the host, against callers that mean harm."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from insula.rpc import host_end
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.control import Finish, Host, Payload
from insula.rpc.host_end import HostEnd
from insula.testing.scripted_guest import ScriptedGuest, Stream, talk
from insula_proto import limits
from insula_proto.qrexec_channel import CallerEnd

pytestmark = pytest.mark.timeout(300)


class World:
    """Owner of the channel and of the end; the daemon is the test."""

    def __init__(self) -> None:
        host, guest = socket.socketpair()
        self.channel = Channel(host, self)
        self.guest = ScriptedGuest(guest)
        self.output, self._theirs = socket.socketpair()
        self.output.setblocking(False)
        self.payloads: list[Payload] = []
        self.closed = 0
        self.end: HostEnd

    async def start(self, limit: int, *, is_stream: bool = False) -> Stream:
        self.channel.start()
        await self.guest.flush()
        while not self.channel._mux.in_sync or not self.guest.mux.in_sync:
            await asyncio.sleep(0.001)
        self.end = HostEnd(
            self.channel, self._theirs, self, limits.FIRST_DATA_PORT, Host(1, 2, limit, is_stream), self.payloads.append
        )
        while not self.guest.streams:
            await asyncio.sleep(0.001)
        return self.guest.stream_of(limits.FIRST_DATA_PORT)

    async def close(self) -> None:
        self.channel.close()
        self.output.close()
        await self.guest.close()

    def relay_closed(self, port: int) -> None:
        self.closed += 1

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        return StreamHandler()  # the control channel, on which nothing is said here

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, reason: str) -> None:
        raise AssertionError(reason)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def test_answer_of_any_length_comes_with_its_code_after_all_of_it(world: World) -> None:
    stream = await world.start(10)
    talking = asyncio.create_task(talk(stream, b"hello"))
    await until(lambda: bool(world.payloads))
    assert world.payloads == [Payload(2, b"hello")]
    # The exit code may come long before the last of the output.
    world.end.finish(Finish(2, 5, b"words"))
    loop = asyncio.get_running_loop()
    for _ in range(40):
        await loop.sock_sendall(world.output, bytes(65536))
    world.output.shutdown(socket.SHUT_WR)
    result = await talking
    assert (result.code, len(result.out), result.err) == (5, 40 * 65536, b"words")
    await stream.finish()
    await until(lambda: world.closed == 1)
    assert world.end.to_qube == 40 * 65536


async def test_caller_that_does_not_end_its_request_is_told_so(world: World) -> None:
    """MC-13."""
    stream = await world.start(10)
    caller = CallerEnd()
    await stream.send(caller.hello())
    await stream.until(lambda: bool(stream.received))
    # Now that it has said HELLO its time is over, however long that took.
    timer = world.end._timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() <= host_end.INPUT_TIMEOUT
    timer.cancel()
    asyncio.get_running_loop().call_soon(world.end._too_slow)
    await stream.until(lambda: stream.is_finished)
    caller.receive(bytes(stream.received))
    assert caller.exit_code == 125
    assert world.payloads == []


@pytest.mark.parametrize("limit", [0, 10])
async def test_caller_that_never_says_hello_is_hung_up_on(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """MC-13."""
    monkeypatch.setattr(host_end, "INPUT_TIMEOUT", 0.1)
    stream = await world.start(limit)
    await stream.until(lambda: stream.is_reset)
    assert world.closed == 1


async def test_service_that_wants_nothing_is_not_kept_waiting_and_gets_nothing(world: World) -> None:
    stream = await world.start(0)
    world.output.send(b"answer")
    world.output.shutdown(socket.SHUT_WR)
    world.end.finish(Finish(2, 0))
    result = await talk(stream, b"x" * 100_000)
    assert (result.code, result.out) == (0, b"answer")
    assert world.payloads == []


@pytest.mark.parametrize("noise", [b"\xff" * 20, b"\0" * 8, CallerEnd().hello() * 2])
async def test_fault_on_a_data_channel_ends_that_call_and_no_more(world: World, noise: bytes) -> None:
    """MC-12, MC-21: it is a program's fault, not the agent's."""
    stream = await world.start(10)
    await stream.send(noise)
    await stream.until(lambda: stream.is_reset)
    assert world.closed == 1
    assert world.output.recv(1) == b""


async def test_caller_that_goes_is_seen_by_the_service(world: World) -> None:
    stream = await world.start(10)
    await stream.send(CallerEnd().hello())
    await stream.finish()
    await until(lambda: world.closed == 1)
    assert await asyncio.get_running_loop().sock_recv(world.output, 1) == b""


async def read(connection: socket.socket) -> bytes:
    """All that comes until its end."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while piece := await loop.sock_recv(connection, 65536):
        data += piece
    return bytes(data)


async def test_stream_of_any_length_goes_to_the_service_as_it_comes_with_its_end(world: World) -> None:
    stream = await world.start(0, is_stream=True)
    said = b"0123456789abcdef" * 65536  # four times the credit of a stream
    talking = asyncio.create_task(talk(stream, said))
    assert await read(world.output) == said
    world.output.send(b"taken")
    world.output.shutdown(socket.SHUT_WR)
    world.end.finish(Finish(2, 0, b""))
    result = await talking
    assert (result.code, result.out) == (0, b"taken")
    assert world.payloads == []


async def test_stream_that_nobody_takes_is_paced(world: World) -> None:
    """MC-14."""
    stream = await world.start(0, is_stream=True)
    talking = asyncio.create_task(talk(stream, bytes(8 << 20)))
    before = -1
    while before != world.end.from_qube:
        before = world.end.from_qube
        await asyncio.sleep(0.1)
    assert before < 2 << 20
    assert len(await read(world.output)) == 8 << 20
    world.output.shutdown(socket.SHUT_WR)
    world.end.finish(Finish(2, 0, b""))
    assert (await talking).code == 0


async def test_stream_that_the_service_gives_up_on_is_let_run_out_and_answered(world: World) -> None:
    stream = await world.start(0, is_stream=True)
    talking = asyncio.create_task(talk(stream, bytes(4 << 20)))
    loop = asyncio.get_running_loop()
    await loop.sock_recv(world.output, 100)
    world.output.send(b"no")
    world.end.finish(Finish(2, 3, b"too much"))
    world.output.close()
    result = await talking
    assert (result.code, result.out, result.err) == (3, b"no", b"too much")


async def test_caller_of_a_stream_that_goes_ends_it(world: World) -> None:
    stream = await world.start(0, is_stream=True)
    await stream.send(CallerEnd().hello())
    await stream.reset()
    assert await read(world.output) == b""
    assert world.closed == 1
