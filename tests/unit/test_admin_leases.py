"""Disposables that belong to a connection: what ends it ends them, and nothing stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.admin import leases
from insula.admin.client import AdminClient
from insula.admin.leases import LEASED, Options, parse_options
from insula.model import errors
from insula.model.names import QubeName
from insula.model.properties import view
from insula.model.state import PowerState
from insula.testing.admin_daemon import AdminDaemon, admin_daemon

DVM = QubeName("debian-12-dvm")
WAIT_S = 120.0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


@pytest.fixture
def client(daemon: AdminDaemon) -> AdminClient:
    return daemon.client


def disposables(daemon: AdminDaemon) -> list[QubeName]:
    return [qube.name for qube in daemon.store.system.qubes.values() if qube.klass == "DispVM"]


async def until_no_disposable(daemon: AdminDaemon) -> None:
    async with asyncio.timeout(WAIT_S):
        while disposables(daemon):
            await asyncio.sleep(0)


# the lease


async def test_disposable_runs_while_the_stream_is_open_and_is_gone_after(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    async with aclosing(client.open_disposable("debian-12")) as stream:
        ready = await anext(stream)
        name = QubeName(ready.subject)
        assert ready.name == "disposable-ready"
        assert Path(ready.kwargs["rpc_socket"]).parent.name == name
        assert daemon.engine.power_state(name) is PowerState.RUNNING
        assert {"created-by-dom0", "disp-created-by-dom0"} <= daemon.store.system.get(name).tags
    await until_no_disposable(daemon)


async def test_caller_that_goes_away_during_the_start_leaves_nothing(daemon: AdminDaemon, client: AdminClient) -> None:
    """MC-69."""
    daemon.engine.hold("start")
    stream = client.open_disposable("debian-12")
    opening = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(WAIT_S):
        while PowerState.TRANSIENT not in daemon.engine.states.values():
            await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await stream.aclose()
    await until_no_disposable(daemon)


async def test_caller_that_goes_away_while_it_is_made_leaves_nothing(daemon: AdminDaemon, client: AdminClient) -> None:
    gate = daemon.engine.hold("create_disposable")
    stream = client.open_disposable("debian-12")
    opening = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(WAIT_S):
        while DVM not in daemon.store.system.qubes:
            await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await stream.aclose()
    gate.set()
    await until_no_disposable(daemon)


async def test_disposable_that_does_not_start_is_refused_by_name_and_gone(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    daemon.engine.fail("start", errors.QubesMemoryError("not enough memory"))
    with pytest.raises(errors.QubesMemoryError, match="not enough memory"):
        await anext(client.open_disposable("debian-12"))
    await until_no_disposable(daemon)


async def test_machine_that_ends_by_itself_is_told_and_ends_the_stream(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    async with aclosing(client.open_disposable("debian-12")) as stream:
        name = (await anext(stream)).subject
        await client.kill(name)
        ended = await anext(stream)
        assert (ended.subject, ended.name, ended.kwargs) == (name, "disposable-ended", {"reason": "stopped"})
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert disposables(daemon) == []


@pytest.mark.parametrize(
    ("options", "reason"), [({"lifetime_s": 0.01}, "lifetime"), ({"cpu_time_s": 0.5, "lifetime_s": 60}, "cpu-time")]
)
async def test_limit_ends_the_disposable_and_is_told(
    daemon: AdminDaemon, client: AdminClient, options: dict[str, object], reason: str
) -> None:
    """The fake machine has always used one second of CPU time."""
    async with aclosing(client.open_disposable("debian-12", options)) as stream:
        await anext(stream)
        assert (await anext(stream)).kwargs == {"reason": reason}
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert disposables(daemon) == []


async def test_leases_are_limited_and_come_back(
    daemon: AdminDaemon, client: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-68."""
    monkeypatch.setattr(leases, "MAX_LEASES", 1)
    async with aclosing(client.open_disposable("debian-12")) as first:
        await anext(first)
        with pytest.raises(errors.QubesException, match="held by programs already"):
            await anext(client.open_disposable("debian-12"))
    await until_no_disposable(daemon)
    async with aclosing(client.open_disposable("debian-12")) as again:
        await anext(again)


