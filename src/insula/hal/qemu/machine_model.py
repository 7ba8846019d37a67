"""What of a machine must be the same in a seed and its forks, as one digest.

Device state fits only a machine that is built alike. So the digest is of the whole command line, made for a machine
without a name, an identity, files and descriptor numbers of its own; a change of ours to how machines look changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path, PurePosixPath
from uuid import UUID

from insula.hal.driver import Disk, MachineSpec
from insula.hal.hostinfo import HostInfo
from insula.hal.qemu.chain import DiskDescriptors
from insula.hal.qemu.command import Descriptors, vmm_argv
from insula.model.block import BlockLayer, BlockSource, LayerFormat

_NO_FILE = Path("none")


def model_digest(spec: MachineSpec, host: HostInfo) -> str:
    """SHA-256 in hex. ``spec`` has passed :func:`insula.hal.qemu.command.check_spec`."""
    neutral = replace(
        spec,
        name="machine",
        uuid=UUID(int=0),
        disks=tuple(_neutral(disk) for disk in spec.disks),
        freezable=False,
        seed=None,
    )
    argv = vmm_argv(neutral, _neutral_descriptors(neutral), host.accelerator, PurePosixPath("qemu"))
    # A guest on a real CPU keeps in memory what that CPU can do.
    cpu: Collection[str] = (host.cpu_model, *sorted(host.cpu_flags)) if host.accelerator.is_hardware else ()
    # The kernel is in the memory already; which one it is can be told by its file only.
    parts = (argv, cpu, str(spec.kernel), str(spec.initrd), _fixed_sizes(spec))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _neutral(disk: Disk) -> Disk:
    layer = BlockLayer(_NO_FILE, LayerFormat.RAW)
    return replace(disk, source=BlockSource((layer,), 512, disk.source.writable))


def _neutral_descriptors(spec: MachineSpec) -> Descriptors:
    disks = (DiskDescriptors((0,)),) * len(spec.disks)
    return Descriptors(0, 0, 0, 0, (0,) * len(spec.channels), 0, disks)


def _fixed_sizes(spec: MachineSpec) -> dict[str, int]:
    """Disks whose size cannot be told anew to a guest that runs already: QEMU resizes writable ones only."""
    return {disk.name: disk.source.size for disk in spec.disks if not disk.source.writable}
