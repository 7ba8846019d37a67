"""The engine without machines and disks: the same rules, states and events, everything in memory.

For tests of the Admin API and of the command line. What it makes of a request is what lifecycle makes of it
(:func:`insula.lifecycle.create.plan_create`); only machines and volumes are make-believe. Failures and delays are
scripted::

    engine.fail("start", QubesMemoryError("not enough memory"))     # the next start
    gate = engine.hold("start")                                     # starts wait until gate.set()
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from insula.events.bus import EventBus
from insula.events.types import Event
from insula.hal.driver import MachineStats
from insula.lifecycle.create import KERNEL_VOLUME, disks_of, plan_create, require_unborrowed
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.kernels import Kernel
from insula.lifecycle.plan import StartPlan, plan_start
from insula.model.block import VolumeSpec
from insula.model.errors import (
    QubesException,
    QubesPoolInUseError,
    QubesPoolNotFoundError,
    QubesVMInUseError,
    QubesVMNotHaltedError,
    QubesVMNotPausedError,
    QubesVMNotRunningError,
    QubesVMNotStartedError,
    StoragePoolException,
)
from insula.model.names import QubeName
from insula.model.properties import allows_disposables, view
from insula.model.state import PowerState
from insula.model.system import MAX_DISPID, PoolConfig
from insula.model.volumes import refreshed
from insula.storage.pool import Pool, PoolUsage, Revision
from insula.store.store import Store
from insula.testing.fake_pool import FakePool

START_TIME = 1_750_000_000.0
"""Unix time of every start."""
GUEST_USED_KIB = 65536
"""Host memory every running machine uses."""


class FakeEngine:
    """Implements :class:`insula.lifecycle.engine.Engine`. Pools of the store's system are there from the start."""

    def __init__(self, store: Store, bus: EventBus) -> None:
        self.store = store
        self.bus = bus
        self.states: dict[QubeName, PowerState] = {}
        self.cds: dict[QubeName, Path] = {}
        """Images that qubes were started with."""
        self.cd_contents: dict[QubeName, bytes] = {}
        """What was in those that were there: a machine keeps its image open, whatever becomes of the name."""
        self.shown_on: dict[QubeName, Mapping[str, str] | None] = {}
        """Where windows were asked for."""
        self.killed: set[QubeName] = set()
        """Those whose last end was a kill."""
        self.changed: list[tuple[QubeName | None, str]] = []
        """What :meth:`property_changed` was told."""
        self.pools: dict[str, FakePool] = {
            name: FakePool(name, config.driver, config.options) for name, config in store.system.pools.items()
        }
        self._failures: defaultdict[tuple[str, str], list[Exception]] = defaultdict(list)
        self._gates: dict[str, asyncio.Event] = {}

    async def make_volumes(self) -> None:
        """Give the qubes that the store knew already their volumes."""
        for qube in self.store.system.qubes.values():
            for volume in disks_of(qube):
                await self.pools[volume.pool].create(volume)

    # scripting

    def fail(self, operation: str, error: Exception, *, of: str = "") -> None:
        """The next call of the method ``operation``, for the qube ``of`` if given, raises ``error`` (once)."""
        self._failures[operation, of].append(error)

    def hold(self, operation: str) -> asyncio.Event:
        """Calls of the method ``operation`` wait until the returned event is set."""
        return self._gates.setdefault(operation, asyncio.Event())

    async def _scripted(self, operation: str, name: str = "") -> None:
        if operation in self._gates:
            await self._gates[operation].wait()
        for failures in (self._failures[operation, name], self._failures[operation, ""]):
            if failures:
                raise failures.pop(0)

    def _publish(self, subject: str, name: str, /, **kwargs: str) -> None:
        self.bus.publish(Event(subject, name, kwargs))

    # power

    def power_state(self, name: QubeName) -> PowerState:
        qube = self.store.system.get(name)
        return self.states.get(name, PowerState.HALTED) if qube.klass.has_machine else PowerState.RUNNING

    def start_plan(self, name: QubeName) -> StartPlan:
        kernel = Kernel("fake", Path("/nowhere/vmlinuz"), Path("/nowhere/initrd"), "")
        return plan_start(self.store.system.with_property("default_kernel", "fake"), name, lambda _version: kernel)

    async def start(self, name: QubeName, cd: Path | None = None) -> None:
        if cd is not None:
            self.cds[name] = cd
            if cd.is_file():
                self.cd_contents[name] = cd.read_bytes()
        qube = self.store.system.get(name)
        reason = qube.features.get("prohibit-start")
        if reason:
            raise QubesException(f"{name} must not be started: {reason}")
        if self.power_state(name) is not PowerState.HALTED:
            return
        self.states[name] = PowerState.TRANSIENT
        memory = view(self.store.system, qube).number("memory")
        self._publish(name, "domain-pre-start", start_guid="None", mem_required=str(memory * 1024 * 1024))
        try:
            await self._scripted("start", name)
        except BaseException as error:
            self.states[name] = PowerState.HALTED
            self._publish(name, "domain-start-failed", reason=str(error))
            raise
        self._publish(name, "domain-pre-spawn", start_guid="None")
        for prop in ("xid", "stubdom_xid", "start_time"):
            self._publish(name, f"property-reset:{prop}", name=prop)
        self._publish(name, "domain-spawn", start_guid="None")
        for event in ("domain-qdb-create", "domain-pre-unpaused", "domain-unpaused"):
            self._publish(name, event)
        self.states[name] = PowerState.RUNNING
        self._publish(name, "domain-start", start_guid="None")

    async def shutdown(self, name: QubeName, *, force: bool, wait: bool) -> None:
        self._require_started(name)
        if self.states[name] is PowerState.PAUSED and not force:
            raise QubesVMNotRunningError(f"{name} is paused")
        users = [other for other in self.states if self._uses_network_of(other, name)]
        if users and not force:
            raise QubesVMInUseError(f"{name} provides the network of running qubes: {', '.join(users)}")
        await self._scripted("shutdown")
        self.killed.discard(name)
        self._publish(name, "domain-pre-shutdown", force=str(force))
        self._end(name)

    async def kill(self, name: QubeName) -> None:
        self._require_started(name)
        await self._scripted("kill")
        self.killed.add(name)
        self._end(name)

    async def pause(self, name: QubeName) -> None:
        self._require_started(name)
        if self.states[name] is not PowerState.RUNNING:
            raise QubesVMNotRunningError(f"{name} is {self.states[name].value.lower()}, not running")
        self._publish(name, "domain-pre-paused")
        self.states[name] = PowerState.PAUSED
        self._publish(name, "domain-paused")

    async def show_windows(self, name: QubeName, desktop: Mapping[str, str] | None) -> None:
        self._require_started(name)
        self.shown_on[name] = desktop

    async def unpause(self, name: QubeName) -> None:
        self._require_started(name)
        if self.states[name] is not PowerState.PAUSED:
            raise QubesVMNotPausedError(f"{name} is not paused")
        self._publish(name, "domain-pre-unpaused")
        self.states[name] = PowerState.RUNNING
        self._publish(name, "domain-unpaused")

    async def stats(self, name: QubeName) -> MachineStats | None:
        await self._scripted("stats")
        if not self.power_state(name).is_on:
            return None
        here = view(self.store.system, self.store.system.get(name))
        return MachineStats(1000, GUEST_USED_KIB, here.number("memory") * 1024, here.number("vcpus"))

    def start_time(self, name: QubeName) -> float | None:
        return START_TIME if self.power_state(name).is_on else None

    def _require_started(self, name: QubeName) -> None:
        if not self.power_state(name).is_on:
            raise QubesVMNotStartedError(f"{name} is not running")

    def _uses_network_of(self, name: QubeName, net_qube: QubeName) -> bool:
        system = self.store.system
        return (
            name in system.qubes and self.states[name].is_on and view(system, system.get(name)).vm("netvm") == net_qube
        )

    def _end(self, name: QubeName) -> None:
        self._publish(name, "domain-stopped")
        for prop in ("xid", "stubdom_xid", "start_time"):
            self._publish(name, f"property-reset:{prop}", name=prop)
        self.states[name] = PowerState.HALTED
        self._publish(name, "domain-shutdown")

    # existence

    async def create(self, request: CreateRequest) -> None:
        await self._scripted("create")
        self.store.commit(plan_create(self.store.system, request, uuid.uuid4()))
        for volume in disks_of(self.store.system.get(request.name)):
            await self.pools[volume.pool].create(volume)
        self._publish("", "domain-add", vm=request.name)
        self._publish(request.name, "domain-create-on-disk")

    async def create_disposable(
        self, template: QubeName, created_by: QubeName, features: Mapping[str, str] | None = None
    ) -> QubeName:
        await self._scripted("create_disposable")
        system = self.store.system
        if not allows_disposables(system, system.get(template)):
            raise QubesException(f"{template} does not have template_for_dispvms set")
        name = QubeName(f"disp{system.free_dispid(secrets.randbelow(MAX_DISPID + 1))}")
        label = system.get(template).label
        request = CreateRequest("DispVM", name, label, template, created_by=created_by, disposable=True)
        await self.create(replace(request, features=features or {}))
        return name

    async def preload_disposables(self, template: QubeName) -> None:
        await self._scripted("preload_disposables")

    async def remove(self, name: QubeName) -> None:
        await self._scripted("remove")
        system = self.store.system
        qube = system.get(name)
        if not qube.is_admin and self.power_state(name) is not PowerState.HALTED:
            raise QubesVMInUseError(f"{name} is running; stop it first")
        if qube.properties.get("installed_by_rpm"):
            raise QubesVMInUseError(f"{name} belongs to an installed package")
        after = system.without_qube(name)
        require_unborrowed(system, name)
        self._publish("", "domain-pre-delete", vm=name)
        self.store.commit(after)
        for volume in disks_of(qube):
            await self.pools[volume.pool].remove(volume)
        self._publish("", "domain-delete", vm=name)

    # volumes

    async def volume_usage(self, qube: QubeName, volume: str) -> int:
        spec, pool = self._volume(qube, volume)
        return await pool.usage(spec)

    async def volume_is_outdated(self, qube: QubeName, volume: str) -> bool:
        spec, pool = self._volume(qube, volume)
        return await pool.is_outdated(spec)

    async def volume_revisions(self, qube: QubeName, volume: str) -> list[Revision]:
        spec, pool = self._volume(qube, volume)
        return await pool.revisions(spec)

    async def volume_revert(self, qube: QubeName, volume: str, revision: str) -> None:
        async with self._replacing(qube, volume, "volume_revert") as (spec, pool):
            await pool.revert(spec, revision)

    async def volume_resize(self, qube: QubeName, volume: str, size: int) -> None:
        await self._scripted("volume_resize")
        spec, pool = self._volume(qube, volume)
        if size < spec.size:
            raise StoragePoolException(f"Volume {volume} of {qube} has {spec.size} bytes and cannot shrink")
        await pool.resize(spec, size)
        self._change(qube, replace(spec, size=size))

    async def volume_clear(self, qube: QubeName, volume: str) -> None:
        async with self._replacing(qube, volume, "volume_clear") as (spec, pool):
            await pool.clear(spec)

    async def volume_clone(self, source: tuple[QubeName, str], target: tuple[QubeName, str]) -> None:
        source_spec, _ = self._volume(*source)
        async with self._replacing(*target, "volume_clone") as (spec, pool):
            await pool.clone(source_spec, spec)
            self._change(target[0], replace(spec, size=source_spec.size))

    async def volume_import(self, qube: QubeName, volume: str, data: AsyncIterable[bytes], size: int | None) -> None:
        async with self._replacing(qube, volume, "volume_import") as (spec, pool):
            new_size = spec.size if size is None else size
            await pool.import_stream(spec, data, new_size)
            self._change(qube, replace(spec, size=new_size))

    async def volume_set(self, qube: QubeName, volume: str, field_name: str, value: int | bool) -> None:
        await self._scripted("volume_set")
        spec = self.store.system.get(qube).volumes[volume]
        match field_name:
            case "revisions_to_keep":
                self._change(qube, replace(spec, revisions_to_keep=int(value)))
            case "rw":
                self._change(qube, replace(spec, rw=bool(value)))
            case _:
                self._change(qube, replace(spec, ephemeral=bool(value)))

    def _volume(self, qube: QubeName, volume: str) -> tuple[VolumeSpec, FakePool]:
        spec = self.store.system.get(qube).volumes[volume]
        if volume == KERNEL_VOLUME:
            raise StoragePoolException(f"The kernel of {qube} is not a volume")
        return spec, self.pools[spec.pool]

    @asynccontextmanager
    async def _replacing(
        self, qube: QubeName, volume: str, operation: str
    ) -> AsyncIterator[tuple[VolumeSpec, FakePool]]:
        if self.power_state(qube) is not PowerState.HALTED:
            raise QubesVMNotHaltedError(f"{qube} must be halted")
        await self._scripted(operation)
        yield self._volume(qube, volume)

    def _change(self, qube: QubeName, spec: VolumeSpec) -> None:
        system = self.store.system
        self.store.commit(refreshed(system.with_qube(system.get(qube).with_volume(spec))))

    # pools

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise QubesPoolNotFoundError(f"No such pool: {name!a}")
        return self.pools[name]

    async def pool_usage(self, name: str) -> PoolUsage:
        return await self.pool(name).pool_usage()

    async def pool_add(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        await self._scripted("pool_add")
        if name in self.pools:
            raise QubesPoolInUseError(f"There is a pool {name} already")
        self.store.commit(self.store.system.with_pool(PoolConfig(name, driver, options)))
        self.pools[name] = FakePool(name, driver, options)
        self._publish("", "pool-add", pool=name)

    async def pool_remove(self, name: str) -> None:
        after = self.store.system.without_pool(name)
        self._publish("", "pool-pre-delete", pool=name)
        self.store.commit(after)
        del self.pools[name]
        self._publish("", "pool-delete", pool=name)

    def ended_cleanly(self, qube: QubeName) -> bool:
        return qube not in self.killed

    async def firewall_changed(self, qube: QubeName) -> None:
        self.changed.append((qube, "firewall"))

    # properties

    async def property_changed(self, qube: QubeName | None, name: str) -> None:
        self.changed.append((qube, name))
