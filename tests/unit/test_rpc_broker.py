"""Calls between qubes: real session processes and the real broker; the guests are the test's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from insula.events.bus import EventBus
from insula.model.errors import QubesException
from insula.policy.current import CurrentPolicy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.store import PolicyStore
from insula.rpc.ask import Prompts
from insula.rpc.broker import Broker
from insula.rpc.call_log import CallLog
from insula.rpc.host_services import HostService
from insula.rpc.launcher import RunningSession, SessionLauncher
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served

PATIENCE = 30.0


class World:
    """Qubes that run as soon as they are started; implements :class:`insula.rpc.broker.Qubes`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "policy.d").mkdir()
        self.launch = SessionLauncher()
        self.guests: dict[str, ScriptedGuest] = {}
        self.sessions: dict[str, RunningSession] = {}
        self.facts: dict[str, QubeFacts] = {"dom0": QubeFacts("dom0", klass="AdminVM", power_state="Running")}
        self.services: dict[str, HostService] = {}
        self.started: list[str] = []
        self.disposables: list[str] = []
        self._snapshot: Snapshot | None = None
        self.broker: Broker

    def rules(self, text: str) -> None:
        (self.folder / "policy.d" / "50-test.policy").write_text(text)

    def add(self, name: str, **facts: object) -> None:
        number = len(self.facts)
        values = {"uuid": f"00000000-0000-4000-8000-{number:012d}", "guivm": "dom0", **facts}
        self.facts[name] = QubeFacts(name, **values)  # type: ignore[arg-type]
        self._snapshot = None

    async def boot(self, name: str) -> ScriptedGuest:
        if name not in self.facts:
            self.add(name)
        ours, theirs = socket.socketpair()
        (self.folder / name).mkdir(exist_ok=True)
        self.guests[name] = guest = ScriptedGuest(theirs)
        qid = list(self.facts).index(name)
        self.sessions[name] = await self.launch(
            name=name, qid=qid, channel=ours, rpc_socket=self.folder / name / "rpc.sock", keys={}
        )
        await self.sessions[name].wait_ready()
        await guest.ready.wait()
        self.set_state(name, "Running")
        return guest

    def set_state(self, name: str, state: str) -> None:
        self.facts[name] = replace(self.facts[name], power_state=state)
        self._snapshot = None

    async def close(self) -> None:
        for session in self.sessions.values():
            await session.close()
        for guest in self.guests.values():
            await guest.close()
        await self.launch.close()

    # Qubes

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = Snapshot(self.facts.values())
        return self._snapshot

    async def start(self, name: str) -> None:
        self.started.append(name)
        if name not in self.facts:
            raise QubesException(f"no {name}")
        guest = await self.boot(name)
        guest.services["test.Echo"] = echo

    @asynccontextmanager
    async def disposable(self, base: str, opener: str) -> AsyncIterator[str]:
        name = f"disp{len(self.disposables) + 1}"
        self.disposables.append(name)
        self.add(name, klass="DispVM")
        guest = await self.boot(name)
        guest.services["test.Echo"] = echo
        try:
            yield name
        finally:
            await self.sessions.pop(name).close()
            await self.guests.pop(name).close()
            del self.facts[name]
            self._snapshot = None


async def echo(call: Served) -> Answer:
    return Answer(7, call.stdin + b"|" + call.command.encode())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    records = CallLog(tmp_path / "calls.log", EventBus())
    policy = CurrentPolicy(PolicyStore(tmp_path / "policy.d"), lambda _: None)
    made.broker = Broker(policy, made, made.services, Prompts(tmp_path / "agent.sock"), records)
    made.launch.requests = made.broker
    async with AsyncExitStack() as undo:
        undo.callback(records.close)
        undo.push_async_callback(made.close)
        undo.push_async_callback(made.broker.close)
        async with asyncio.timeout(PATIENCE):
            yield made


async def test_allowed_call_goes_to_the_target_and_its_answer_comes_back(world: World) -> None:
    world.rules("test.Echo * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    result = await work.call("test.Echo+arg", "vault", stdin=b"hello")
    assert result is not None
    assert (result.code, result.domain) == (7, 2)
    assert result.out == b"hello|user:QUBESRPC test.Echo+arg work"


async def test_call_that_no_rule_allows_is_refused_and_nothing_reaches_the_target(world: World) -> None:
    world.rules("test.Echo * work vault deny\n")
    work, vault = await world.boot("work"), await world.boot("vault")
    assert await work.call("test.Echo", "vault") is None
    assert await work.call("test.Other", "vault") is None
    assert vault.executed == []


async def test_caller_that_claims_to_be_another_qube_is_refused_under_its_own_name(world: World) -> None:
    """MC-18: only a qube that relays for a remote one may speak for it."""
    world.rules("test.Echo * vault target allow\ntest.Echo * work target deny\n")
    work, target = await world.boot("work"), await world.boot("target")
    await world.boot("vault")
    assert await work.call("test.Echo", "target", source="vault") is None
    assert await work.call("test.Echo", "target") is None
    assert target.executed == []
