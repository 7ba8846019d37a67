"""MC-101: whatever a spec holds, QEMU gets exactly those values and no further option; or the spec is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.hal.driver import MAX_HOST_NUMBER, Disk, MachineSpec, Nic
from insula.hal.errors import DriverError
from insula.hal.qemu.accel import Accelerator, AcceleratorName
from insula.hal.qemu.chain import DiskDescriptors, chain_nodes, chain_tree
from insula.hal.qemu.command import (
    CD_NODE,
    HOTPLUG_PORTS,
    MAX_CHANNELS,
    MAX_CMDLINE,
    MAX_DEVICES,
    MAX_DISKS,
    MAX_LINKS,
    Descriptors,
    channel_chardev,
    check_spec,
    disk_node,
    vmm_argv,
)
from insula.model.block import GIB, BlockLayer, BlockSource, LayerFormat, new_key
from insula.model.pci import PciAddress

TCG = Accelerator(AcceleratorName.TCG, "test")
QEMU = PurePosixPath("/usr/bin/qemu-system-x86_64")


def source(*names: str, writable: bool = True, unlink_top: bool = False) -> BlockSource:
    """Layers with the given file names; those that end in ``raw`` are raw."""
    layers = tuple(
        BlockLayer(Path(name), LayerFormat.RAW if name.endswith("raw") else LayerFormat.QCOW2) for name in names
    )
    return BlockSource(layers, GIB, writable, unlink_top)


SPEC = MachineSpec(
    name="work",
    uuid=UUID("12345678-1234-5678-1234-567812345678"),
    qid=7,
    memory_mib=400,
    vcpus=2,
    kernel=Path("/kernels/vmlinuz"),
    initrd=Path("/kernels/initrd"),
    cmdline="root=/dev/vda quiet",
    disks=(Disk("root", source("/top.qcow2", "/base.raw")), Disk("private", source("/private.qcow2"))),
    runtime_dir=Path("/run/insula/qubes/work"),
)

DESCRIPTORS = Descriptors(10, 11, 12, 13, (14, 15), 19, (DiskDescriptors((16, 17)), DiskDescriptors((18,))))


def options(argv: tuple[str, ...]) -> list[tuple[str, str]]:
    """Read a command line as QEMU does: options, each with one value or (for the two flags) none."""
    flags = {"-nodefaults", "-no-user-config", "-S"}
    words = iter(argv[1:])
    return [(word, "" if word in flags else next(words)) for word in words]


def values(argv: tuple[str, ...], option: str) -> list[str]:
    return [value for name, value in options(argv) if name == option]


def objects(argv: tuple[str, ...], option: str) -> list[dict[str, Any]]:
    return [json.loads(value) for value in values(argv, option)]


def devices(argv: tuple[str, ...], driver: str) -> list[dict[str, Any]]:
    return [device for device in objects(argv, "-device") if device["driver"] == driver]


def descriptors_for(spec: MachineSpec) -> Descriptors:
    numbers = iter(range(100, 10_000))
    channels = tuple(next(numbers) for _ in spec.channels)
    disks = tuple(DiskDescriptors(tuple(next(numbers) for _ in disk.source.layers)) for disk in spec.disks)
    return Descriptors(10, 11, 12, 13, channels, next(numbers), disks)


def argv_of(spec: MachineSpec) -> tuple[str, ...]:
    check_spec(spec)
    return vmm_argv(spec, descriptors_for(spec), TCG, QEMU)


# What is on it


def test_argv_names_no_path_of_the_host() -> None:
    text = " ".join(vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU))
    for path in (SPEC.kernel, SPEC.initrd, SPEC.runtime_dir, *(disk.source.layers[0].path for disk in SPEC.disks)):
        assert str(path) not in text


def test_argv_uses_every_descriptor_once() -> None:
    argv = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    sockets = [int(value.split("fd=")[1].split(",")[0]) for value in values(argv, "-chardev")]
    layers = [int(value.split("fd=")[1].split(",")[0]) for value in values(argv, "-add-fd")]
    boot = [int(PurePosixPath(values(argv, name)[0]).name) for name in ("-kernel", "-initrd")]
    links = [int(netdev["addr"]["str"]) for netdev in objects(argv, "-netdev")]
    assert sorted(sockets + layers + boot + links) == sorted(DESCRIPTORS.numbers()) == list(range(10, 20))


def test_argv_waits_at_start_and_at_the_guests_end() -> None:
    argv = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    assert ("-S", "") in options(argv)
    assert values(argv, "-action") == ["reboot=shutdown,shutdown=pause,panic=pause,watchdog=none"]


def test_argv_denies_all_that_the_seccomp_filter_can() -> None:
    (filter_options,) = values(vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU), "-sandbox")
    denied = {"obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny"}
    assert set(filter_options.split(",")) == {"on"} | denied


def test_argv_has_no_network_display_or_usb() -> None:
    argv = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    drivers = " ".join(device["driver"] for device in objects(argv, "-device"))
    assert not any(word in drivers for word in ("net", "vga", "usb", "ide", "sata"))
    # A network end that no device of the guest is at.
    assert len(objects(argv, "-netdev")) == 1
    assert not {"-nic", "-usb", "-vnc", "-spice", "-drive"} & {name for name, _ in options(argv)}


def test_argv_of_a_machine_with_a_screen_has_a_pcs_hardware_and_listens_nowhere() -> None:
    """MC-49."""
    argv = argv_of(replace(SPEC, has_display=True))
    assert [len(devices(argv, driver)) for driver in ("VGA", "qemu-xhci", "usb-tablet")] == [1, 1, 1]
    assert values(argv, "-vnc") == ["none"]
    assert "i8042=on" in values(argv, "-machine")[0]
    assert "i8042=off" in values(argv_of(SPEC), "-machine")[0]
    addresses = [device["addr"] for device in objects(argv, "-device") if device.get("bus") == "pcie.0"]
    assert len(set(addresses)) == len(addresses)
    for change in ({"freezable": True}, {"seed": SPEC.runtime_dir}):
        with pytest.raises(DriverError, match="screen"):
            check_spec(replace(SPEC, has_display=True, **change))


def test_argv_of_a_machine_with_a_cd_boots_from_it_first_and_only_reads_it() -> None:
    """MC-49."""
    cd = source("/rescue,boot=x.raw", writable=False)
    spec = replace(SPEC, kernel=None, initrd=None, cmdline="", has_display=True, cd=cd)
    check_spec(spec)
    with pytest.raises(DriverError, match="not by a kernel"):
        check_spec(replace(SPEC, has_display=True, cd=cd))
    fds = replace(descriptors_for(spec), kernel=None, initrd=None, cd=DiskDescriptors((77,)))
    argv = vmm_argv(spec, fds, TCG, QEMU)
    [drive] = devices(argv, "ide-cd")
    assert (drive["bootindex"], drive["drive"]) == (0, CD_NODE)
    node = next(node for node in objects(argv, "-blockdev") if node["node-name"] == CD_NODE)
    assert (node["driver"], node["read-only"]) == ("raw", True)
    assert "rescue" not in " ".join(argv)
    assert 77 in fds.numbers()
    addresses = [device["addr"] for device in objects(argv, "-device") if device.get("bus") == "pcie.0"]
    assert len(set(addresses)) == len(addresses)
    for driver in ("ich9-ahci", "ide-cd"):
        assert devices(argv_of(replace(SPEC, has_display=True)), driver) == []


@pytest.mark.parametrize(
    ("cd", "has_display", "complaint"),
    [
        (source("/cd.raw", writable=False), False, "screen"),
        (source("/cd.raw"), True, "read-only"),
        (replace(source("/cd.raw", writable=False), size=513), True, "size"),
    ],
)
def test_cd_that_cannot_be_is_refused(cd: BlockSource, has_display: bool, complaint: str) -> None:
    with pytest.raises(DriverError, match=complaint):
        check_spec(replace(SPEC, kernel=None, initrd=None, cd=cd, has_display=has_display))


def test_argv_of_a_machine_that_boots_by_itself_names_no_kernel() -> None:
    spec = replace(SPEC, kernel=None, initrd=None, cmdline="")
    check_spec(spec)
    fds = replace(DESCRIPTORS, kernel=None, initrd=None)
    argv = vmm_argv(spec, fds, TCG, QEMU)
    assert not {"-kernel", "-initrd", "-append"} & {name for name, _ in options(argv)}
    assert len(fds.numbers()) == len(DESCRIPTORS.numbers()) - 2
    for change in ({"freezable": True}, {"seed": SPEC.runtime_dir}, {"initrd": SPEC.initrd}):
        with pytest.raises(DriverError, match=r"boots from a disk|go together"):
            check_spec(replace(spec, **change))


def test_pci_addresses_are_unique_and_independent_of_disks() -> None:
    argv = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    without = argv_of(replace(SPEC, disks=()))
    addresses = [device["addr"] for device in objects(argv, "-device") if device.get("bus") == "pcie.0"]
    assert len(addresses) == len(set(addresses))
    fixed = [device for device in objects(argv, "-device") if device["driver"] != "virtio-blk-pci"]
    assert fixed == objects(without, "-device")


def test_hotplug_ports_have_their_own_chassis() -> None:
    ports = devices(vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU), "pcie-root-port")
    assert len({port["chassis"] for port in ports}) == len({port["id"] for port in ports}) == HOTPLUG_PORTS


def test_interface_and_ports_of_links_have_places_of_their_own() -> None:
    plain = objects(argv_of(SPEC), "-device")
    spec = replace(SPEC, nic=Nic("00:16:3e:5e:6c:00"), links=MAX_LINKS)
    argv = vmm_argv(spec, DESCRIPTORS, TCG, QEMU)
    made = objects(argv, "-device")
    places = [device["addr"] for device in made if device.get("bus") == "pcie.0"]
    assert len(places) == len(set(places))
    # The board's own device (ICH9) is at 0x1f.
    assert all(int(place.split(".")[0], 16) < 0x1F for place in places)
    # What was there keeps its place, so nothing else in the guest moves.
    assert {device["id"]: device["addr"] for device in made if "addr" in device}.items() >= {
        device["id"]: device["addr"] for device in plain if "addr" in device
    }.items()
    ports = devices(argv, "pcie-root-port")
    assert len({port["chassis"] for port in ports}) == HOTPLUG_PORTS + MAX_LINKS


def test_device_of_the_host_has_a_port_of_its_own_and_no_program() -> None:
    cards = tuple(PciAddress(0, bus, 0, 0) for bus in range(MAX_DEVICES))
    argv = vmm_argv(replace(SPEC, links=MAX_LINKS, devices=cards), DESCRIPTORS, TCG, QEMU)
    given = devices(argv, "vfio-pci")
    assert [device["host"] for device in given] == [str(card) for card in cards]
    assert {device["rombar"] for device in given} == {0}
    ports = {port["id"]: port for port in devices(argv, "pcie-root-port")}
    assert len({device["bus"] for device in given} & set(ports)) == MAX_DEVICES
    assert len({port["chassis"] for port in ports.values()}) == len(ports)
    places = [device["addr"] for device in objects(argv, "-device") if device.get("bus") == "pcie.0"]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"devices": tuple(PciAddress(0, bus, 0, 0) for bus in range(MAX_DEVICES + 1))}, "at most"),
        ({"devices": (PciAddress(0, 1, 0, 0),) * 2}, "same address"),
        ({"devices": (PciAddress(0, 1, 0, 0),), "seed": Path("/seed")}, "neither a fork nor a seed"),
        ({"devices": (PciAddress(0, 1, 0, 0),), "freezable": True}, "neither a fork nor a seed"),
    ],
)
def test_devices_that_cannot_be_given_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(DriverError, match=word):
        check_spec(replace(SPEC, **change))


def test_interface_waits_at_its_socket_and_boots_nothing() -> None:
    spec = replace(SPEC, nic=Nic("00:16:3e:5e:6c:00"))
    argv = vmm_argv(spec, DESCRIPTORS, TCG, QEMU)
    (netdev,) = objects(argv, "-netdev")
    assert netdev == {"type": "stream", "id": "nic", "server": True, "addr": {"type": "fd", "str": "19"}}
    (nic,) = devices(argv, "virtio-net-pci")
    assert (nic["netdev"], nic["mac"], nic["romfile"]) == ("nic", "00:16:3e:5e:6c:00", "")
    # Where it can be taken away, and given, while the machine runs.
    assert nic["bus"] in {port["id"] for port in devices(argv, "pcie-root-port")}


@pytest.mark.parametrize("mac", ["", "00:16:3e:5e:6c", "01:16:3e:5e:6c:00", "00:16:3E:5E:6C:00", "00:16:3e:5e:6c:00,x"])
def test_address_that_is_none_is_refused(mac: str) -> None:
    with pytest.raises(DriverError, match="address"):
        check_spec(replace(SPEC, nic=Nic(mac)))


@pytest.mark.parametrize("links", [-1, MAX_LINKS + 1])
def test_more_links_than_ports_are_refused(links: int) -> None:
    with pytest.raises(DriverError, match="links"):
        check_spec(replace(SPEC, links=links))


def test_most_disks_and_channels_fit() -> None:
    disks = tuple(Disk(f"disk{number}", source(f"/{number}.qcow2")) for number in range(MAX_DISKS))
    channels = tuple(f"channel.{number}" for number in range(MAX_CHANNELS))
    argv = argv_of(replace(SPEC, disks=disks, channels=channels))
    assert [device["serial"] for device in devices(argv, "virtio-blk-pci")] == [disk.name for disk in disks]
    assert {int(device["addr"], 16) for device in devices(argv, "virtio-blk-pci")}.isdisjoint({0x1F})
    assert [device["name"] for device in devices(argv, "virtserialport")] == list(channels)


# Disks


def test_chain_states_every_format_and_backing() -> None:
    nodes = {node["node-name"]: node for node in objects(vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU), "-blockdev")}
    top, base = nodes[disk_node(0)], nodes["disk0-layer1"]
    assert (top["driver"], top["backing"]) == ("qcow2", "disk0-layer1")
    assert base["driver"] == "raw"
    assert "backing" not in base
    # The last qcow2 of a chain must not follow its own header (MC-65).
    assert nodes[disk_node(1)]["backing"] is None


def test_only_the_top_of_a_writable_disk_is_writable() -> None:
    spec = replace(SPEC, disks=(Disk("root", source("/a", "/b", "/c.raw")), Disk("ro", source("/d", writable=False))))
    nodes = objects(argv_of(spec), "-blockdev")
    assert {node["node-name"] for node in nodes if not node["read-only"]} == {disk_node(0), "disk0-file0"}
    assert not any(node["auto-read-only"] for node in nodes)


def test_thrown_away_disk_skips_flushes_and_others_do_not() -> None:
    spec = replace(SPEC, disks=(Disk("root", source("/a", unlink_top=True)), Disk("private", source("/b"))))
    nodes = {node["node-name"]: node for node in objects(argv_of(spec), "-blockdev")}
    assert nodes[disk_node(0)]["cache"]["no-flush"] is True
    assert nodes[disk_node(1)]["cache"]["no-flush"] is False


def test_all_files_are_locked() -> None:
    files = [node for node in objects(vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU), "-blockdev") if node["driver"] == "file"]
    assert [node["locking"] for node in files] == ["on"] * 3


def test_key_reaches_qemu_by_descriptor_only() -> None:
    key = new_key()
    root, private = SPEC.disks
    spec = replace(SPEC, disks=(replace(root, source=replace(root.source, key=key)), private))
    check_spec(spec)
    fds = replace(DESCRIPTORS, disks=(DiskDescriptors((16, 17), key=20), DiskDescriptors((18,))))
    argv = vmm_argv(spec, fds, TCG, QEMU)
    assert key.decode() not in " ".join(argv)
    (secret,) = (item for item in objects(argv, "-object") if item["qom-type"] == "secret")
    assert (secret["file"], 20 in fds.numbers()) == ("/proc/self/fd/20", True)
    nodes = {node["node-name"]: node for node in objects(argv, "-blockdev")}
    assert nodes[disk_node(0)]["encrypt"] == {"format": "luks", "key-secret": secret["id"]}
    assert not any("encrypt" in node for name, node in nodes.items() if name != disk_node(0))


# Memory


def memory_of(argv: tuple[str, ...]) -> dict[str, Any]:
    (found,) = (item for item in objects(argv, "-object") if item["id"] == "ram")
    return found


def test_memory_is_anonymous_shared_or_private_as_the_machine_needs() -> None:
    plain = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    freezable = vmm_argv(SPEC, replace(DESCRIPTORS, memory=50), TCG, QEMU)
    fork = vmm_argv(SPEC, replace(DESCRIPTORS, memory=50, state=51), TCG, QEMU)
    assert memory_of(plain)["qom-type"] == "memory-backend-ram"
    assert (memory_of(freezable)["mem-path"], memory_of(freezable)["share"]) == ("/proc/self/fd/50", True)
    assert (memory_of(fork)["mem-path"], memory_of(fork)["share"]) == ("/proc/self/fd/50", False)
    assert [values(argv, "-incoming") for argv in (plain, freezable, fork)] == [[], [], ["defer"]]


def test_guest_sees_no_uuid_and_the_vmm_is_found_by_it() -> None:
    argv = vmm_argv(SPEC, DESCRIPTORS, TCG, QEMU)
    names = [name for name, _ in options(argv)]
    assert values(argv, "-uuid") == [str(SPEC.uuid)]
    assert values(argv, "-smbios") == [f"type=1,uuid={UUID(int=0)}"]
    # QEMU keeps one uuid: the last one given.
    assert names.index("-uuid") < names.index("-smbios")


# What is refused


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "work,accel=kvm"}, "machine name"),
        ({"name": "-S"}, "machine name"),
        ({"name": ""}, "machine name"),
        ({"qid": 0}, "qid"),
        ({"qid": MAX_HOST_NUMBER + 1}, "qid"),
        ({"memory_mib": 0}, "memory"),
        ({"memory_mib": -5}, "memory"),
        ({"vcpus": 0}, "virtual CPUs"),
        ({"cmdline": "a\nb"}, "command line"),
        ({"cmdline": "a\0b"}, "command line"),
        ({"cmdline": "ünicode"}, "command line"),
        ({"cmdline": "x" * (MAX_CMDLINE + 1)}, "command line"),
        ({"channels": ("insula.rpc,path=/etc",)}, "channel name"),
        ({"channels": ("a", "a")}, "same name"),
        ({"channels": tuple(f"c{number}" for number in range(MAX_CHANNELS + 1))}, "channels"),
        ({"disks": (Disk("x" * 21, source("/a")),)}, "serial"),
        ({"disks": (Disk("a,b", source("/a")),)}, "serial"),
        ({"disks": (Disk("a", source("/a")), Disk("a", source("/b")))}, "same name"),
        ({"disks": (Disk("a", source()),)}, "layers"),
        ({"disks": (Disk("a", replace(source("/a"), size=513)),)}, "size"),
        ({"disks": (Disk("a", replace(source("/a"), size=0)),)}, "size"),
        ({"freezable": True, "seed": Path("/seed")}, "fork cannot be frozen"),
        ({"disks": (Disk("a", replace(source("/a"), key=b"short")),)}, "key"),
        ({"disks": (Disk("a", replace(source("/a"), key=bytes(32))),)}, "key"),
        ({"disks": (Disk("a", replace(source("/a.raw"), key=new_key())),)}, "key"),
        ({"disks": (Disk("a", source("/top.raw", "/base.raw")),)}, "raw"),
        ({"disks": (Disk("a", source("/a", writable=False, unlink_top=True)),)}, "thrown away"),
        ({"disks": tuple(Disk(f"d{number}", source("/a")) for number in range(MAX_DISKS + 1))}, "disks"),
    ],
)
def test_value_that_cannot_work_is_refused_by_name(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DriverError, match=complaint):
        check_spec(replace(SPEC, **change))


# Properties

nasty = st.text(st.characters(codec="utf-8") | st.sampled_from(",=\"'\\%{}[]:;$`&|-\n\r\t\0 "), max_size=40)
likely_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,18}", fullmatch=True)


@st.composite
def specs(draw: st.DrawFn) -> MachineSpec:
    text = nasty | likely_name
    names = draw(st.lists(text, max_size=4, unique=True))
    return replace(
        SPEC,
        name=draw(text),
        cmdline=draw(nasty | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)),
        uuid=draw(st.uuids()),
        memory_mib=draw(st.integers(-10, 1 << 22)),
        vcpus=draw(st.integers(-1, 300)),
        channels=tuple(draw(st.lists(text, max_size=3, unique=True))),
        disks=tuple(Disk(name, source(f"/{draw(nasty)}", "/base.raw")) for name in names),
        kernel=Path("/", draw(nasty).replace("\0", "")),
    )


@given(specs())
def test_any_spec_arrives_unchanged_or_is_refused(spec: MachineSpec) -> None:
    try:
        argv = argv_of(spec)
    except DriverError:
        return
    same_shape = replace(
        SPEC,
        channels=tuple(f"c{number}" for number in range(len(spec.channels))),
        disks=tuple(Disk(f"d{number}", disk.source) for number, disk in enumerate(spec.disks)),
    )
    assert [name for name, _ in options(argv)] == [name for name, _ in options(argv_of(same_shape))]
    assert values(argv, "-append") == [spec.cmdline]
    assert values(argv, "-name") == [f"guest={spec.name}"]
    assert "," not in spec.name
    assert values(argv, "-uuid") == [str(spec.uuid)]
    assert values(argv, "-m") == [f"{spec.memory_mib}M"]
    assert values(argv, "-smp") == [str(spec.vcpus)]
    assert [device["serial"] for device in devices(argv, "virtio-blk-pci")] == [disk.name for disk in spec.disks]
    assert [device["name"] for device in devices(argv, "virtserialport")] == list(spec.channels)
    expected = ["qmp", "console", *(channel_chardev(index) for index in range(len(spec.channels)))]
    chardevs = [dict(part.split("=") for part in value.split(",")[1:]) for value in values(argv, "-chardev")]
    assert [chardev["id"] for chardev in chardevs] == expected
    assert all(set(chardev) == {"id", "fd", "server", "wait"} for chardev in chardevs)


@given(st.text(max_size=100))
def test_any_command_line_is_verbatim_or_refused(cmdline: str) -> None:
    try:
        argv = argv_of(replace(SPEC, cmdline=cmdline))
    except DriverError:
        assert not (cmdline.isascii() and cmdline.isprintable())
        return
    assert argv[argv.index("-append") + 1] == cmdline


def test_chain_tree_has_the_same_nodes_inside_each_other() -> None:
    layers = tuple(BlockLayer(Path(f"/{n}"), LayerFormat.QCOW2) for n in range(3))
    source = BlockSource(layers, 1 << 20, writable=True, unlink_top=True, key=b"k" * 32)
    fdsets = (7, 8, 9)
    nodes = {node["node-name"]: node for node in chain_nodes("own0", source, fdsets, is_encrypted=True)}
    found: dict[object, object] = {}

    def look(tree: dict[str, object]) -> None:
        inner = {key: value for key, value in tree.items() if isinstance(value, dict) and "node-name" in value}
        found[tree["node-name"]] = {**tree, **{key: value["node-name"] for key, value in inner.items()}}
        for value in inner.values():
            look(value)

    look(chain_tree("own0", source, fdsets, is_encrypted=True))
    assert found == nodes
    assert len(found) == 6
