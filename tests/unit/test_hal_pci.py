"""Devices of the host: what sysfs says of them, and when one is not given away (MC-91)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.hal.errors import DriverError
from insula.hal.pci import VFIO_DRIVER, PciDevice, hand_over, look_up, objections
from insula.model.pci import PciAddress

CARD = PciAddress.parse("0000:05:00.0")
OTHER = PciAddress.parse("0000:05:00.1")
BRIDGE = PciAddress.parse("0000:00:04.4")
GUARDED = PciDevice(CARD, Path("/sys/devices/x"), 0x020000, "e1000e", True, 9, True)


class Tree:
    """A sysfs of a few devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus/pci/devices").mkdir(parents=True)
        (root / "bus/pci/drivers/e1000e").mkdir(parents=True)

    def add(self, address: PciAddress, class_code: int, group: int | None = 9, *, reset: bool = True) -> Path:
        folder = self.root / "devices/pci0000:00" / str(address)
        folder.mkdir(parents=True)
        (folder / "class").write_text(f"{class_code:#08x}\n")
        (folder / "driver").symlink_to(self.root / "bus/pci/drivers/e1000e")
        if reset:
            (folder / "reset").touch()
        if group is not None:
            members = self.root / f"kernel/iommu_groups/{group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / str(address)).symlink_to(folder)
            (folder / "iommu_group").symlink_to(members.parent)
        (self.root / "bus/pci/devices" / str(address)).symlink_to(folder)
        return folder


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def reasons(tree: Tree, address: PciAddress = CARD, given: tuple[PciAddress, ...] = (CARD,)) -> list[str]:
    device = look_up(address, tree.root)
    assert device is not None
    return list(objections(device, given))


def test_card_in_a_group_of_its_own_may_be_given(tree: Tree) -> None:
    folder = tree.add(CARD, 0x020000)
    device = look_up(CARD, tree.root)
    assert device == PciDevice(CARD, folder, 0x020000, "e1000e", True, 9, True)
    assert device.is_network
    assert device.node == Path("/dev/vfio/9")
    assert reasons(tree) == []


def test_bridge_in_the_group_is_no_neighbour_and_another_device_is(tree: Tree) -> None:
    tree.add(CARD, 0x020000)
    tree.add(BRIDGE, 0x060400)
    assert reasons(tree) == []
    tree.add(OTHER, 0x0C0330)
    assert reasons(tree) == ["it shares IOMMU group 9 with 0000:05:00.1, which would have to go with it"]
    assert reasons(tree, given=(CARD, OTHER)) == []


def test_device_that_no_iommu_guards_is_refused(tree: Tree) -> None:
    tree.add(CARD, 0x020000, None)
    assert len(reasons(tree)) == 1
    assert "no IOMMU" in reasons(tree)[0]


@pytest.mark.parametrize("pretence", ["group without IOMMU", "no interrupt remapping"])
def test_group_that_only_looks_guarded_is_refused(tree: Tree, pretence: str) -> None:
    tree.add(CARD, 0x020000)
    if pretence == "group without IOMMU":
        (tree.root / "kernel/iommu_groups/9/name").write_text("vfio-noiommu\n")
    else:
        parameters = tree.root / "module/vfio_iommu_type1/parameters"
        parameters.mkdir(parents=True)
        (parameters / "allow_unsafe_interrupts").write_text("Y\n")
    assert len(reasons(tree)) == 1
    assert "guards nothing" in reasons(tree)[0]


def test_device_that_cannot_be_reset_needs_a_written_choice(tree: Tree) -> None:
    tree.add(CARD, 0x020000, reset=False)
    assert len(reasons(tree)) == 1
    assert "cannot be reset" in reasons(tree)[0]
    device = look_up(CARD, tree.root)
    assert device is not None
    assert list(objections(device, (CARD,), strict_reset=False)) == []


def test_every_reason_is_told() -> None:
    device = replace(GUARDED, group=None, is_guarded=False, can_reset=False)
    assert len(list(objections(device, ()))) == 2
    # Not even a choice gives away what nothing guards.
    assert len(list(objections(device, (), strict_reset=False))) == 1


def test_no_such_device(tree: Tree) -> None:
    assert look_up(CARD, tree.root) is None


def test_device_of_the_host_is_not_taken_without_root(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    tree.add(CARD, 0x020000)
    device = look_up(CARD, tree.root)
    assert device is not None
    with pytest.raises(DriverError, match="driven by e1000e: have root bind it"):
        hand_over(device, None, tree.root)


def test_module_that_is_not_loaded_is_named_and_the_driver_kept(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    folder = tree.add(CARD, 0x020000)
    device = look_up(CARD, tree.root)
    assert device is not None
    with pytest.raises(DriverError, match=f"modprobe {VFIO_DRIVER}"):
        hand_over(device, 1, tree.root)
    assert not (folder / "driver_override").exists()


def test_driver_that_does_not_take_it_over_is_an_error(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain files stand for those of the kernel: what is written to them is what it would be told, in order."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    folder = tree.add(CARD, 0x020000)
    (tree.root / "bus/pci/drivers" / VFIO_DRIVER).mkdir()
    device = look_up(CARD, tree.root)
    assert device is not None
    with pytest.raises(DriverError, match="was not taken over"):
        hand_over(device, 1, tree.root)
    assert (folder / "driver_override").read_text() == VFIO_DRIVER
    assert (folder / "driver/unbind").read_text() == str(CARD)
    assert (tree.root / "bus/pci/drivers_probe").read_text() == str(CARD)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7))
def test_address_round_trip(domain: int, bus: int, device: int, function: int) -> None:
    address = PciAddress(domain, bus, device, function)
    assert PciAddress.parse(str(address)) == address


@given(st.text(alphabet="0123456789abcdefABCDEF:./ \n-", max_size=16))
def test_anything_else_is_refused(text: str) -> None:
    try:
        address = PciAddress.parse(text)
    except ValueError:
        return
    assert str(address) == text
