"""After the daemon was stopped or killed: make what is recorded and what runs agree again.

Every qube ends up either running as before, under this daemon, or halted with its volumes settled: none is lost, none
runs twice, no machine runs that nobody knows.

Where the state itself is in doubt (it was restored from a copy, or there is none) nothing is thrown away: volumes that
no qube names stay, and what was written is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from insula.hal.driver import ExitKind, MachineExit
from insula.hal.errors import HalError
from insula.lifecycle.create import disks_of
from insula.lifecycle.host import Host, log
from insula.lifecycle.running import MachineRecord, RunningQube
from insula.lifecycle.stop import commits
from insula.model.block import VolumeSpec
from insula.model.errors import InsulaError
from insula.model.qube import Qube
from insula.storage.pool import StorageError

WAITING_PREFIX = "waiting."
"""Of the run-time folders of machines in waiting (:mod:`insula.lifecycle.standby`), which end with their daemon."""
QUBE_VIDS = "qubes/"
"""Prefix of the volumes that belong to qubes; anything else in a pool is not ours to remove."""
CRASHED_WITH_US = MachineExit(ExitKind.CRASHED, "ended while no daemon was there to see")


async def reconcile(host: Host, runtime_folders: Path) -> list[RunningQube]:
    """Return the qubes that run; everything else is cleared up. One log line for each thing done."""
    records = _read_records(host)
    in_doubt = host.store.recovery is not None or host.store.is_new
    running = await _find_running(host, records)
    await _end_unknown(host, runtime_folders, {qube.name for qube in running})
    active = await _mark_active(host, running)
    for pool in host.pools.values():
        for line in await pool.recover(frozenset(active.get(pool.name, ()))):
            log.warning("pool %s: %s", pool.name, line)
    await _settle_volumes(host, running, records, keep_all=in_doubt)
    if not in_doubt:
        await _remove_orphan_volumes(host)
    return running


def _read_records(host: Host) -> dict[str, MachineRecord | None]:
    """Name → record; None if it cannot be read (the machine is then ended like one that nobody knows)."""
    records: dict[str, MachineRecord | None] = {}
    for name, untrusted_record in host.store.machines().items():
        try:
            records[name] = MachineRecord.from_json(untrusted_record)
        except ValueError as e:
            log.error("%s: its machine record cannot be read (%s); its machine is ended", name, e)
            records[name] = None
    return records


async def _find_running(host: Host, records: Mapping[str, MachineRecord | None]) -> list[RunningQube]:
    found: list[RunningQube] = []
    for name, record in records.items():
        if record is None or not record.ready or record.driver != host.driver.name:
            continue
        if name not in host.store.system.qubes:
            continue
        try:
            machine = await host.driver.adopt(record.spec, record.machine)
        except HalError as e:
            log.error("%s: %s; its machine is ended", name, e)
            continue
        if machine is not None:
            log.info("%s: still runs", name)
            found.append(RunningQube(machine, record.volumes, record.started_at, record.link))
    return found


async def _end_unknown(host: Host, runtime_folders: Path, known: set[str]) -> None:
    """End machines that were being started or stopped when the daemon ended: their run-time folder tells."""
    for folder in sorted(runtime_folders.iterdir()) if runtime_folders.is_dir() else []:
        if folder.name in known:
            continue
        was_running = await host.driver.discard(folder)
        if was_running and folder.name.startswith(WAITING_PREFIX):
            log.info("%s: ended, it was in waiting", folder.name)
        elif was_running:
            log.warning("%s: ended a machine whose start or stop was interrupted", folder.name)
        shutil.rmtree(folder, ignore_errors=True)


async def _mark_active(host: Host, running: list[RunningQube]) -> dict[str, set[str]]:
    """Protect what running machines use; returns pool → vids."""
    active: dict[str, set[str]] = {}
    for qube in running:
        for volume in qube.volumes:
            source = qube.source_of(volume.name)
            if source is not None and volume.pool in host.pools:
                await host.pools[volume.pool].mark_active(volume, source)
                active.setdefault(volume.pool, set()).add(volume.vid)
    return active


async def _settle_volumes(
    host: Host, running: list[RunningQube], records: Mapping[str, MachineRecord | None], *, keep_all: bool
) -> None:
    active = {qube.name for qube in running}
    for qube in host.store.system.sorted_qubes():
        if qube.name in active:
            continue
        record = records.get(qube.name)
        problems = []
        for volume in disks_of(qube):
            try:
                if volume.save_on_stop:
                    await host.pool_of(volume).deactivate(
                        volume, commit=_keep_after_crash(qube, volume, record, keep_all)
                    )
            except (StorageError, InsulaError, OSError) as e:
                problems.append(f"volume {volume.name}: {e}")
        for problem in problems:
            log.error("%s: %s", qube.name, problem)
        if qube.name in records and not problems:
            log.warning("%s: had ended while no daemon ran; its volumes are settled", qube.name)
            host.store.remove_machine(qube.name)
    for name in records.keys() - host.store.system.qubes.keys():
        host.store.remove_machine(name)


def _keep_after_crash(qube: Qube, volume: VolumeSpec, record: MachineRecord | None, keep_all: bool) -> bool:
    # A volume that is still open without the record of a finished start belongs to a start that nobody has been
    # told of: the state before is the right one.
    was_ready = keep_all or (record is not None and record.ready)
    return was_ready and commits(qube.klass, volume, CRASHED_WITH_US)


async def _remove_orphan_volumes(host: Host) -> None:
    named = {volume.vid for qube in host.store.system.qubes.values() for volume in disks_of(qube)}
    for pool in host.pools.values():
        for vid in await pool.volumes():
            if vid.startswith(QUBE_VIDS) and vid not in named:
                orphan = VolumeSpec(name=vid.rsplit("/", 1)[-1], pool=pool.name, vid=vid, size=0, save_on_stop=True)
                await pool.deactivate(orphan, commit=False)
                await pool.remove(orphan)
                log.warning("pool %s: removed volume %s, no qube has it", pool.name, vid)
