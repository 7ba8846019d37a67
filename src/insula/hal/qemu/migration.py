"""The device state of a paused machine: saved to and restored from a descriptor, through the monitor.

The memory is left out of the stream (``x-ignore-shared``): it is a file that both sides have.

Source: QEMU 7.2 ``qapi/migration.json``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from insula.hal.driver import Disk
from insula.hal.errors import DriverError
from insula.hal.qemu.command import disk_device
from insula.hal.qemu.monitor import Monitor, RunState

SAVE_LIMIT_S = 60.0
"""For the device state; 0.05 s on an idle machine."""
SAVE_POLL_S = 0.01
RESTORE_LIMIT_S = 30.0
"""From a fork's greeting until its devices are there: about 0.01 s."""
RESTORE_POLL_S = 0.001

_DESCRIPTOR = "state"
_UNDER_WAY = frozenset({"none", "setup", "active", "device", "pre-switchover"})
"""``MigrationStatus`` before the end."""
_UNANNOUNCED: Mapping[str, object] = {"announce-rounds": 0}
"""QEMU tells switches where a machine that moved is now (frames of RARP, from each interface). A fork has not moved."""
_WITHOUT_MEMORY: Mapping[str, object] = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


async def save_state(monitor: Monitor, state: int) -> int:
    """Have a paused VMM write its device state to the memory file ``state``; its length in bytes.

    :raise DriverError: refused, failed, too much, or not in time.
    """
    await monitor.give(_DESCRIPTOR, state)
    await monitor.execute("migrate-set-capabilities", _WITHOUT_MEMORY)
    await monitor.execute("migrate", {"uri": f"fd:{_DESCRIPTOR}"})
    try:
        async with asyncio.timeout(SAVE_LIMIT_S):
            status, words = await monitor.migration_status()
            while status in _UNDER_WAY:
                await asyncio.sleep(SAVE_POLL_S)
                status, words = await monitor.migration_status()
    except TimeoutError as error:
        raise DriverError(f"the machine's state was not saved within {SAVE_LIMIT_S:.0f} s") from error
    if status != "completed":
        raise DriverError(f"the machine's state cannot be saved ({status})", words)
    # The VMM was given this very open file, so its position is where the VMM stopped writing.
    return os.lseek(state, 0, os.SEEK_CUR)


async def restore_state(monitor: Monitor, number: int) -> None:
    """Have a VMM that waits for its state read it; it is paused then.

    :param number: of the descriptor in the VMM.
    :raise DriverError: refused, or not in time.
    :raise MachineGone: QEMU ends if it cannot make sense of the state.
    """
    await asyncio.gather(
        monitor.execute("migrate-set-capabilities", _WITHOUT_MEMORY),
        monitor.execute("migrate-set-parameters", _UNANNOUNCED),
        monitor.execute("migrate-incoming", {"uri": f"fd:{number}"}),
    )
    try:
        async with asyncio.timeout(RESTORE_LIMIT_S):
            state = await monitor.run_state()
            while state is RunState.RESTORING:
                await asyncio.sleep(RESTORE_POLL_S)
                state = await monitor.run_state()
    except TimeoutError as error:
        raise DriverError(f"the machine was not restored within {RESTORE_LIMIT_S:.0f} s") from error
    if state is not RunState.STOPPED:
        raise DriverError(f"QEMU is {state.value} after the restore, not paused")


async def announce_disks(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """Have a restored guest ask anew for the sizes of its disks.

    Resizing to the size it has changes nothing but raises the device's "configuration changed" interrupt, which a
    restore does not (virtio 1.1 §5.2.5). It is done for all writable disks, since it also fails for one that QEMU could
    not take over after the restore (locked by another VMM), which QEMU itself tells nobody but the first to resume the
    guest.

    :raise DriverError: refused.
    :raise MachineGone: QEMU ends upon a disk that it does not have.
    """
    actual = await monitor.disks()
    writable = [disk_device(index) for index, disk in enumerate(disks) if disk.source.writable]
    if missing := set(writable) - set(actual):
        raise DriverError(f"QEMU does not tell the size of {', '.join(sorted(missing))}")
    nodes = [actual[device] for device in writable]
    resizes = [monitor.execute("block_resize", {"node-name": node.name, "size": node.size}) for node in nodes]
    await asyncio.gather(*resizes)
