"""Calls between qubes without machines: real sessions and the real broker; the guests are scripts or real agents.

::

    async with call_world(tmp_path) as world:
        world.rules("test.Echo * work vault allow")
        work, vault = await world.boot("work"), await world.boot("vault")
        vault.services["test.Echo"] = echo
        result = await work.call("test.Echo", "vault", stdin=b"hello")
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from insula.events.bus import EventBus
from insula.model.errors import QubesException
from insula.policy.current import CurrentPolicy
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.store import PolicyStore
from insula.rpc.ask import Prompts
from insula.rpc.broker import Broker, QubeNow
from insula.rpc.call_log import CallLog
from insula.rpc.host_services import HostService
from insula.rpc.launcher import RunningSession, SessionLauncher
from insula.testing.agent import FakeQube
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served


async def echo(call: Served) -> Answer:
    """Exit code 7; what came in, and how it was called."""
    return Answer(7, call.stdin + b"|" + call.command.encode())


class CallWorld:
    """Qubes that run as soon as they are started; implements :class:`insula.rpc.broker.Qubes`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy_folder = folder / "policy.d"
        self.policy_folder.mkdir()
        self.agent_socket = folder / "agent.sock"
        """Of the program that asks the user."""
        self.bus = EventBus()
        self.launch = SessionLauncher()
        self.guests: dict[str, ScriptedGuest] = {}
        self.agents: dict[str, FakeQube] = {}
        self.sessions: dict[str, RunningSession] = {}
        self.facts: dict[str, QubeFacts] = {"dom0": QubeFacts("dom0", klass="AdminVM", power_state="Running")}
        self.services: dict[str, HostService] = {}
        self.started: list[str] = []
        self.disposables: list[str] = []
        self.on_start: Callable[[str], Awaitable[None]] | None = None
        """Done before a qube is started, a disposable included."""
        self.policies: list[Policy] = []
        """Versions, as they were noticed."""
        self._snapshot: Snapshot | None = None
        self._starting = asyncio.Lock()
        self._records = CallLog(folder / "calls.log", self.bus)
        self.broker = Broker(
            CurrentPolicy(PolicyStore(self.policy_folder), self.policies.append),
            self,
            self.services,
            Prompts(self.agent_socket),
            self._records,
        )
        self.launch.requests = self.broker

    def rules(self, text: str) -> None:
        """Make these the policy."""
        path = self.policy_folder / "50-test.new"
        path.write_text(text)
        path.replace(path.with_suffix(".policy"))

    def records(self) -> list[dict[str, object]]:
        """The log of calls so far."""
        path = self.folder / "calls.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add(self, name: str, **facts: object) -> None:
        """A qube that is off. A second one of a name has another UUID."""
        number = len(self.facts) + len(self.disposables)
        values = {"uuid": f"00000000-0000-4000-8000-{number:012d}", "guivm": "dom0", **facts}
        self.facts[name] = QubeFacts(name, **values)  # type: ignore[arg-type] # test data
        self._snapshot = None

    def remove(self, name: str) -> None:
        del self.facts[name]
        self._snapshot = None

    def set_state(self, name: str, state: str) -> None:
        self.facts[name] = replace(self.facts[name], power_state=state)
        self._snapshot = None

    def qid(self, name: str) -> int:
        return list(self.facts).index(name)

    async def boot(self, name: str, **facts: object) -> ScriptedGuest:
        """A qube that runs; its agent is the test's."""
        if name not in self.facts:
            self.add(name, **facts)
        ours, theirs = socket.socketpair()
        self.guests[name] = guest = ScriptedGuest(theirs)
        await self.attach(name, ours)
        await guest.ready.wait()
        return guest

    async def attach(self, name: str, channel: socket.socket) -> None:
        """A qube that runs; its agent is wherever the channel's other end is."""
        if name not in self.facts:
            self.add(name)
        (self.folder / name).mkdir(exist_ok=True)
        self.sessions[name] = await self.launch(
            name=name, qid=self.qid(name), channel=channel, rpc_socket=self.folder / name / "rpc.sock", keys={}
        )
        await self.sessions[name].wait_ready()
        self.set_state(name, "Running")

    async def boot_agent(self, name: str) -> FakeQube:
        """A qube that runs, with the product's agent as a process of this machine."""
        self.add(name)
        folder = self.folder / name
        folder.mkdir()
        self.agents[name] = qube = FakeQube(folder, name, self.qid(name))
        qube.launcher.requests = self.broker
        await qube.start_session()
        await qube.start_agent()
        await qube.ready()
        self.set_state(name, "Running")
        return qube

    async def end(self, name: str) -> None:
        """As a machine that is switched off."""
        await self.guests.pop(name).close()
        if name in self.sessions:  # else it was broken off while it started
            await self.sessions.pop(name).close()
        self.set_state(name, "Halted")

    async def close(self) -> None:
        await self.broker.close()
        for session in self.sessions.values():
            await session.close()
        for guest in self.guests.values():
            await guest.close()
        for qube in self.agents.values():
            await qube.close()
        await self.launch.close()
        self._records.close()

    # Qubes

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = Snapshot(self.facts.values())
        return self._snapshot

    def find(self, name: str) -> QubeNow | None:
        facts = self.facts.get(name)
        return None if facts is None else QubeNow(facts.alias, facts.power_state)

    async def start(self, name: str) -> None:
        self.started.append(name)
        if self.on_start is not None:
            await self.on_start(name)
        if name not in self.facts:
            raise QubesException(f"There is no qube {name}")
        async with self._starting:
            if self.facts[name].power_state == "Halted":
                (await self.boot(name)).services["test.Echo"] = echo

    @asynccontextmanager
    async def disposable(self, base: str, opener: str) -> AsyncIterator[str]:
        name = f"disp{len(self.disposables) + 1}"
        self.disposables.append(name)
        self.add(name, klass="DispVM")
        try:
            await self.start(name)
            yield name
        finally:
            if name in self.guests:
                await self.end(name)
            self.remove(name)


@asynccontextmanager
async def call_world(folder: Path) -> AsyncIterator[CallWorld]:
    world = CallWorld(folder)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(world.close)
        yield world
