"""Other disks for a paused machine that was started with placeholders, through the monitor.

Each disk's new files are opened by the daemon and handed over (``add-fd``), as at a start. Then there are two ways:

* A disk that *goes on* (the root: its file system is mounted) gets the qube's own layer on top of what the machine has
  written so far (``blockdev-snapshot``); that becomes one more layer below, which nobody writes any more.
* Any other is *replaced*: the whole chain is made, the device is given its top (``drive`` of a device may be set
  while it is there), and the guest is told of the size.

What is left of the old chains is closed later (:func:`close_leftovers`), while the guest runs: a start does not wait
for it, and QEMU closes files of a descriptor set only then.

Sources: QEMU 7.2 ``qapi/block-core.json``, ``qapi/misc.json``; ``hw/core/qdev-properties-system.c`` for ``drive``,
``monitor/fds.c`` for when files are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from insula.hal.driver import Disk
from insula.hal.preconditions import goes_on
from insula.hal.qemu.chain import DiskDescriptors, chain_tree, file_node, key_object, layer_node
from insula.hal.qemu.command import disk_device, disk_node
from insula.hal.qemu.monitor import Monitor
from insula.model.block import BlockSource

_OWN_NODE = "own{}"
"""Node of the n-th disk from then on; the placeholders have the names of a start."""


@dataclass
class Leftovers:
    """What nobody needs any more."""

    nodes: list[str] = field(default_factory=list)
    """In the order in which they can be closed."""
    fdsets: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Handed:
    """The files of a disk in the VMM."""

    source: BlockSource
    """Layers that are to be made."""
    fdsets: tuple[int, ...]
    key: int | None
    """Number of the key's descriptor in the VMM."""


async def swap_disks(
    monitor: Monitor, old: Sequence[Disk], old_fdsets: Sequence[Sequence[int]], new: Sequence[Disk],
    fds: Sequence[DiskDescriptors],
) -> Leftovers:  # fmt: skip
    """Give the guest the disks ``new`` in place of ``old``.

    :param old_fdsets: where the VMM has the files of ``old``.
    :param fds: ours, of the new files; the caller closes them, and wipes the keys.
    :raise DriverError: QEMU refused; what the machine has now is not known.
    :raise MachineGone: it has ended.
    """
    leftovers = Leftovers()
    handed = []
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        # One after another: a descriptor and the command that takes it belong together.
        handed.append(await _hand_over(monitor, before, after, fds[index], leftovers))
        if not goes_on(before, after):
            leftovers.nodes += _nodes(disk_node(index), before)
            leftovers.fdsets += old_fdsets[index]
    swaps = [_swap(monitor, index, old[index], new[index], handed[index]) for index in range(len(new))]
    for result in await asyncio.gather(*swaps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
    return leftovers


async def close_leftovers(monitor: Monitor, leftovers: Leftovers) -> None:
    """:raise DriverError: MachineGone:"""
    for node in leftovers.nodes:
        await monitor.execute("blockdev-del", {"node-name": node})
    for fdset in leftovers.fdsets:
        await monitor.execute("remove-fd", {"fdset-id": fdset})


async def _hand_over(
    monitor: Monitor, old: Disk, new: Disk, fds: DiskDescriptors, leftovers: Leftovers
) -> _Handed:  # fmt: skip
    source = replace(new.source, layers=new.source.layers[:1]) if goes_on(old, new) else new.source
    fdsets = [(await monitor.add_descriptor(fd)).fdset for fd in fds.layers[: len(source.layers)]]
    if fds.key is None:
        return _Handed(source, tuple(fdsets), None)
    key = await monitor.add_descriptor(fds.key)
    leftovers.fdsets.append(key.fdset)
    return _Handed(source, tuple(fdsets), key.number)


async def _swap(monitor: Monitor, index: int, old: Disk, new: Disk, handed: _Handed) -> None:
    name, source = _OWN_NODE.format(index), handed.source
    if handed.key is not None:
        await monitor.execute("object-add", key_object(name, handed.key))
    tree = chain_tree(name, source, handed.fdsets, is_encrypted=handed.key is not None)
    await monitor.execute("blockdev-add", tree)
    if goes_on(old, new):
        await monitor.execute("blockdev-snapshot", {"node": disk_node(index), "overlay": name})
        return
    path = f"/machine/peripheral/{disk_device(index)}"
    await monitor.execute("qom-set", {"path": path, "property": "drive", "value": name})
    if source.writable:
        await monitor.execute("block_resize", {"node-name": name, "size": source.size})


def _nodes(name: str, disk: Disk) -> list[str]:
    """All nodes of a chain, each before those below it."""
    depths = range(len(disk.source.layers))
    return [node for depth in depths for node in (layer_node(name, depth), file_node(name, depth))]
