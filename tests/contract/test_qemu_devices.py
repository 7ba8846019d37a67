"""Devices of this host for a machine: what cannot be given is refused, and nothing is left of the attempt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from insula.hal.driver import MachineState
from insula.hal.errors import DriverError
from insula.hal.hostinfo import HostInfo, probe
from insula.hal.pci import SYSFS, look_up, objections
from insula.hal.qemu.driver import QemuDriver
from insula.model.pci import PciAddress
from insula.testing import tiny_guest
from insula.testing.hypervisors import QemuWorld

pytestmark = pytest.mark.qemu

NOWHERE = PciAddress(0xFFFF, 0xFF, 0x1F, 7)


@pytest.fixture(scope="module")
def host() -> HostInfo:
    return probe()


@pytest.fixture
def world(tmp_path: Path, host: HostInfo) -> QemuWorld:
    return QemuWorld(tmp_path, host, tiny_guest.build())


async def test_device_that_is_not_there_is_named_and_nothing_starts(world: QemuWorld) -> None:
    driver = world.driver()
    assert isinstance(driver, QemuDriver)
    machine = await driver.define(replace(world.spec("net"), devices=(NOWHERE,)))
    with pytest.raises(DriverError, match=f"no PCI device {NOWHERE}"):
        await machine.start_paused()
    assert machine.state is MachineState.GONE
    assert not any(machine.spec.runtime_dir.glob("*.sock"))
    await driver.close()


def test_devices_of_this_host_can_be_looked_at() -> None:
    """Whatever it has: each is understood, and without an IOMMU each is refused."""
    folder = SYSFS / "bus/pci/devices"
    addresses = [PciAddress.parse(link.name) for link in folder.iterdir()] if folder.is_dir() else []
    has_iommu = any((SYSFS / "kernel/iommu_groups").glob("*"))
    for address in addresses:
        device = look_up(address)
        assert device is not None
        if not has_iommu:
            assert "no IOMMU" in next(objections(device, (address,)))
