"""Processes for windows: which one a qube gets, with a parent that makes pipes in place of processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from insula.gui import control, spare
from insula.gui.control import Configure
from insula.gui.spare import Supply
from insula.gui.spawn import gui_uid
from insula.hal.driver import MAX_HOST_NUMBER
from insula.preload.messages import Fork, View
from insula.rpc.spawn import SESSION_UID_BASE

HERE = View((), (), (("DISPLAY", "unix:0"),), 0)
ELSEWHERE = View((), (), (("DISPLAY", "unix:1"),), 0)
PATIENCE = 120.0


class FakeProcess:
    """As :class:`insula.preload.forks.ForkedProcess`, with what the process would have."""

    def __init__(self, request: Fork, descriptors: Sequence[int]) -> None:
        self.pid = 4711
        self.request = request
        self.words = os.dup(descriptors[0])
        self.socket = socket.socket(fileno=os.dup(descriptors[1]))
        self._ended = asyncio.Event()

    def kill(self) -> None:
        if not self._ended.is_set():
            os.close(self.words)
            self.socket.close()
            self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return -9

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    def handed(self) -> str:
        """Whose windows it shows."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, control.MAX_MESSAGE, 2)
        assert len(descriptors) == 2
        for descriptor in descriptors:
            os.close(descriptor)
        message = control.decode_to_gui(data)
        assert isinstance(message, Configure)
        return message.qube


class FakeParent:
    def __init__(self) -> None:
        self.made: list[FakeProcess] = []
        self.fails = False

    async def fork(self, request: Fork, descriptors: Sequence[int]) -> FakeProcess:
        if self.fails:
            raise OSError("no sandbox")
        self.made.append(FakeProcess(request, descriptors))
        return self.made[-1]

    async def until(self, count: int) -> FakeProcess:
        async with asyncio.timeout(PATIENCE):
            while len(self.made) < count:
                await asyncio.sleep(0)
        return self.made[count - 1]


class Bench:
    def __init__(self) -> None:
        self.parent = FakeParent()
        self.supply = Supply(self.parent)  # type: ignore[arg-type]
        self.channel, self._other = socket.socketpair()

    async def start(self, qube: str, view: View = HERE) -> None:
        made = await self.supply.start(view, Configure(qube, 0x3465A4), self.channel, self.channel.fileno())
        # Whoever it was given to would have these.
        made.daemon.close()
        made.words.close()

    async def end(self) -> None:
        for process in self.parent.made:
            process.kill()
        await self.supply.close()
        self.channel.close()
        self._other.close()


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(spare, "DELAY_S", 0)
    made = Bench()
    yield made
    await made.end()


async def test_the_next_window_gets_the_process_that_was_made_before(bench: Bench) -> None:
    await bench.start("work")
    first, second = await bench.parent.until(1), await bench.parent.until(2)
    assert first.handed() == "work"
    await asyncio.sleep(0)
    await bench.start("personal")
    assert second.handed() == "personal"
    await bench.parent.until(3)


async def test_none_is_made_before_a_window_is_wanted(bench: Bench) -> None:
    await asyncio.sleep(0.01)
    assert bench.parent.made == []


async def test_whoever_asks_before_it_is_made_gets_a_new_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "DELAY_S", 1000)
    for name in ("work", "personal"):
        await bench.start(name)
    assert [process.handed() for process in bench.parent.made] == ["work", "personal"]


async def test_another_desktop_gets_one_of_its_own_and_then_the_spare_is_for_that(bench: Bench) -> None:
    await bench.start("work")
    spare_one = await bench.parent.until(2)
    await asyncio.sleep(0)
    await bench.start("personal", ELSEWHERE)
    third, fourth = await bench.parent.until(3), await bench.parent.until(4)
    assert third.handed() == "personal" and third.request.view == ELSEWHERE
    assert fourth.request.view == ELSEWHERE
    assert not spare_one.is_running


async def test_one_that_ended_unnoticed_is_not_given_away(bench: Bench) -> None:
    await bench.start("work")
    second = await bench.parent.until(2)
    await asyncio.sleep(0)
    second.kill()
    await bench.start("personal")
    assert (await bench.parent.until(3)).handed() == "personal"


async def test_one_whose_desktop_has_gone_is_forgotten(bench: Bench) -> None:
    await bench.start("work")
    (await bench.parent.until(2)).kill()
    for _ in range(10):
        await asyncio.sleep(0)
    bench.parent.fails = True
    with pytest.raises(OSError, match="no sandbox"):
        await bench.start("personal")


async def test_one_that_cannot_be_made_beforehand_is_missed_by_nobody(bench: Bench) -> None:
    await bench.start("work")
    await bench.parent.until(2)
    await asyncio.sleep(0)
    await bench.start("personal")
    bench.parent.fails = True
    await asyncio.sleep(0.01)
    bench.parent.fails = False
    await bench.start("vault")
    assert "vault" in [process.handed() for process in bench.parent.made[2:]]


async def test_no_two_that_run_are_the_same_user_and_none_is_a_qubes(bench: Bench) -> None:
    for name in ("work", "personal"):
        await bench.start(name)
    await bench.parent.until(3)
    users = [process.request.uid for process in bench.parent.made]
    if os.geteuid() == 0:
        assert len(set(users)) == 3
        assert all(uid is not None and uid > SESSION_UID_BASE + MAX_HOST_NUMBER for uid in users)
        bench.parent.made[0].kill()
        for _ in range(10):
            await asyncio.sleep(0)
        await bench.start("vault", ELSEWHERE)
        assert bench.parent.made[3].request.uid == gui_uid(0)
    else:
        assert set(users) == {None}


async def test_nothing_is_left_when_it_is_closed(bench: Bench) -> None:
    await bench.start("work")
    second = await bench.parent.until(2)
    await asyncio.sleep(0)
    await bench.supply.close()
    assert not second.is_running
