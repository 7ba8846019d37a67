"""Processes killed in the middle of calls between qubes: the other side ends, nothing is left, the next call works."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from insula.testing.call_world import CallWorld, call_world, echo
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served

pytestmark = pytest.mark.timeout(300)

CALLS = 20
RULES = "test.Echo * work vault allow\ntest.Wait * work vault allow\ntest.Echo * work @dispvm allow\n"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CallWorld]:
    async with call_world(tmp_path) as made:
        made.rules(RULES)
        made.add("dvm", template_for_dispvms=True)
        await made.boot("work", default_dispvm="dvm")
        vault = await made.boot("vault")
        vault.services["test.Echo"] = echo
        vault.services["test.Wait"] = wait
        yield made


async def wait(call: Served) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError(call)


async def until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.005)


def descriptors(pid: int | str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("victim", ["work", "vault"])
async def test_session_killed_during_calls_ends_them_on_both_sides_and_leaves_nothing(
    world: CallWorld, victim: str
) -> None:
    """MC-22."""
    work, vault = world.guests["work"], world.guests["vault"]
    before = descriptors("self")
    calling = [asyncio.create_task(work.call("test.Wait", "vault")) for _ in range(CALLS)]
    await until(lambda: len(vault.executed) == CALLS)
    os.kill(world.sessions[victim].pid, signal.SIGKILL)
    await until(lambda: not world.broker._calls)
    if victim == "vault":
        results = await asyncio.gather(*calling)
        assert {result.code for result in results if result is not None} == {None}
    else:
        await until(lambda: all(stream.is_reset for stream in vault.streams.values()))
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
    assert world.broker._quota._loads == {}
    assert len(world.records()) == CALLS
    await replace(world, victim)
    result = await world.guests["work"].call("test.Echo", "vault", stdin=b"again")
    assert result is not None
    assert result.out.startswith(b"again")
    assert descriptors("self") <= before + 4  # what belongs to the session that took the place


async def replace(world: CallWorld, name: str) -> None:
    """What a supervisor and an agent do: another session, another handshake."""
    await world.sessions.pop(name).close()
    await world.guests.pop(name).close()
    ours, theirs = socket.socketpair()
    world.guests[name] = guest = ScriptedGuest(theirs)
    await world.attach(name, ours)
    await guest.ready.wait()
    if name == "vault":
        guest.services["test.Echo"] = echo


async def test_session_of_the_opener_killed_its_disposables_are_removed(world: CallWorld) -> None:
    """MC-69."""
    work = world.guests["work"]
    # Asked for and not talked to: these calls go on until somebody ends them.
    answers = [await work.ask("test.Echo", "@dispvm") for _ in range(3)]
    assert all(answer is not None for answer in await asyncio.gather(*answers))
    assert len(world.guests) == 5
    os.kill(world.sessions["work"].pid, signal.SIGKILL)
    await until(lambda: not world.broker._calls)
    assert {name for name in world.facts if name.startswith("disp")} == set()


async def test_parent_of_all_sessions_killed_every_call_ends(world: CallWorld) -> None:
    """The daemon itself goes on; supervisors replace the sessions."""
    work, vault = world.guests["work"], world.guests["vault"]
    calling = [asyncio.create_task(work.call("test.Wait", "vault")) for _ in range(CALLS)]
    await until(lambda: len(vault.executed) == CALLS)
    assert world.launch.parent_pid is not None
    os.kill(world.launch.parent_pid, signal.SIGKILL)
    await until(lambda: not world.broker._calls)
    assert world.broker._quota._loads == {}
    for task in calling:
        task.cancel()
    await asyncio.gather(*calling, return_exceptions=True)


async def test_hundreds_of_calls_leave_no_descriptor_anywhere(world: CallWorld) -> None:
    """MC-107: allowed, refused and taken back."""
    work = world.guests["work"]
    assert await work.call("test.Echo", "vault") is not None
    pids = ("self", world.sessions["work"].pid, world.sessions["vault"].pid)
    await until(lambda: not world.broker._calls)
    before = [descriptors(pid) for pid in pids]
    for _ in range(4):
        ident = work.new_ident()
        await work.ask("test.Wait", "vault", ident=ident)
        await work.say(work.control.withdraw_service(ident))
        results = await asyncio.gather(*(work.call("test.Echo", "vault") for _ in range(50)))
        assert all(result is not None and result.code == 7 for result in results)
        assert await work.call("test.None", "vault") is None
    held = [stream for stream in work.streams.values() if not stream.is_finished]
    for stream in held:
        await stream.reset()
    await until(lambda: not world.broker._calls)
    await until(lambda: [descriptors(pid) for pid in pids] == before)
