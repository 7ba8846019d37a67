"""Devices of the host for one machine: looked at, handed over, and shown to its sandbox.

The VMM commands a device through the node of its IOMMU group (VFIO); it sees that node, ``/dev/vfio/vfio`` and the
device's own folder of sysfs, read-only. All memory of the guest stays in place while it runs, for the device writes to
it by itself.
"""

from __future__ import annotations

import resource

from insula.hal import pci
from insula.hal.driver import MachineSpec
from insula.hal.errors import DriverError
from insula.hal.qemu.sandbox import HostDevices

CONTAINER_NODE = "/dev/vfio/vfio"
OWN_REGIONS_MIB = 64
"""What QEMU shows a device besides the guest's memory: firmware, memory of other devices."""


def prepare(spec: MachineSpec, owner: int | None) -> HostDevices:
    """Take the devices of a machine that is about to start from the host. Blocking, some milliseconds.

    :param owner: host user of the VMM, where the daemon is root.
    :raise DriverError: one of them must not or cannot be given away; says which and why.
    """
    nodes = [CONTAINER_NODE]
    folders = {}
    found = []
    for address in spec.devices:
        device = pci.look_up(address)
        if device is None:
            raise DriverError(f"there is no PCI device {address} in this computer")
        reasons = tuple(pci.objections(device, spec.devices, strict_reset=spec.strict_reset))
        if reasons:
            raise DriverError(f"PCI device {address} is not given to {spec.name!r}: {'; '.join(reasons)}")
        found.append(device)
    # Only when nothing speaks against any of them.
    for device in found:
        nodes.append(str(pci.hand_over(device, owner)))
        folders[str(device.address)] = str(device.folder)
    return HostDevices(tuple(dict.fromkeys(nodes)), folders, _lockable((spec.memory_mib + OWN_REGIONS_MIB) << 20))


def _lockable(size: int) -> int:
    """:raise DriverError: a VMM may not keep so many bytes in place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < size:
        try:
            # For the VMM's sake: what it may lock is limited when it starts. Only root may raise it.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, size))
        except (ValueError, OSError) as error:
            raise DriverError(
                f"a device needs {size >> 20} MiB of locked memory, and this daemon's limit is {hard >> 20} MiB:"
                " have root raise it (LimitMEMLOCK in systemd, memlock in limits.conf)"
            ) from error
    return size