async def test_end_of_the_daemon_ends_them(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        stream = daemon.client.open_disposable("debian-12")
        await anext(stream)
        engine, store = daemon.engine, daemon.store
    assert [name for name in store.system.qubes if name.startswith("disp")] == []
    assert PowerState.RUNNING not in engine.states.values()
    assert [record.name async for record in stream] in ([], ["disposable-ended"])


async def test_recover_ends_what_a_dead_daemon_held_and_nothing_else(daemon: AdminDaemon, client: AdminClient) -> None:
    async with aclosing(client.open_disposable("debian-12")) as stream:
        await anext(stream)
        await client.create_disposable("debian-12-dvm")
        await client.set_feature("work", LEASED, "1")
        assert len(disposables(daemon)) == 2
        await daemon.context.leases.recover(daemon.context)
        assert len(disposables(daemon)) == 1
        assert LEASED not in daemon.store.system.get(disposables(daemon)[0]).features
        assert "work" in daemon.store.system.qubes


# what it is made of


async def test_template_gets_one_hidden_disposable_template_without_network(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    async def use() -> None:
        async with aclosing(client.open_disposable("debian-12")) as stream:
            await anext(stream)

    await asyncio.gather(*(use() for _ in range(5)))
    made = daemon.store.system.get(DVM)
    assert (made.klass, made.template, made.label) == ("AppVM", "debian-12", "black")
    assert (made.properties["template_for_dispvms"], made.properties["netvm"]) == (True, None)
    assert made.features["internal"] == "1"
    assert "disposable-template" in made.tags
    await until_no_disposable(daemon)
    await client.remove(DVM)
    await use()
    assert DVM in daemon.store.system.qubes


async def test_name_taken_by_another_qube_is_refused(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.create_qube("AppVM", DVM, "red")
    with pytest.raises(errors.QubesException, match="is not a disposable template of debian-12"):
        await anext(client.open_disposable("debian-12"))
    await client.set_property("template_for_dispvms", "True", DVM)
    async with aclosing(client.open_disposable("debian-12")) as stream:
        await anext(stream)


async def test_dom0_means_its_default_and_else_the_default_template(daemon: AdminDaemon, client: AdminClient) -> None:
    async with aclosing(client.open_disposable()) as stream:
        name = (await anext(stream)).subject
        assert daemon.store.system.get(name).template == DVM
    await client.create_qube("AppVM", "mine", "red")
    await client.set_property("template_for_dispvms", "True", "mine")
    await client.set_property("default_dispvm", "mine")
    async with aclosing(client.open_disposable()) as stream:
        name = (await anext(stream)).subject
        assert daemon.store.system.get(name).template == "mine"


async def test_qube_that_is_no_disposable_template_is_refused(client: AdminClient) -> None:
    with pytest.raises(errors.QubesException, match="work does not have template_for_dispvms set"):
        await anext(client.open_disposable("work"))


async def test_options_are_set_before_the_start(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.create_qube("AppVM", "net", "red")
    await client.set_property("provides_network", "True", "net")
    options = {"memory_mib": 600, "vcpus": 1, "netvm": "net"}
    async with aclosing(client.open_disposable("debian-12", options)) as stream:
        name = (await anext(stream)).subject
        here = view(daemon.store.system, daemon.store.system.get(name))
        assert (here.number("memory"), here.number("vcpus"), here.vm("netvm")) == (600, 1, "net")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"netvm": "nosuch"}, errors.QubesException),
        ({"netvm": "work"}, errors.QubesPropertyValueError),
        ({"vcpus": 10**6}, errors.QubesException),
    ],
)
async def test_option_that_cannot_be_is_refused_and_leaves_nothing(
    daemon: AdminDaemon, client: AdminClient, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await anext(client.open_disposable("debian-12", options))
    await until_no_disposable(daemon)


# options


def test_options_are_parsed_and_absent_ones_are_the_templates() -> None:
    assert parse_options(b"") == parse_options(b"{}") == Options()
    assert parse_options(b'{"netvm": null}').properties == {"netvm": ""}
    given = parse_options(b'{"memory_mib": 300, "vcpus": 2, "lifetime_s": 1.5, "cpu_time_s": 3}')
    assert given == Options(memory_mib=300, vcpus=2, lifetime_s=1.5, cpu_time_s=3.0)
    assert given.properties == {"memory": "300", "vcpus": "2"}


@pytest.mark.parametrize(
    "untrusted_payload",
    [
        b"[]", b"x", b"\xff", b'{"color": 1}', b'{"vcpus": "2"}', b'{"vcpus": 0}', b'{"vcpus": true}', b'{"netvm": 1}',
        b'{"lifetime_s": 0}', b'{"lifetime_s": NaN}', b'{"lifetime_s": 1e99}', b'{"cpu_time_s": "1"}', b"[" * 60000,
    ],
)  # fmt: skip
def test_options_malformed_are_refused(untrusted_payload: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        parse_options(untrusted_payload)


async def test_options_malformed_are_answered_by_name(client: AdminClient) -> None:
    with pytest.raises(errors.ProtocolError):
        await client.call("insula.disposable.Open", "debian-12", payload=json.dumps({"x": 1}).encode())
