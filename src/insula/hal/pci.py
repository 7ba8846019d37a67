"""Devices of this host that machines may be given, and what must hold before one is.

A device writes to memory by itself. Only an IOMMU keeps one that a guest commands to that guest's memory, and only
whole *groups* of devices: members of one group reach each other past the IOMMU. So :func:`look_up` reads what sysfs
says of a device, and :func:`objections` says why it is not to be given away (MC-91): both do nothing else.
:func:`hand_over` then takes it from the host's driver, where the daemon may.

A device is never given back to the host: a guest has programmed it, and the host's driver would believe what it says.
After a restart of the computer it is the host's again.

(Layout of sysfs: sysfs-bus-pci and sysfs-kernel-iommu_groups in Documentation/ABI/testing of Linux; what a VMM needs:
Documentation/driver-api/vfio.rst.)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.hal.errors import DriverError
from insula.model.pci import PciAddress

SYSFS = Path("/sys")
VFIO_DRIVER = "vfio-pci"
VFIO_FOLDER = Path("/dev/vfio")

_BRIDGES = range(0x060000, 0x070000)
"""Class codes of bridges (PCI Code and ID Assignment Specification §1.7): they are the host's and command nothing."""
_NETWORK = range(0x020000, 0x030000)
"""Class codes of network controllers (the same, §1.3)."""


@dataclass(frozen=True)
class PciDevice:
    """What sysfs says of a device."""

    address: PciAddress
    folder: Path
    """Its own folder, no link."""
    class_code: int
    """24 bits."""
    driver: str | None
    can_reset: bool
    group: int | None
    """Number of its IOMMU group; None: no IOMMU guards it."""
    is_guarded: bool
    """Whether that group is one of a real IOMMU, which also remaps interrupts."""
    neighbours: tuple[PciAddress, ...] = ()
    """Other members of the group that are no bridges."""

    @property
    def is_network(self) -> bool:
        return self.class_code in _NETWORK

    @property
    def node(self) -> Path:
        """Device node of its group, by which a VMM commands it."""
        return VFIO_FOLDER / str(self.group)


def look_up(address: PciAddress, sysfs: Path = SYSFS) -> PciDevice | None:
    """None: there is no such device. :raise OSError: sysfs cannot be read."""
    link = sysfs / "bus/pci/devices" / str(address)
    if not link.exists():
        return None
    folder = link.resolve()
    group_folder = folder / "iommu_group"
    group = int(group_folder.resolve().name) if group_folder.exists() else None
    neighbours: list[PciAddress] = []
    is_guarded = False
    if group is not None:
        for member in sorted((group_folder / "devices").iterdir()):
            if member.name != str(address) and _class_code(member) not in _BRIDGES:
                neighbours.append(PciAddress.parse(member.name))
        is_guarded = not _is_pretended(group_folder) and not _is_on(
            sysfs, "vfio_iommu_type1", "allow_unsafe_interrupts"
        )
    driver = folder / "driver"
    return PciDevice(
        address,
        folder,
        _class_code(folder),
        driver.resolve().name if driver.exists() else None,
        (folder / "reset").exists(),
        group,
        is_guarded,
        tuple(neighbours),
    )


def _class_code(folder: Path) -> int:
    return int((folder / "class").read_text(encoding="ascii"), 16)


def _is_pretended(group_folder: Path) -> bool:
    """VFIO makes groups without any IOMMU where it is told to (enable_unsafe_noiommu_mode)."""
    try:
        return (group_folder / "name").read_text(encoding="ascii").strip() == "vfio-noiommu"
    except FileNotFoundError:
        return False


def _is_on(sysfs: Path, module: str, parameter: str) -> bool:
    try:
        return (sysfs / "module" / module / "parameters" / parameter).read_text(encoding="ascii").strip() == "Y"
    except FileNotFoundError:
        return False


def objections(device: PciDevice, given: Sequence[PciAddress], *, strict_reset: bool = True) -> Iterator[str]:
    """Why a device must not be given to a machine, a reason each; none: it may.

    :param given: all devices that the machine is to have.
    :param strict_reset: whether it must be possible to reset the device, so that nothing of one guest is left in it
        for the next.
    """
    if device.group is None:
        yield "no IOMMU guards it: it could read and write all memory of this computer"
    elif not device.is_guarded:
        yield f"its IOMMU group {device.group} guards nothing: VFIO was told to do without IOMMU or interrupt remapping"
    strangers = [str(neighbour) for neighbour in device.neighbours if neighbour not in given]
    if strangers:
        yield f"it shares IOMMU group {device.group} with {', '.join(strangers)}, which would have to go with it"
    if strict_reset and not device.can_reset:
        yield "it cannot be reset, so what one machine left in it would meet the next"


def hand_over(device: PciDevice, owner: int | None, sysfs: Path = SYSFS) -> Path:
    """Have the device driven by VFIO and its group's node usable; return that node.

    :param owner: host user who is to use it, where the daemon is root; None: the daemon's own, who must be let in by
        whoever administers this computer.
    :raise DriverError: says what is missing; the device is as it was, or without driver.
    """
    if device.driver != VFIO_DRIVER:
        if os.geteuid() != 0:
            raise DriverError(
                f"PCI device {device.address} is driven by {device.driver or 'nothing'}: have root bind it to"
                f" {VFIO_DRIVER} (docs/howto/network.md)"
            )
        _bind(device, sysfs)
    node = device.node
    try:
        status = node.stat()
        if not stat.S_ISCHR(status.st_mode):
            raise DriverError(f"{node} is no device")
        if owner is not None:
            # Of one machine alone, and of no group.
            os.chown(node, owner, owner)
            node.chmod(0o600)
        elif not os.access(node, os.R_OK | os.W_OK):
            raise DriverError(f"you may not use {node}: have root give it to you (docs/howto/network.md)")
    except OSError as error:
        raise DriverError(f"PCI device {device.address} cannot be used", str(error)) from error
    return node


def _bind(device: PciDevice, sysfs: Path) -> None:
    """Take a device from its driver and give it to VFIO's. :raise DriverError:"""
    bus = sysfs / "bus/pci"
    if not (bus / "drivers" / VFIO_DRIVER).is_dir():
        raise DriverError(f"the kernel's module {VFIO_DRIVER} is not loaded: modprobe {VFIO_DRIVER}")
    try:
        (device.folder / "driver_override").write_text(VFIO_DRIVER, encoding="ascii")
        if device.driver is not None:
            (device.folder / "driver/unbind").write_text(str(device.address), encoding="ascii")
        (bus / "drivers_probe").write_text(str(device.address), encoding="ascii")
    except OSError as error:
        raise DriverError(f"PCI device {device.address} cannot be bound to {VFIO_DRIVER}", str(error)) from error
    now = look_up(device.address, sysfs)
    if now is None or now.driver != VFIO_DRIVER:
        raise DriverError(f"PCI device {device.address} was not taken over by {VFIO_DRIVER}")
