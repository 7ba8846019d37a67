"""Ending a qube: asking it to shut down, and clearing up once its machine is gone, however that came about."""

from __future__ import annotations

import shutil
from pathlib import Path

from insula.hal.driver import ExitKind, MachineExit
from insula.hal.errors import HalError
from insula.lifecycle.host import Host, log
from insula.lifecycle.running import RunningQube
from insula.lifecycle.start import keep_console
from insula.model.block import VolumeSpec
from insula.model.errors import InsulaError
from insula.model.klass import Klass
from insula.rpc.client import RpcError, run_detached
from insula.storage.pool import StorageError

POWEROFF_COMMAND = "exec systemctl poweroff"
"""What a guest is told; its own shutdown order then applies."""
POWEROFF_TIMEOUT_S = 5.0
"""For handing over the command; a guest that does not take it gets its power button pressed."""


def keeps_unclean(klass: Klass, volume: VolumeSpec) -> bool:
    """Whether what was written is kept when the machine did not shut down cleanly.

    A template's root is all or nothing: half an update must never reach the qubes made from it (MC-96). Anything
    else that is saved is a person's data: it is kept as after a power cut, the guest's journal repairs it.
    """
    return volume.save_on_stop and not (klass is Klass.TEMPLATEVM and volume.name == "root")


def commits(klass: Klass, volume: VolumeSpec, end: MachineExit) -> bool:
    """Whether the overlay of ``volume`` becomes its newest revision."""
    return volume.save_on_stop and (end.kind is ExitKind.SHUTDOWN or keeps_unclean(klass, volume))


async def ask_to_shut_down(rpc_socket: Path, running: RunningQube) -> None:
    """Ask the guest; returns when it was asked, not when it is done.

    The agent is asked first because it needs no ACPI daemon in the guest; the power button is the way in for
    guests whose agent does not answer.
    """
    try:
        await run_detached(rpc_socket, POWEROFF_COMMAND, user="root", timeout=POWEROFF_TIMEOUT_S)
    except (RpcError, OSError, TimeoutError) as e:
        log.info("%s: agent does not take the shutdown (%s), pressing the power button", running.name, e)
        await running.machine.request_shutdown()


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
