"""Other disks for a paused machine that was started with placeholders, through the monitor.

Each disk's new files are opened by the daemon and handed over (``add-fd``), as at a start. Then there are two ways:

* A disk that *goes on* (the root: its file system is mounted) gets the qube's own layer on top of what the machine has
  written so far (``blockdev-snapshot``); that becomes one more layer below, which nobody writes any more.
* Any other is *replaced*: the whole chain is made, the device is given its top (``drive`` of a device may be set
  while it is there), and the old chain is closed.

Sources: QEMU 7.2 ``qapi/block-core.json``, ``qapi/misc.json``; ``hw/core/qdev-properties-system.c`` for ``drive``.
"""

from __future__ import annotations

from dataclasses import replace

from insula.hal.driver import Disk
from insula.hal.preconditions import goes_on
from insula.hal.qemu.chain import DiskDescriptors, chain_nodes, file_node, key_object, layer_node
from insula.hal.qemu.command import disk_device, disk_node
from insula.hal.qemu.monitor import Monitor

_OWN_NODE = "own{}"
"""Node of the n-th disk from then on; the placeholders have the names of a start."""


async def swap_disk(monitor: Monitor, index: int, old: Disk, new: Disk, fds: DiskDescriptors) -> int | None:
    """Give the guest ``new`` in place of ``old``, its disk ``index``.

    :param fds: ours, of the new files; the caller closes them, and wipes the key.
    :return: where QEMU has the key's file, which nobody needs any more.
    :raise DriverError: QEMU refused; what the machine has now is not known.
    :raise MachineGone: it has ended.
    """
    is_continued = goes_on(old, new)
    source = replace(new.source, layers=new.source.layers[:1]) if is_continued else new.source
    fdsets = [(await monitor.add_descriptor(fd)).fdset for fd in fds.layers[: len(source.layers)]]
    name = _OWN_NODE.format(index)
    key_fdset = None
    if fds.key is not None:
        handed = await monitor.add_descriptor(fds.key)
        key_fdset = handed.fdset
        await monitor.execute("object-add", key_object(name, handed.number))
    for node in chain_nodes(name, source, fdsets, is_encrypted=fds.key is not None):
        await monitor.execute("blockdev-add", node)
    if is_continued:
        await monitor.execute("blockdev-snapshot", {"node": disk_node(index), "overlay": name})
        return key_fdset
    path = f"/machine/peripheral/{disk_device(index)}"
    await monitor.execute("qom-set", {"path": path, "property": "drive", "value": name})
    for depth in range(len(old.source.layers)):
        for unused in (layer_node(disk_node(index), depth), file_node(disk_node(index), depth)):
            await monitor.execute("blockdev-del", {"node-name": unused})
    return key_fdset
