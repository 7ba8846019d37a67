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

from insula.hal import frames
from insula.rpc.client import AgentNotReady, RpcError, SessionUnavailable, run_collect
from insula.rpc.control import MemoryWanted
from insula.testing.agent import FakeQube, fake_qube
from insula_proto import bulk, mux_frames, qrexec

PATIENCE = 180.0


@pytest.fixture
async def qube(tmp_path: Path) -> AsyncIterator[FakeQube]:
    async with fake_qube(tmp_path) as made:
        yield made


async def answers(qube: FakeQube, text: str) -> None:
    assert await run_collect(qube.rpc_socket, f"echo {text}", timeout=PATIENCE) == (0, f"{text}\n".encode(), b"")


async def answered(qube: FakeQube, text: str) -> None:
    """As soon as the qube has an agent that its session has heard of."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                result = await run_collect(qube.rpc_socket, f"echo {text}", timeout=PATIENCE)
            except (AgentNotReady, SessionUnavailable):
                await asyncio.sleep(0.02)
                continue
            # (A slow agent asks twice, and the second time ends what was begun in between.)
            if result[0] != 255:
                assert result == (0, f"{text}\n".encode(), b"")
                return


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


# Memory that qube and session share


def holds_memory(pid: int) -> bool:
    """Whether a process has it mapped."""
    return frames.BULK_NAME in Path(f"/proc/{pid}/maps").read_text()


async def transfer(qube: FakeQube) -> None:
    """There and back, whole; large enough for memory to be asked for."""
    data = os.urandom(12_000_000)
    code, out, _ = await run_collect(qube.rpc_socket, "cat", stdin=data, timeout=PATIENCE)
    assert code == 0
    assert out == data


async def until_shared(qube: FakeQube) -> None:
    assert qube.session is not None
    assert qube.agent is not None
    async with asyncio.timeout(PATIENCE):
        while not (holds_memory(qube.session.pid) and holds_memory(qube.agent.pid)):
            await transfer(qube)
    await transfer(qube)


async def test_memory_is_shared_with_a_session_in_its_sandbox_and_its_bytes_arrive(qube: FakeQube) -> None:
    await until_shared(qube)
    assert sum(isinstance(message, MemoryWanted) for message in qube.messages) == 1
    assert qube.memory is not None
    # Not only its token.
    assert any(os.pread(qube.memory, 65536, bulk.offset(1 + slot)).strip(b"\0") for slot in range(14))


async def test_sharing_session_killed_next_one_and_the_agent_share_anew(qube: FakeQube) -> None:
    await until_shared(qube)
    for turns in (0, 3, 30):
        call = asyncio.create_task(run_collect(qube.rpc_socket, "cat /dev/zero", timeout=PATIENCE, limit=1 << 40))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await replace_session(qube)
        [outcome] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome, RpcError) or (isinstance(outcome, tuple) and outcome[0] == 255)
        await until_shared(qube)


async def test_sharing_agent_killed_next_one_shares_anew(qube: FakeQube) -> None:
    await until_shared(qube)
    call = asyncio.create_task(run_collect(qube.rpc_socket, "cat /dev/zero", timeout=PATIENCE, limit=1 << 40))
    async with asyncio.timeout(PATIENCE):
        while qube.session is not None and not qube.session.calls.running:
            await asyncio.sleep(0.001)
    await qube.kill_agent()
    await qube.start_agent()
    assert (await call)[0] == 255
    await answered(qube, "after")
    await until_shared(qube)


async def test_agent_killed_inside_a_frame_next_one_is_heard(qube: FakeQube) -> None:
    """Nobody tells the session: it waits for the rest, and takes what the next agent says first for a part of it."""
    call = asyncio.create_task(run_collect(qube.rpc_socket, "exec sleep 1000", timeout=PATIENCE))
    first_stream_of_the_host = 2
    async with asyncio.timeout(PATIENCE):
        while qube.session is not None and not qube.session.calls.running:
            await asyncio.sleep(0.001)
    await qube.kill_agent()
    message = qrexec.HEADER.pack(qrexec.STDOUT, 1000)
    frame = mux_frames.HEADER.pack(first_stream_of_the_host, mux_frames.DATA, len(message) + 1000)
    qube.guest_end.send(frame + message + b"begun")
    await qube.start_agent()
    assert (await call)[0] == 255
    await answered(qube, "after")


async def test_callers_that_go_in_the_middle_leave_no_slot_taken(qube: FakeQube) -> None:
    """MC-14, MC-22: more of them than there are slots, then everything still goes through the memory."""
    await until_shared(qube)
    data = bytes(30_000_000)
    for number in range(20):
        command = "cat" if number % 2 else "head -c 1000000 >/dev/null; exec sleep 1000"
        call = asyncio.create_task(run_collect(qube.rpc_socket, command, stdin=data, timeout=PATIENCE))
        await asyncio.sleep(0.01 * (number % 5))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await transfer(qube)
    await answers(qube, "after")


async def test_many_large_calls_at_once_arrive_whole(qube: FakeQube) -> None:
    await until_shared(qube)
    await asyncio.gather(*(transfer(qube) for _ in range(6)))
