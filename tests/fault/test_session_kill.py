"""A session process is killed at any moment; the qube goes on with the next one.

Neither the agent nor the pipe notices the kill: the next session has to find its way into the byte stream by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc.client import AgentNotReady, RpcError, SessionUnavailable, run_collect
from insula.testing.agent import FakeQube, fake_qube

PATIENCE = 60.0


@pytest.fixture
async def qube(tmp_path: Path) -> AsyncIterator[FakeQube]:
    async with fake_qube(tmp_path) as made:
        yield made


async def answers(qube: FakeQube, text: str) -> None:
    assert await run_collect(qube.rpc_socket, f"echo {text}", timeout=PATIENCE) == (0, f"{text}\n".encode(), b"")


async def replace_session(qube: FakeQube) -> None:
    """What the daemon does: the old one has died, start another."""
    assert "exit code" in await qube.kill_session()
    await qube.start_session()
    await qube.ready()


async def processes_gone(pids: list[int]) -> None:
    async with asyncio.timeout(PATIENCE):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.02)


async def written(path: Path, words: int) -> list[int]:
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or len(path.read_text().split()) < words:
            await asyncio.sleep(0.01)
    return [int(word) for word in path.read_text().split()]


async def test_kill_while_idle_next_session_serves(qube: FakeQube) -> None:
    await answers(qube, "before")
    await replace_session(qube)
    await answers(qube, "after")


async def test_kill_while_a_command_runs_caller_gets_255_and_process_ends(qube: FakeQube) -> None:
    """MC-22: a defined failure code, no orphan."""
    pids = qube.folder / "pids"
    call = asyncio.create_task(
        run_collect(qube.rpc_socket, f"sleep 1000 & echo $$ $! > {pids}; wait", timeout=PATIENCE)
    )
    running = await written(pids, 2)
    await replace_session(qube)
    assert (await call)[0] == 255
    await processes_gone(running)
    await answers(qube, "after")


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
async def test_kill_in_the_middle_of_transfers_both_ways_resyncs(qube: FakeQube, turns: int) -> None:
    """Cut at many places of the stream, frames half written and half read on both sides."""
    data = os.urandom(20_000_000)
    calls = [
        asyncio.create_task(run_collect(qube.rpc_socket, command, stdin=data, timeout=PATIENCE))
        for command in ("cat", "cat >/dev/null; sleep 1000", "head -c 30000000 /dev/urandom")
    ]
    assert qube.session is not None
    async with asyncio.timeout(PATIENCE):
        while qube.session.calls.running < len(calls):
            await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    await replace_session(qube)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        # Finished before the kill, or failed in the one way that is defined; never cut short and called a success.
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, RpcError)
        else:
            assert outcome[0] in (0, 255)
            assert outcome[0] == 255 or len(outcome[1]) in (20_000_000, 30_000_000)
    await answers(qube, "after")


async def test_kill_again_and_again_never_wedges_the_agent(qube: FakeQube) -> None:
    for number in range(5):
        call = asyncio.create_task(run_collect(qube.rpc_socket, "cat /dev/zero", timeout=PATIENCE))
        assert qube.session is not None
        async with asyncio.timeout(PATIENCE):
            while not qube.session.calls.running:
                await asyncio.sleep(0)
        await replace_session(qube)
        [outcome] = await asyncio.gather(call, return_exceptions=True)
        # The caller may not have read the session's answer yet; its connection is reset then.
        assert isinstance(outcome, SessionUnavailable) or (isinstance(outcome, tuple) and outcome[0] == 255)
        await answers(qube, str(number))


async def test_kill_while_the_agent_is_away_both_find_each_other(qube: FakeQube) -> None:
    await qube.kill_agent()
    await qube.kill_session()
    await qube.start_session()
    with pytest.raises(AgentNotReady):
        await run_collect(qube.rpc_socket, "true", timeout=PATIENCE)
    await qube.start_agent()
    await qube.ready()
    await answers(qube, "after")


async def test_between_two_sessions_callers_are_told_there_is_none(qube: FakeQube) -> None:
    await qube.kill_session()
    with pytest.raises(SessionUnavailable):
        await run_collect(qube.rpc_socket, "true", timeout=PATIENCE)
    await qube.start_session()
    await qube.ready()
    await answers(qube, "after")


@pytest.mark.parametrize("microseconds", [0, 500, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10000, 20000, 50000])
async def test_kill_while_its_sandbox_is_being_made_leaves_no_process(tmp_path: Path, microseconds: int) -> None:
    qube = FakeQube(tmp_path)
    try:
        session = await qube.start_session()
        await asyncio.sleep(microseconds / 1e6)  # only spreads the moments; any of them must end well
        async with asyncio.timeout(PATIENCE):
            await qube.kill_session()
            with pytest.raises(ConnectionError):
                await session.wait_ready()
        # A process of the sandbox would still hold the listening socket it was given.
        with pytest.raises(SessionUnavailable):
            await run_collect(qube.rpc_socket, "true", timeout=PATIENCE)
    finally:
        await qube.close()


async def test_parent_of_sessions_killed_next_session_comes_from_another(qube: FakeQube) -> None:
    parent = qube.launcher.parent_pid
    assert parent is not None
    assert qube.session is not None
    killed, qube.session = qube.session, None
    os.kill(parent, signal.SIGKILL)
    assert f"exit code {-signal.SIGKILL}" in await asyncio.wait_for(killed.wait_closed(), PATIENCE)
    await ended([parent, killed.pid])
    await qube.start_session()
    await qube.ready()
    await answers(qube, "after")
    assert qube.launcher.parent_pid != parent


DAEMON = """
import asyncio, pathlib, socket, sys
from insula.rpc.launcher import SessionLauncher
async def main():
    folder = pathlib.Path(sys.argv[1])
    async with SessionLauncher() as launch:
        pids, guests = [], []
        for number in (1, 2):
            channel, guest = socket.socketpair()
            guests.append(guest)
            session = await launch(name="q", qid=number, channel=channel, rpc_socket=folder / str(number), keys={})
            pids.append(session.pid)
        print(launch.parent_pid, *pids, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_daemon_killed_parent_and_sessions_end(tmp_path: Path, number: signal.Signals) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    pids = [int(word) for word in (await asyncio.wait_for(daemon.stdout.readline(), PATIENCE)).split()]
    assert len(pids) == 3
    daemon.send_signal(number)
    assert await asyncio.wait_for(daemon.wait(), PATIENCE) == -number
    await ended(pids)


async def ended(pids: list[int]) -> None:
    """Their own parent is gone too: waiting for them is the business of the system's first process."""
    async with asyncio.timeout(PATIENCE):
        while any(state(pid) not in ("", "Z") for pid in pids):
            await asyncio.sleep(0.02)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
