"""What the running qubes use: samples of the daemon's figures, and what two of them say together.

Memory is what a qube really costs this machine: pages that several qubes share (everything they have from the seed they
were forked from) count in equal parts (proportional set size). CPU time is that of the machine monitor with the guest
in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.admin.client import AdminClient
from insula.lifecycle.memory import HOST_RESERVE_MIB, available_mib
from insula.model.errors import InsulaError
from insula.model.names import ADMIN_NAME

SAMPLE_TIMEOUT_S = 10.0
"""For the figures of all running qubes; one that is just ending may give none."""
KERNEL_VOLUME = "kernel"
"""Not a disk of the qube."""
MAX_AT_ONCE = 32


@dataclass(frozen=True)
class Sample:
    """One qube at one moment."""

    time: float
    """Seconds of the loop's clock."""
    cpu_time_ms: int
    memory_kib: int
    assigned_kib: int


@dataclass(frozen=True)
class Usage:
    """One line of ``insula top``."""

    name: str
    state: str
    memory_kib: int | None
    """None: not known now."""
    assigned_kib: int | None
    cpu_percent: float | None
    """100 is one CPU of this machine; None: there is no earlier sample."""
    disk_bytes: int


@dataclass(frozen=True)
class HostUsage:
    memory_kib: int
    available_kib: int
    cpus: int
    load: float
    """Processes that ran or waited in the last minute."""
    start_memory_mib: int
    """What a new qube of the default template has; 0: there is no template."""
    waiting: int = 0
    """Machines in waiting: nobody's yet, made beforehand so that starts are quick."""
    waiting_kib: int = 0
    """What they take together."""

    @property
    def startable(self) -> int:
        """How many more of these the host's memory bears as starts are admitted; each in fact takes less at first."""
        free_mib = self.available_kib // 1024 - HOST_RESERVE_MIB
        return max(0, free_mib // self.start_memory_mib) if self.start_memory_mib else 0


class Watcher:
    """Keeps the last samples, to say what was used since."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._last: Mapping[str, Sample] = {}

    async def look(self) -> list[Usage]:
        """The qubes that are on, by name; CPU since the last look."""
        rows = [row for row in await self._client.list_qubes() if row.state.is_on and row.name != ADMIN_NAME]
        names = [row.name for row in rows]
        samples = await sample(self._client, names)
        slots = asyncio.Semaphore(MAX_AT_ONCE)
        disks = await asyncio.gather(*(disk_bytes(self._client, name, slots) for name in names))
        usages = [
            usage(row.name, row.state.value, samples.get(row.name), self._last.get(row.name), disk)
            for row, disk in zip(rows, disks, strict=True)
        ]
        self._last = samples
        return usages


def usage(name: str, state: str, now: Sample | None, earlier: Sample | None, disk: int) -> Usage:
    """Pure. A qube that was started anew in between has used less than before: that is not told as CPU."""
    if now is None:
        return Usage(name, state, None, None, None, disk)
    percent = None
    if earlier is not None and now.time > earlier.time and now.cpu_time_ms >= earlier.cpu_time_ms:
        percent = (now.cpu_time_ms - earlier.cpu_time_ms) / 10 / (now.time - earlier.time)
    return Usage(name, state, now.memory_kib, now.assigned_kib, percent, disk)


async def sample(client: AdminClient, names: Sequence[str]) -> dict[str, Sample]:
    """One record of ``admin.vm.Stats`` for each of these qubes, as far as they come in time."""
    found: dict[str, Sample] = {}
    if not names:
        return found
    clock = asyncio.get_running_loop().time
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SAMPLE_TIMEOUT_S), contextlib.aclosing(client.stats()) as stream:
            async for record in stream:
                if record.name == "vm-stats" and record.subject not in found:
                    figures = [record.kwargs.get(key, "") for key in ("cpu_time", "memory_kb", "memory_assigned_total")]
                    if all(figure.isdecimal() for figure in figures):
                        found[record.subject] = Sample(clock(), *map(int, figures))
                if found.keys() >= set(names):
                    break
    return found


async def disk_bytes(client: AdminClient, name: str, slots: asyncio.Semaphore) -> int:
    """What the qube's own volumes take; 0 for one that is just removed."""
    async with slots:
        try:
            volumes = [volume for volume in await client.list_volumes(name) if volume != KERNEL_VOLUME]
            return sum([(await client.volume_info(name, volume)).usage for volume in volumes])
        except InsulaError:
            return 0


async def host_usage(client: AdminClient) -> HostUsage:
    text = Path("/proc/meminfo").read_text()
    template = (await client.get_property("default_template")).value
    memory = int((await client.get_property("memory", template)).value) if template else 0
    waiting = [seed["waiting"] for seed in await client.seeds()]
    return HostUsage(
        memory_kib=total_kib(text),
        available_kib=available_mib(text) * 1024,
        cpus=os.cpu_count() or 1,
        load=os.getloadavg()[0],
        start_memory_mib=memory,
        waiting=sum(entry["machines"] for entry in waiting),
        waiting_kib=sum(entry["memory_kib"] for entry in waiting),
    )


def total_kib(meminfo: str) -> int:
    """``MemTotal`` of the text of ``/proc/meminfo``."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal":
            return int(value.split()[0])
    raise ValueError("no MemTotal in /proc/meminfo")
