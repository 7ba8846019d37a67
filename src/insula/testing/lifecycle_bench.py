"""The engine on a bench: a fake hypervisor and fake sessions, a real store and a real pool.

For tests of what ``lifecycle`` does at each step, in each order, and after each crash, without a virtual machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from insula.events.bus import EventBus
from insula.events.types import Event
from insula.hal.fake import FakeDriver, FakeGuest, FakeHost
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.host import Host
from insula.lifecycle.kernels import Kernels
from insula.lifecycle.manager import LifecycleEngine
from insula.lifecycle.memory import MemoryLedger
from insula.lifecycle.seed_keeper import SeedKeeper
from insula.lifecycle.seeds import SeedStore
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.model.system import PoolConfig
from insula.storage.registry import open_pool
from insula.store.store import Store
from insula.testing.fake_session import FakeSessions

TEMPLATE = QubeName("template")
WORK = QubeName("work")


class Bench:
    """One daemon's rooms; ``crash`` and ``reopen`` play a kill -9 and the next daemon."""

    def __init__(self, folder: Path, *, with_seeds: bool = False) -> None:
        """``with_seeds``: starts may be forks; without, every start boots."""
        self.folder = folder
        self.seeds = SeedStore(folder / "seeds")
        self._with_seeds = with_seeds
        self.computer = FakeHost()
        self.sessions = FakeSessions()
        self.available_mib = 8192
        self.published: list[Event] = []
        self.engine: LifecycleEngine
        self.host: Host
        self._rooms = AsyncExitStack()

    async def open(self) -> None:
        store = self._rooms.enter_context(Store.open(self.folder / "system.db"))
        if not store.system.pools:
            pool = PoolConfig("default", "qcow2", {"dir_path": str(self.folder / "pool"), "reserve_mib": "1"})
            store.commit(store.system.with_pool(pool).with_property("default_kernel", "6.1"))
        bus = EventBus()
        publish = bus.publish

        def remember(event: Event) -> None:
            self.published.append(event)
            publish(event)

        bus.publish = remember  # type: ignore[method-assign]
        self.host = Host(
            store=store,
            bus=bus,
            driver=FakeDriver(self.computer),
            kernels=Kernels(self.folder / "kernels"),
            launch_session=self.sessions,
            runtime_folder=lambda name: self.folder / "run" / name,
            console_folder=self.folder / "logs",
            memory=MemoryLedger(lambda: self.available_mib),
        )
        for config in store.system.pools.values():
            self.host.pools[config.name] = open_pool(config)
            self._rooms.push_async_callback(self.host.pools[config.name].aclose)
        keeper = SeedKeeper(self.host, self.seeds) if self._with_seeds else None
        self.engine = LifecycleEngine(self.host, self.folder / "run", keeper)
        await self.engine.recover()

    async def crash(self) -> None:
        """The daemon is gone without a word; its machines run on."""
        await self.engine.leave()
        await self._rooms.aclose()
        self._rooms = AsyncExitStack()

    async def reopen(self) -> None:
        await self.crash()
        await self.open()

    def names_of(self, qube: str) -> list[str]:
        return [event.name for event in self.published if event.subject == qube]

    def guest(self, name: str) -> FakeGuest:
        """The newest machine of a qube."""
        return [g for g in self.computer.guests.values() if g.spec.name == name][-1]

    async def until(self, state: PowerState, name: QubeName = WORK) -> None:
        async with asyncio.timeout(60):
            while self.engine.power_state(name) is not state:
                await asyncio.sleep(0)

    def leftovers(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in (self.folder / "run").iterdir())


@asynccontextmanager
async def engine_bench(folder: Path, *, with_seeds: bool = False) -> AsyncIterator[Bench]:
    """A bench with a template and an app qube, ``work``, both halted."""
    bench = Bench(folder, with_seeds=with_seeds)
    (folder / "run").mkdir()
    image = folder / "image"
    image.write_bytes(b"kernel")
    Kernels(folder / "kernels").install("6.1", image, image, "quiet")
    await bench.open()
    await bench.engine.create(CreateRequest("TemplateVM", TEMPLATE, "black"))
    await bench.engine.create(CreateRequest("AppVM", WORK, "blue", template=TEMPLATE))
    bench.published.clear()
    yield bench
    await bench.crash()
    for guest in bench.computer.guests.values():
        guest.die()
