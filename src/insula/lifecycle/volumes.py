"""What the Admin API does with volumes: part of the engine, see :class:`insula.lifecycle.engine.Engine`.

Operations on one qube exclude each other, so that no volume is resized while a start activates it (MC-57); different
qubes never wait for each other.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from insula.hal.capabilities import Capability
from insula.hal.driver import Machine
from insula.hal.errors import HalError
from insula.lifecycle.create import KERNEL_VOLUME
from insula.lifecycle.host import Host, Session, log
from insula.model.block import VolumeSpec
from insula.model.errors import (
    QubesValueError,
    QubesVMNotHaltedError,
    QubesVolumeNotFoundError,
    QubesVolumeRevisionNotFoundError,
    StoragePoolException,
)
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.model.volumes import refreshed
from insula.storage.pool import NoSuchRevision, Pool, Revision, StorageError

GROWN_IN_GUEST = ("root", "private")
"""Volumes whose file system a guest can let grow while it is used (agent-services §1, ``qubes.ResizeDisk``)."""


class VolumeOperations(ABC):
    """Base of the engine: one operation a qube at a time, and those on its volumes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._locks: dict[QubeName, asyncio.Lock] = {}

    @abstractmethod
    def power_state(self, name: QubeName) -> PowerState: ...

    @abstractmethod
    def _machine(self, name: QubeName) -> Machine | None:
        """The qube's running machine."""

    @abstractmethod
    def _session(self, name: QubeName) -> Session | None:
        """The session process of a running qube."""

    # -- keeping operations apart

    @asynccontextmanager
    async def _alone(self, name: QubeName) -> AsyncIterator[None]:
        async with self._locks.setdefault(name, asyncio.Lock()):
            yield

    @asynccontextmanager
    async def _halted(self, name: QubeName, doing: str) -> AsyncIterator[None]:
        async with self._alone(name):
            self._require_halted(name, doing)
            yield

    def _require_halted(self, name: QubeName, doing: str) -> None:
        state = self.power_state(name)
        if state is not PowerState.HALTED:
            raise QubesVMNotHaltedError(f"Cannot {doing} {name}: it is {state.value.lower()}, stop it first")

    # -- volumes

    async def volume_usage(self, qube: QubeName, volume: str) -> int:
        if volume == KERNEL_VOLUME:
            return 0
        spec, pool = self._volume(qube, volume)
        async with storage_errors():
            return await pool.usage(spec)

    async def volume_is_outdated(self, qube: QubeName, volume: str) -> bool:
        spec, pool = self._volume(qube, volume)
        if not spec.snap_on_start or not self.power_state(qube).is_on:
            return False
        async with storage_errors():
            return await pool.is_outdated(spec)

    async def volume_revisions(self, qube: QubeName, volume: str) -> list[Revision]:
        spec, pool = self._volume(qube, volume)
        async with storage_errors():
            return await pool.revisions(spec) if spec.save_on_stop else []

    async def volume_revert(self, qube: QubeName, volume: str, revision: str) -> None:
        async with self._halted(qube, "revert a volume of"):
            spec, pool = self._volume(qube, volume)
            async with storage_errors():
                await pool.revert(spec, revision)
                # An older revision may be smaller.
                self._change_volume(qube, replace(spec, size=await pool.size(spec)))

    async def volume_resize(self, qube: QubeName, volume: str, size: int) -> None:
        async with self._alone(qube):
            spec, pool = self._volume(qube, volume)
            if size < spec.size:
                raise StoragePoolException(
                    f"Volume {volume} of {qube} has {spec.size} bytes; shrinking to {size} would lose data"
                )
            async with storage_errors():
                if spec.save_on_stop:
                    await pool.resize(spec, size)
                self._change_volume(qube, replace(spec, size=size))
                is_seen = await self._resize_running(qube, volume, size)
        if is_seen and volume in GROWN_IN_GUEST:
            await self._tell_guest(qube, volume)

    async def _resize_running(self, qube: QubeName, volume: str, size: int) -> bool:
        """Whether the qube runs, and its disk has the new size now."""
        machine = self._machine(qube)
        if machine is None or Capability.RESIZE_DISK not in self.host.driver.capabilities:
            return False
        try:
            await machine.resize_disk(volume, size)
        except HalError as e:
            raise StoragePoolException(f"{qube} sees the new size of {volume} at its next start: {e}") from e
        return True

    async def _tell_guest(self, qube: QubeName, volume: str) -> None:
        """Have the file system grow into its disk. Where that fails it does at the qube's next start."""
        session = self._session(qube)
        if session is None or self.power_state(qube) is not PowerState.RUNNING:
            return
        try:
            await session.tell_service("qubes.ResizeDisk", f"{volume}\n".encode())
        except (OSError, TimeoutError) as e:
            log.warning("%s: its file system on %s grows at its next start: %s", qube, volume, e or "no answer")

    async def volume_clear(self, qube: QubeName, volume: str) -> None:
        async with self._halted(qube, "clear a volume of"):
            spec, pool = self._volume(qube, volume)
            async with storage_errors():
                await pool.clear(spec)

    async def volume_clone(self, source: tuple[QubeName, str], target: tuple[QubeName, str]) -> None:
        async with self._halted(target[0], "replace a volume of"):
            source_spec, source_pool = self._volume(*source)
            spec, pool = self._volume(*target)
            if source_pool is not pool:
                raise StoragePoolException(
                    f"Volumes are cloned within one pool; {source_spec.vid} is in {source_spec.pool},"
                    f" {spec.vid} in {spec.pool}. Use import to copy between pools"
                )
            async with storage_errors():
                await pool.clone(source_spec, spec)
                self._change_volume(target[0], replace(spec, size=await pool.size(source_spec)))

    async def volume_import(self, qube: QubeName, volume: str, data: AsyncIterable[bytes], size: int | None) -> None:
        async with self._halted(qube, "import a volume of"):
            spec, pool = self._volume(qube, volume)
            new_size = spec.size if size is None else size
            async with storage_errors():
                await pool.import_stream(spec, data, new_size)
                self._change_volume(qube, replace(spec, size=new_size))

    async def volume_set(self, qube: QubeName, volume: str, field_name: str, value: int | bool) -> None:
        async with self._alone(qube):
            spec, pool = self._volume(qube, volume)
            changes_snapshots = field_name == "revisions_to_keep" and (value == -1) != (spec.revisions_to_keep == -1)
            if field_name != "revisions_to_keep" or changes_snapshots:
                self._require_halted(qube, f"change {field_name} of volume {volume} of")
            if field_name == "ephemeral" and value and (not spec.rw or spec.snap_on_start or spec.save_on_stop):
                raise QubesValueError(f"Volume {volume} of {qube} is kept or a snapshot, so it cannot be ephemeral")
            async with storage_errors():
                if field_name == "revisions_to_keep" and spec.save_on_stop:
                    await pool.set_revisions_to_keep(spec, int(value))
            changed = {
                "revisions_to_keep": lambda: replace(spec, revisions_to_keep=int(value)),
                "rw": lambda: replace(spec, rw=bool(value)),
                "ephemeral": lambda: replace(spec, ephemeral=bool(value)),
            }
            self._change_volume(qube, changed[field_name]())

    def _volume(self, qube: QubeName, volume: str) -> tuple[VolumeSpec, Pool]:
        try:
            spec = self.host.store.system.get(qube).volumes[volume]
        except KeyError:
            raise QubesVolumeNotFoundError(f"{qube} has no volume {volume!a}") from None
        if volume == KERNEL_VOLUME:
            raise StoragePoolException(f"The kernel of {qube} is set by its property 'kernel', not as a volume")
        return spec, self.host.pool_of(spec)

    def _change_volume(self, qube: QubeName, spec: VolumeSpec) -> None:
        system = self.host.store.system
        self.host.store.commit(refreshed(system.with_qube(system.get(qube).with_volume(spec))))


@asynccontextmanager
async def storage_errors() -> AsyncIterator[None]:
    """Storage's errors under the names that Admin API clients know."""
    try:
        yield
    except NoSuchRevision as e:
        raise QubesVolumeRevisionNotFoundError(str(e)) from e
    except (StorageError, OSError) as e:
        raise StoragePoolException(str(e)) from e
