from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc import launcher
from insula.rpc.control import AgentLost, AgentReady
from insula.rpc.launcher import RunningSession, SessionLauncher, listen

PATIENCE = 120.0


@pytest.fixture
async def launch() -> AsyncIterator[SessionLauncher]:
    async with SessionLauncher() as made:
        yield made


async def launched(launch: SessionLauncher, folder: Path) -> tuple[RunningSession, socket.socket]:
    """A session whose guest is the returned socket, on which nobody answers."""
    channel, guest = socket.socketpair()
    return await launch(name="work", qid=7, channel=channel, rpc_socket=folder / "rpc.sock", keys={}), guest


def test_listen_replaces_what_an_earlier_session_left_and_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "rpc.sock"
    for _ in range(2):
        with listen(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_listen_in_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        listen(tmp_path / "none" / "rpc.sock")


async def test_session_killed_before_the_agent_came_wait_ready_raises(launch: SessionLauncher, tmp_path: Path) -> None:
    session, guest = await launched(launch, tmp_path)
    with guest:
        waiting = asyncio.create_task(session.wait_ready())
        os.kill(session.pid, signal.SIGKILL)
        with pytest.raises(ConnectionError, match="exit code"):
            await asyncio.wait_for(waiting, PATIENCE)
        await session.close()


async def test_agent_lost_as_soon_as_it_came_is_waited_for_again(launch: SessionLauncher, tmp_path: Path) -> None:
    session, guest = await launched(launch, tmp_path)
    with guest:
        waiting = asyncio.create_task(session.wait_ready())
        await asyncio.sleep(0.01)  # lets it begin; it waits however long that takes
        session._take(AgentReady(4))
        session._take(AgentLost("the agent started over"))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        session._take(AgentReady(4))
        await asyncio.wait_for(waiting, PATIENCE)
        await session.close()


async def test_machine_gone_is_the_reason_of_the_end(launch: SessionLauncher, tmp_path: Path) -> None:
    session, guest = await launched(launch, tmp_path)
    guest.close()
    reason = await asyncio.wait_for(session.wait_closed(), PATIENCE)
    # Depending on whether it was reading or writing; either way its own words, not an exit code.
    assert reason == "the machine closed the channel" or reason.startswith("[Errno")


async def test_close_twice_ends_it_once(
    launch: SessionLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SHUTDOWN_TIMEOUT", PATIENCE)  # it ends by itself, on a busy machine in its time
    session, guest = await launched(launch, tmp_path)
    with guest:
        await asyncio.wait_for(session.close(), PATIENCE)
        await asyncio.wait_for(session.close(), PATIENCE)
        assert await session.wait_closed() == "exit code 0"
        with pytest.raises(OSError, match=r"."):
            await session.set_key("/name", b"x")


async def test_launch_with_a_key_that_cannot_be_told_keeps_channel(launch: SessionLauncher, tmp_path: Path) -> None:
    channel, guest = socket.socketpair()
    with channel, guest:
        with pytest.raises(Exception, match="not a key"):
            await launch(name="work", qid=7, channel=channel, rpc_socket=tmp_path / "s", keys={"bad": "x"})
        assert channel.fileno() >= 0


async def test_launcher_closed_ends_its_sessions_and_starts_no_more(tmp_path: Path) -> None:
    async with SessionLauncher() as launch:
        session, guest = await launched(launch, tmp_path)
    with guest:
        await asyncio.wait_for(session.wait_closed(), PATIENCE)
        with pytest.raises(ProcessLookupError):
            os.kill(session.pid, 0)
        with guest.dup() as channel, pytest.raises(OSError, match="closed"):
            await launch(name="work", qid=7, channel=channel, rpc_socket=tmp_path / "s", keys={})
