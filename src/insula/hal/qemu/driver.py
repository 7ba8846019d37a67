"""The QEMU driver: checks specs, makes machines, finds those of an earlier daemon."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path

from insula.hal.capabilities import Capability
from insula.hal.driver import Machine, MachineSpec
from insula.hal.errors import DriverError
from insula.hal.hostinfo import HostInfo, probe
from insula.hal.qemu.command import check_spec
from insula.hal.qemu.descriptors import is_in_use, read_status, remove_runtime_files
from insula.hal.qemu.links import MachineLinks
from insula.hal.qemu.machine import QemuMachine
from insula.hal.qemu.page_returns import PageReturns
from insula.hal.qemu.process import SANDBOX_END_LIMIT_S, SPAWN_LIMIT_S, ProcessIdentity, VmmProcess, is_named
from insula.hal.qemu.seeds import SeedCache

_ALWAYS = frozenset(
    {
        Capability.PAUSE,
        Capability.BALLOON,
        Capability.RESIZE_DISK,
        Capability.ADOPT,
        Capability.FORK,
        Capability.LINKS,
        Capability.FRAMES,
        Capability.DISPLAY,
        Capability.BULK_MEMORY,
    }
)

DISCARD_LIMIT_S = SPAWN_LIMIT_S + SANDBOX_END_LIMIT_S
STATUS_POLL_S = 0.02

_log = logging.getLogger(__name__)


class QemuDriver:
    """See :class:`insula.hal.driver.Driver`. Belongs to the event loop it is used in."""

    def __init__(self, host: HostInfo) -> None:
        self._host = host
        self._seeds = SeedCache(host.qemu.version_text)
        self._page_returns = PageReturns()
        self._machines: weakref.WeakSet[QemuMachine] = weakref.WeakSet()

    @classmethod
    async def open(cls) -> QemuDriver:
        """A driver for this host, whatever it offers; :meth:`define` refuses if that is not enough."""
        return cls(await asyncio.to_thread(probe))

    @property
    def name(self) -> str:
        return "qemu"

    @property
    def host(self) -> HostInfo:
        return self._host

    @property
    def capabilities(self) -> frozenset[Capability]:
        on_this_host = {
            Capability.HARDWARE_VIRTUALIZATION: self._host.accelerator.is_hardware,
            Capability.PCI_PASSTHROUGH: self._host.iommu_groups > 0,
        }
        return _ALWAYS | {capability for capability, is_there in on_this_host.items() if is_there}

    async def define(self, spec: MachineSpec) -> QemuMachine:
        if self._host.problems:
            # Without a sandbox no qube: never a VMM with the host in reach.
            raise DriverError("; ".join(self._host.problems))
        check_spec(spec)
        if not spec.runtime_dir.is_dir():
            raise DriverError(f"run-time folder {spec.runtime_dir} does not exist")
        machine = QemuMachine(spec, self._host, self._seeds, self._page_returns)
        self._machines.add(machine)
        return machine

    async def adopt(self, spec: MachineSpec, record: Mapping[str, str | int]) -> QemuMachine | None:
        check_spec(spec)
        machine = await QemuMachine.adopt(spec, self._host, self._seeds, self._page_returns, record)
        if machine is not None:
            self._machines.add(machine)
        return machine

    async def load_seed(self, folder: Path) -> None:
        await self._seeds.get(folder)

    def unload_seed(self, folder: Path) -> None:
        self._seeds.forget(folder)

    async def discard(self, runtime_dir: Path) -> bool:
        """See :meth:`insula.hal.driver.Driver.discard`.

        bubblewrap noted the VMM's pid before the VMM ran. The note may be of long ago and the pid somebody else's by
        now, so the process must also carry the machine's uuid on its command line.
        """
        found = False
        try:
            async with asyncio.timeout(DISCARD_LIMIT_S):
                # In use without a VMM to be seen: it is between fork and exec, or its sandbox is just ending.
                while await _end_noted(runtime_dir) or is_in_use(runtime_dir):
                    found = True
                    await asyncio.sleep(STATUS_POLL_S)
        except TimeoutError:
            _log.error("something still runs in %s", runtime_dir)
        remove_runtime_files(runtime_dir)
        return found

    async def link(self, client: Machine, provider: Machine, number: int) -> None:
        await self._own(provider).plug(number, self._own(client))

    async def unlink(self, provider: Machine, number: int) -> None:
        await self._own(provider).unplug(number)

    async def links(self, provider: Machine) -> frozenset[int]:
        return await self._own(provider).numbers()

    async def plug_nic(self, client: Machine, mac: str) -> None:
        await self._own(client).plug_nic(mac)

    async def unplug_nic(self, client: Machine) -> None:
        await self._own(client).unplug_nic()

    async def link_outside(self, client: Machine) -> None:
        await self._own(client).join_outside()

    def _own(self, machine: Machine) -> MachineLinks:
        if not isinstance(machine, QemuMachine):
            raise DriverError(f"machine {machine.spec.name!r} is not QEMU's")
        return machine.links

    async def close(self) -> None:
        for machine in list(self._machines):
            await machine.release()
        await self._seeds.close()
        self._page_returns.close()


async def _end_noted(runtime_dir: Path) -> bool:
    """End the VMM that bubblewrap noted there; False if there is none."""
    note = read_status(runtime_dir)
    identity = None if note is None else ProcessIdentity.of(note.pid)
    process = None if identity is None else VmmProcess.attach(identity)
    if note is None or process is None:
        return False
    try:
        if not is_named(note.pid, note.uuid):
            return False
        # Whether that is worth a warning is known to whoever asked.
        _log.info("ending VMM %d of %s, which nobody knows", note.pid, runtime_dir)
        process.kill()
        await process.wait()
    finally:
        process.close()
    return True
