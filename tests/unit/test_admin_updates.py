"""Updates that belong to a connection: kept if the template was shut down, undone by everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.admin import updates
from insula.admin.client import AdminClient
from insula.model import errors
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.testing.admin_daemon import AdminDaemon, admin_daemon

TEMPLATE = QubeName("debian-12")
LIMIT_S = 120.0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


@pytest.fixture
def client(daemon: AdminDaemon) -> AdminClient:
    return daemon.client


def state(daemon: AdminDaemon) -> PowerState:
    return daemon.engine.power_state(TEMPLATE)


def is_marked(daemon: AdminDaemon) -> bool:
    return updates.UPDATING in daemon.store.system.get(TEMPLATE).features


async def until_halted(daemon: AdminDaemon) -> None:
    async with asyncio.timeout(LIMIT_S):
        while state(daemon) is not PowerState.HALTED or is_marked(daemon):
            await asyncio.sleep(0)


async def test_template_that_is_shut_down_is_kept(daemon: AdminDaemon, client: AdminClient) -> None:
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        ready = await anext(stream)
        assert (ready.name, state(daemon), is_marked(daemon)) == ("update-ready", PowerState.RUNNING, True)
        assert ready.kwargs["rpc_socket"].endswith("rpc.sock")
        await client.shutdown(TEMPLATE, wait=True)
        ended = await anext(stream)
        assert (ended.name, ended.kwargs["kept"]) == ("update-ended", "True")
    await until_halted(daemon)


async def test_caller_who_goes_leaves_the_template_as_it_was(daemon: AdminDaemon, client: AdminClient) -> None:
    """MC-96"""
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
    await until_halted(daemon)
    assert TEMPLATE in daemon.engine.killed


async def test_machine_that_stands_still_on_a_full_disk_ends_the_update(
    daemon: AdminDaemon, client: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "LOOK_S", 0.05)
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
        daemon.engine.states[TEMPLATE] = PowerState.PAUSED
        ended = await anext(stream)
        assert ended.kwargs["kept"] == "False"
        assert "disk is full" in ended.kwargs["why"]
    await until_halted(daemon)
    assert TEMPLATE in daemon.engine.killed


async def test_machine_that_somebody_pauses_does_not(
    daemon: AdminDaemon, client: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "LOOK_S", 0.05)
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
        await client.call("admin.vm.Pause", TEMPLATE)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await client.call("admin.vm.Unpause", TEMPLATE)
        await client.shutdown(TEMPLATE, wait=True)
        assert (await waiting).kwargs["kept"] == "True"
    await until_halted(daemon)


async def test_killed_machine_is_not_called_kept(daemon: AdminDaemon, client: AdminClient) -> None:
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
        await client.kill(TEMPLATE)
        assert (await anext(stream)).kwargs["kept"] == "False"
    await until_halted(daemon)


async def test_running_template_other_class_and_second_update_are_refused(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    with pytest.raises(errors.QubesException, match="no template"):
        await anext(client.stream("insula.update.Open", "work"))
    async with aclosing(client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
        with pytest.raises(errors.QubesVMNotHaltedError, match="running"):
            await anext(client.stream("insula.update.Open", TEMPLATE))
        assert state(daemon) is PowerState.RUNNING
    await until_halted(daemon)


async def test_start_that_fails_leaves_no_mark(daemon: AdminDaemon, client: AdminClient) -> None:
    daemon.engine.fail("start", errors.QubesMemoryError("not enough memory"))
    with pytest.raises(errors.QubesMemoryError):
        await anext(client.stream("insula.update.Open", TEMPLATE))
    await until_halted(daemon)


async def test_daemon_that_comes_back_ends_what_was_lost(daemon: AdminDaemon) -> None:
    """MC-96, MC-62"""
    system = daemon.store.system
    daemon.context.commit(system.with_qube(system.get(TEMPLATE).with_feature(updates.UPDATING, "1")))
    await daemon.engine.start(TEMPLATE)
    await updates.recover(daemon.context)
    assert state(daemon) is PowerState.HALTED
    assert TEMPLATE in daemon.engine.killed
    assert not is_marked(daemon)
