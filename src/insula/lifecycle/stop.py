"""Ending a qube: asking it to shut down, and clearing up once its machine is gone, however that came about."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

from insula.hal.driver import ExitKind, Machine, MachineExit
from insula.hal.errors import HalError
from insula.lifecycle.host import Host, keep_console, log
from insula.lifecycle.running import RunningQube
from insula.model.block import VolumeSpec
from insula.model.errors import InsulaError
from insula.model.klass import Klass
from insula.storage.pool import StorageError

PRESS_AGAIN_S = 2.0
"""A guest that is still booting has nobody who would hear the power button; pressing it again does no harm."""
MAX_PRESSES = 60


def keeps_unclean(klass: Klass, volume: VolumeSpec) -> bool:
    """Whether what was written is kept when the machine did not shut down cleanly.

    A template's root is all or nothing: half an update must never reach the qubes made from it (MC-96). Anything
    else that is saved is a person's data: it is kept as after a power cut, the guest's journal repairs it.
    """
    return volume.save_on_stop and not (klass is Klass.TEMPLATEVM and volume.name == "root")


def commits(klass: Klass, volume: VolumeSpec, end: MachineExit) -> bool:
    """Whether the overlay of ``volume`` becomes its newest revision."""
    return volume.save_on_stop and (end.kind is ExitKind.SHUTDOWN or keeps_unclean(klass, volume))


async def press_until_gone(machine: Machine) -> None:
    """Press the power button until the machine is gone, or long enough; for a task that is cancelled at the end.

    The button and not a command: the daemon then reads nothing that the guest sends, and it works for guests that have
    no agent. What the guest does about it is its own shutdown order.
    """
    with suppress(HalError):
        for _ in range(MAX_PRESSES):
            await asyncio.sleep(PRESS_AGAIN_S)
            await machine.request_shutdown()


async def clear_up(host: Host, running: RunningQube, klass: Klass, end: MachineExit) -> list[str]:
    """Everything after the end of a machine; each step is tried whatever the others did.

    Returns what went wrong with its volumes, one line each (:func:`settle`).
    """
    problems = await settle(host, running, klass, end)
    try:
        keep_console(running.machine, host.console_folder)
    except OSError as e:
        log.error("%s: its console log is lost: %s", running.name, e)
    shutil.rmtree(host.runtime_folder(running.name), ignore_errors=True)
    for prop in ("xid", "stubdom_xid", "start_time"):
        host.publish(running.name, f"property-reset:{prop}", name=prop)
    return problems


async def settle(host: Host, running: RunningQube, klass: Klass, end: MachineExit) -> list[str]:
    """Keep or discard what the machine wrote; may be repeated until it succeeds (the disk was full, say).

    Returns what went wrong, one line each. The record is removed only if every volume is settled, so that the next
    daemon tries again where this one did not come to it.
    """
    problems: list[str] = []
    for volume in running.volumes:
        try:
            await host.pool_of(volume).deactivate(volume, commit=commits(klass, volume, end))
        except (StorageError, InsulaError, OSError) as e:
            problems.append(f"volume {volume.name}: {e}")
    if not problems:
        try:
            host.store.remove_machine(running.name)
        except InsulaError as e:
            problems.append(f"record of its machine: {e}")
    return problems


async def end_now(running: RunningQube) -> None:
    """Kill the machine; a driver that fails at it is logged (the machine's end is what counts)."""
    try:
        await running.machine.kill()
    except HalError as e:
        log.error("%s: %s", running.name, e)
        raise
