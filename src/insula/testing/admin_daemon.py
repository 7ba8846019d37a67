"""An Admin API server without machines: the real store, bus and server around :class:`FakeEngine`.

For tests of clients::

    async with admin_daemon(tmp_path) as daemon:
        await daemon.client.start("work")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from insula.admin.api import INTERNAL_METHODS, METHODS
from insula.admin.application_lists import ApplicationLists
from insula.admin.call import Context
from insula.admin.client import AdminClient
from insula.admin.dispatch import Dispatcher
from insula.admin.server import AdminServer, Identity, LocalIdentity
from insula.admin.uploads import Uploads
from insula.events.bus import EventBus
from insula.lifecycle.create import plan_create
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.seeds import Seed, SeedKey
from insula.lifecycle.standby import StandbyCount
from insula.lifecycle.template import TemplateImage
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.property_types import Runtime
from insula.model.system import PoolConfig, System
from insula.store.store import Store
from insula.testing.fake_engine import FakeEngine

KERNEL = "6.1.0"
"""The one kernel that is installed."""
TEMPLATE = QubeName("debian-12")
WORK = QubeName("work")
HOST = Runtime(host_memory_mib=16384, host_cpus=4, kernel_options={KERNEL: "console=hvc0"})


@dataclass
class FakeControl:
    """Implements :class:`insula.admin.call.DaemonControl`."""

    is_shut_down: bool = False

    def status(self) -> Mapping[str, object]:
        return {"version": "0", "pid": 1, "driver": "fake", "capabilities": []}

    async def shut_down(self) -> None:
        self.is_shut_down = True


@dataclass
class FakeTemplates:
    """Implements :class:`insula.admin.call.TemplateService`."""

    installed: list[TemplateImage] = field(default_factory=list)
    made: list[Seed] = field(default_factory=list)

    async def install(self, image: TemplateImage) -> None:
        self.installed.append(image)

    def seeds(self) -> list[Seed]:
        return self.made

    async def in_waiting(self) -> dict[str, StandbyCount]:
        return {seed.folder.name: StandbyCount(1, 70 << 10, 3) for seed in self.made}

    async def build_seed(self, name: QubeName) -> Seed:
        key = SeedKey(str(name), "1", "6.1 build", "quiet", 400, 2, ("root", "private", "volatile"), "fake")
        seed = Seed(Path(key.name), key, 1_750_000_000.0, 1_750_000_000.0, 250 << 20, "")
        self.made.append(seed)
        return seed

    def drop_seed(self, seed: str) -> bool:
        left = [other for other in self.made if other.folder.name != seed]
        was_there, self.made = len(left) < len(self.made), left
        return was_there


@dataclass(frozen=True)
class AdminDaemon:
    client: AdminClient
    internal: AdminClient
    """Client of the internal socket."""
    socket: Path
    internal_socket: Path
    context: Context
    store: Store
    engine: FakeEngine
    bus: EventBus
    control: FakeControl
    templates: FakeTemplates


@asynccontextmanager
async def admin_daemon(folder: Path, identity: Identity | None = None) -> AsyncIterator[AdminDaemon]:
    """Serve a system with the template ``debian-12`` and its app qube ``work``; ``folder`` must exist."""
    async with AsyncExitStack() as rooms:
        store = rooms.enter_context(Store.open(folder / "system.db"))
        if not store.system.pools:
            store.commit(furnished(store.system, folder))
        bus = EventBus()
        engine = FakeEngine(store, bus)
        await engine.make_volumes()
        control, templates = FakeControl(), FakeTemplates()
        context = Context(
            store=store,
            engine=engine,
            bus=bus,
            daemon=control,
            templates=templates,
            host=lambda: HOST,
            rpc_socket=lambda name: folder / name / "rpc.sock",
            uploads=rooms.enter_context(Uploads(folder / "uploads")),
            applications=ApplicationLists(folder / "applications"),
        )
        sockets = (folder / "admin.sock", folder / "internal.sock")
        for path, methods in zip(sockets, (METHODS, INTERNAL_METHODS), strict=True):
            server = AdminServer(Dispatcher(context, methods), path, identity or LocalIdentity())
            await rooms.enter_async_context(server)
        rooms.callback(bus.close)
        yield AdminDaemon(
            client=AdminClient(sockets[0]),
            internal=AdminClient(sockets[1]),
            socket=sockets[0],
            internal_socket=sockets[1],
            context=context,
            store=store,
            engine=engine,
            bus=bus,
            control=control,
            templates=templates,
        )


def furnished(system: System, folder: Path) -> System:
    """A new system as it is after the first template was installed, with one app qube."""
    system = system.with_pool(PoolConfig("default", "qcow2", {"dir_path": str(folder / "pool")}))
    system = system.with_pool(PoolConfig("linux-kernel", "linux-kernel", {"dir_path": str(folder / "kernels")}))
    system = system.with_property("default_pool_kernel", "linux-kernel").with_property("default_kernel", KERNEL)
    made = CreateRequest(klass=Klass.TEMPLATEVM, name=TEMPLATE, label="black")
    system = plan_create(system, made, UUID(int=1)).with_property("default_template", TEMPLATE)
    return plan_create(system, CreateRequest(klass=Klass.APPVM, name=WORK, label="blue"), UUID(int=2))


async def exchange(path: Path, data: bytes) -> bytes:
    """Send raw bytes, half-close, and return everything that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.write_eof()
        try:
            return await reader.read()
        except ConnectionError:
            return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
