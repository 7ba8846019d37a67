"""The daemon's end of a process that shows windows, with a process that says what a test wants."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from insula.gui import clip_file, control
from insula.gui.control import CopyOffered, Deliver, Ending, Focused, FromGui, Told
from insula.gui.launcher import RunningGui
from insula.preload.last_words import LastWords

PATIENCE = 120.0


class FakeProcess:
    """As :class:`insula.preload.forks.ForkedProcess`; killing it is noted."""

    pid = 4711

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self.code = 0

    def kill(self) -> None:
        self.end(-9)

    def end(self, code: int) -> None:
        if not self._ended.is_set():
            self.code = code
            self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return self.code


class Bench:
    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.process = FakeProcess()
        self.taken: list[FromGui] = []
        self.clips: list[bytes] = []
        self.running = RunningGui("work", self.process, ours, LastWords(reader), self._take)  # type: ignore[arg-type]

    def _take(self, name: str, message: FromGui, descriptors: list[int]) -> None:
        assert name == "work"
        self.taken.append(message)
        self.clips += [clip_file.read(descriptor, 100) for descriptor in descriptors]

    def say(self, data: bytes, *descriptors: int) -> None:
        socket.send_fds(self.theirs, [data], descriptors)

    def end(self, code: int) -> None:
        os.close(self.writer)
        self.process.end(code)

    async def reason(self) -> str:
        return await asyncio.wait_for(self.running.wait_closed(), PATIENCE)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    if made.process.code == 0 and not made.process._ended.is_set():
        made.end(0)
    await made.reason()
    made.theirs.close()


async def test_messages_are_taken_in_order_and_the_last_one_is_the_reason(bench: Bench) -> None:
    for message in (Focused(), Told("hello"), Ending("the guest closed the channel")):
        bench.say(control.encode(message))
    while len(bench.taken) < 3:
        await asyncio.sleep(0)
    bench.end(0)
    assert await bench.reason() == "the guest closed the channel"
    assert bench.taken[:2] == [Focused(), Told("hello")]


async def test_clip_comes_with_its_message(bench: Bench) -> None:
    clip = clip_file.make(b"text")
    bench.say(control.encode(CopyOffered(1)), clip)
    os.close(clip)
    while not bench.clips:
        await asyncio.sleep(0)
    assert bench.clips == [b"text"]


@pytest.mark.parametrize("with_descriptor", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        msgspec.msgpack.encode({"type": "Told", "text": "\x1b"}),
        control.encode(Deliver(1)),
        control.encode(CopyOffered(1)),
        control.encode(Focused()),
    ],
)
async def test_process_that_breaks_the_protocol_is_ended(bench: Bench, data: bytes, with_descriptor: bool) -> None:
    good = (data == control.encode(CopyOffered(1))) is with_descriptor
    if good and data in (control.encode(CopyOffered(1)), control.encode(Focused())):
        return  # as it should be
    clip = clip_file.make(b"x")
    bench.say(data, *([clip] if with_descriptor else []))
    os.close(clip)
    async with asyncio.timeout(PATIENCE):
        await bench.process.wait()
    os.close(bench.writer)
    assert "broke the protocol" in await bench.reason()
    assert bench.process.code == -9


async def test_delivered_clip_arrives_and_one_that_is_not_taken_is_no_error(bench: Bench) -> None:
    clip = clip_file.make(b"text")
    bench.running.deliver(7, clip)
    data, [descriptor], _, _ = socket.recv_fds(bench.theirs, 4096, 1)
    assert control.decode_to_gui(data) == Deliver(7)
    assert clip_file.read(descriptor, 100) == b"text"
    os.close(descriptor)
    for _ in range(10_000):
        bench.running.deliver(8, clip)  # nobody reads
    os.close(clip)
