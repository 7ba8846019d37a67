"""The VMM's command line as a pure function: machine spec + descriptor numbers + accelerator → argv.

Design. A value of the spec reaches QEMU in one of three ways, none of which can start another option (MC-101):

* inside JSON (``-blockdev``, ``-device``, ``-object``), where :func:`json.dumps` does the quoting;
* as an argument of its own that QEMU takes verbatim (``-append``, ``-uuid``);
* as a number.

Options that only know QEMU's ``key=value,…`` syntax (``-machine``, ``-chardev``, ``-add-fd``, ``-name``) get
constants, numbers and names of a checked alphabet. No path of the host appears: disks, sockets, kernel and initrd are
open descriptors that the VMM inherits.

PCI addresses are fixed by role, so that a device keeps its place in the guest whatever else is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import UUID

from insula.hal import frames
from insula.hal.driver import MAX_HOST_NUMBER, Disk, MachineSpec, Nic
from insula.hal.errors import DriverError
from insula.hal.qemu.accel import Accelerator
from insula.hal.qemu.chain import DiskDescriptors, chain_options, json_option
from insula.model.block import BlockSource, LayerFormat
from insula.model.pci import PciAddress
from insula_proto import limits

HOTPLUG_PORTS = 8
"""Free PCIe root ports from the start: devices plugged later need one each (links, frames, block, USB)."""

MAX_LINKS = 16
"""Clients of a net qube: their interfaces are hot-plugged, each needs a root port of its own."""

MAX_DEVICES = 4
"""Devices of the host that a machine can have."""

MAX_DISKS = 16
"""PCI slots kept for disks; a qube has four volumes, the rest is for block devices attached at start."""
MAX_LAYERS = 64
"""Overlays of one disk; far beyond what pools make, far below what QEMU's recursion stands."""
MAX_CHANNELS = 30
"""A virtio-serial bus has 31 ports, number 0 is reserved for a console (virtio 1.1 §5.3)."""
MAX_VCPUS = 128
MIN_MEMORY_MIB = 32
MAX_MEMORY_MIB = 1 << 20
MAX_CMDLINE = 2047
"""Linux on x86: COMMAND_LINE_SIZE 2048 with its final NUL (arch/x86/include/asm/setup.h)."""
MAX_SERIAL = 20
"""VIRTIO_BLK_ID_BYTES (virtio 1.1 §5.2.6); QEMU cuts longer ones, so two disks could look alike."""
SECTOR = 512
KEY_SIZE = 32
"""Characters of a disk's passphrase. QEMU takes text only ("not valid UTF-8")."""

QMP_CHARDEV = "qmp"
CONSOLE_CHARDEV = "console"
ROOT_PORT_BUS = "hotplug{}"
"""Bus of the n-th hot-plug port, counted from 0."""
DEVICE_PORT_BUS = "device-port{}"
"""Bus of the n-th device of the host, counted from 0."""
LINK_PORT_BUS = "link-port{}"
"""Bus of the n-th port for a client's interface, counted from 0."""
NIC_NETDEV = "nic"
NIC_DEVICE = "nic0"
NIC_BUS = ROOT_PORT_BUS.format(HOTPLUG_PORTS - 1)
"""The last of the hot-plug ports is kept for it: so it can be given and taken away while the machine runs."""
BALLOON_ID = "balloon"
CD_NODE = "cd-image"

_SLOT_RNG = 0x1
_SLOT_SERIAL = 0x2
_SLOT_BALLOON = 0x3
_SLOT_PANIC = 0x4
_SLOT_PORTS = 0x5
_SLOT_VGA = 0x6
_SLOT_USB = 0x7
_SLOT_FIRST_DISK = 0x8
_SLOT_CD = 0x18
_SLOT_LINKS = 0x19
"""First of two; a slot has eight functions."""
_SLOT_DEVICES = 0x1B
_FUNCTIONS = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CHANNEL = re.compile(r"[a-z][a-z0-9.-]{0,31}")
_DISK = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_SERIAL - 1}}}")
_KEY = re.compile(rb"[!-~]{%d}" % KEY_SIZE)
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
"""Of one station, not a group (IEEE 802: the lowest bit of the first byte is 0)."""
_CMDLINE = re.compile(rf"[ -~]{{0,{MAX_CMDLINE}}}")


@dataclass(frozen=True)
class PluggedMemory:
    """Memory that a machine can be given while it runs, on a hot-plug port that has room for it."""

    device: str
    file: str
    """Name of the memory file, as ``/proc/PID/fd`` shows it."""
    size: int
    port: int

    @property
    def memory(self) -> str:
        return f"{self.device}-memory"


FRAMES = PluggedMemory("frames", frames.NAME, frames.SIZE, HOTPLUG_PORTS - 2)
"""The last port but one is kept for frame memory: it has room for that in the guest's address space."""
BULK_MEMORY = PluggedMemory("bulk", frames.BULK_NAME, limits.BULK_SIZE, HOTPLUG_PORTS - 3)


@dataclass(frozen=True)
class Descriptors:
    """Numbers of the descriptors the VMM inherits."""

    kernel: int | None
    initrd: int | None
    """None: it boots from a disk."""
    qmp: int
    """Listening socket of the monitor."""
    console: int
    """Listening socket of the serial console."""
    channels: tuple[int, ...]
    """Listening sockets, in the order of ``spec.channels``."""
    nic: int
    """Listening socket of the network interface."""
    disks: tuple[DiskDescriptors, ...]
    """In the order of ``spec.disks``."""
    memory: int | None = None
    """Memory file of a freezable machine, or the seed's of a fork."""
    state: int | None = None
    """Device state of a fork's seed, at its beginning."""
    cd: DiskDescriptors | None = None

    def numbers(self) -> tuple[int, ...]:
        media = self.disks if self.cd is None else (*self.disks, self.cd)
        disks = (number for disk in media for number in disk.numbers())
        files = (self.kernel, self.initrd, self.memory, self.state)
        given = (number for number in files if number is not None)
        return (self.qmp, self.console, *self.channels, self.nic, *disks, *given)


def channel_chardev(index: int) -> str:
    """QEMU's id of the byte channel ``spec.channels[index]``."""
    return f"channel{index}"


def disk_node(index: int) -> str:
    """Block node that the guest sees as disk ``index``; block jobs and resizing name it."""
    return f"disk{index}"


def disk_device(index: int) -> str:
    """Id of the device that disk ``index`` is to the guest."""
    return f"vd{index}"


def check_spec(spec: MachineSpec) -> None:
    """Refuse what QEMU could not run or what could be mistaken for something else.

    :raise DriverError: says which value and why; nothing was done.
    """
    for ok, complaint in _checks(spec):
        if not ok:
            raise DriverError(complaint)


def _checks(spec: MachineSpec) -> Iterator[tuple[bool, str]]:
    yield _matches(_NAME, spec.name), f"machine name {spec.name!a} has characters QEMU could misread"
    for number in (spec.qid, spec.host_number):
        yield number is None or 1 <= number <= MAX_HOST_NUMBER, f"qid {number} is not within 1…{MAX_HOST_NUMBER}"
    yield (
        MIN_MEMORY_MIB <= spec.memory_mib <= MAX_MEMORY_MIB,
        f"memory of {spec.memory_mib} MiB is not within {MIN_MEMORY_MIB}…{MAX_MEMORY_MIB} MiB",
    )
    yield 1 <= spec.vcpus <= MAX_VCPUS, f"{spec.vcpus} virtual CPUs are not within 1…{MAX_VCPUS}"
    yield (
        _matches(_CMDLINE, spec.cmdline),
        f"kernel command line must be printable ASCII of at most {MAX_CMDLINE} characters",
    )
    yield spec.seed is None or not spec.freezable, "a fork cannot be frozen: its memory is the seed's"
    yield 0 <= spec.links <= MAX_LINKS, f"{spec.links} links; at most {MAX_LINKS} fit"
    yield (
        spec.nic is None or is_station(spec.nic.mac),
        f"the interface's address {spec.nic.mac if spec.nic else ''!a} is none",
    )
    yield len(spec.devices) <= MAX_DEVICES, f"{len(spec.devices)} devices of the host; at most {MAX_DEVICES} fit"
    yield len(set(spec.devices)) == len(spec.devices), "two devices have the same address"
    yield (
        not spec.devices or (spec.seed is None and not spec.freezable),
        "a machine with a device of the host can be neither a fork nor a seed",
    )
    yield (
        not spec.has_display or (spec.seed is None and not spec.freezable),
        "a machine with a screen of its own can be neither a fork nor a seed",
    )
    yield spec.cd is None or spec.has_display, "only a machine with a screen of its own has a CD"
    yield spec.cd is None or spec.kernel is None, "a machine with a CD boots from it, not by a kernel of the host"
    if spec.cd is not None:
        yield not spec.cd.writable and spec.cd.key is None, "a CD is read-only and not encrypted"
        yield from _source_checks("the CD", spec.cd)
    yield (spec.kernel is None) == (spec.initrd is None), "a kernel and an initrd go together"
    yield (
        spec.kernel is not None or (spec.seed is None and not spec.freezable),
        "a machine that boots from a disk can be neither a fork nor a seed",
    )
    yield len(spec.channels) <= MAX_CHANNELS, f"{len(spec.channels)} channels; at most {MAX_CHANNELS} fit"
    yield len(set(spec.channels)) == len(spec.channels), "two channels have the same name"
    for channel in spec.channels:
        yield _matches(_CHANNEL, channel), f"channel name {channel!a} is not of the form a-z 0-9 . -"
    yield len(spec.disks) <= MAX_DISKS, f"{len(spec.disks)} disks; at most {MAX_DISKS} fit"
    names = [disk.name for disk in spec.disks]
    yield len(set(names)) == len(names), "two disks have the same name"
    for disk in spec.disks:
        yield from _disk_checks(disk)


def is_station(mac: str) -> bool:
    """Whether it is the address of one interface, in the form we use."""
    return _matches(_MAC, mac)


def _disk_checks(disk: Disk) -> Iterator[tuple[bool, str]]:
    yield _matches(_DISK, disk.name), f"disk name {disk.name!a} does not fit a disk's serial ({MAX_SERIAL} characters)"
    yield from _source_checks(f"disk {disk.name!r}", disk.source)


def _source_checks(what: str, source: BlockSource) -> Iterator[tuple[bool, str]]:
    yield 1 <= len(source.layers) <= MAX_LAYERS, f"{what} has {len(source.layers)} layers"
    yield (
        source.size > 0 and source.size % SECTOR == 0,
        f"{what}: size {source.size} is no positive multiple of {SECTOR}",
    )
    yield (
        all(layer.format is LayerFormat.QCOW2 for layer in source.layers[:-1]),
        f"{what}: only the base of a chain can be raw",
    )
    yield (
        source.key is None or (_KEY.fullmatch(source.key) is not None and source.layers[0].format is LayerFormat.QCOW2),
        f"{what}: a key is {KEY_SIZE} ASCII characters, for a qcow2 layer",
    )
    yield source.writable or not source.unlink_top, f"{what}: read-only, yet to be thrown away"


def _matches(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text) is not None


def vmm_argv(spec: MachineSpec, fds: Descriptors, accelerator: Accelerator, qemu: PurePosixPath) -> tuple[str, ...]:
    """Return the command line; ``spec`` has passed :func:`check_spec`.

    :param qemu: path of the QEMU binary as seen inside the sandbox.
    """
    return (
        str(qemu),
        *_machine(spec, accelerator),
        *_memory(spec, fds),
        *_boot(spec, fds),
        *_monitor(fds),
        *_platform_devices(),
        *_channels(spec.channels, fds.channels),
        *_disks(spec.disks, fds.disks),
        *nic_options(spec.nic, fds.nic),
        *_link_ports(spec.links),
        *_host_devices(spec.devices),
        *(_display() if spec.has_display else ()),
        *(_cd(spec.cd, fds.cd) if spec.cd is not None and fds.cd is not None else ()),
    )


def _machine(spec: MachineSpec, accelerator: Accelerator) -> Iterator[str]:
    yield from ("-name", f"guest={spec.name}")
    # The first is for those who look for this VMM; the second is what the guest sees and wins: none at all, the same in
    # a seed and its forks. Linux takes zeros for "not set", so nothing in the guest is derived from it.
    yield from ("-uuid", str(spec.uuid), "-smbios", f"type=1,uuid={UUID(int=0)}")
    # Nothing that we did not ask for: no default devices, no configuration file, no display, no CD, no USB.
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none")
    # HPET, SMM, VMware port, PS/2 and SATA are code a guest could attack and has no use for.
    off = "hpet=off,smm=off,vmport=off,sata=off,usb=off,dump-guest-core=off,mem-merge=off"
    keyboard = "on" if spec.has_display else "off"
    yield from ("-machine", f"q35,memory-backend=ram,i8042={keyboard},{off}")
    yield from accelerator.arguments()
    yield from ("-smp", str(spec.vcpus))
    yield from ("-rtc", "base=utc,clock=host")
    # The guest stays stopped until it is told to run. When it ends, the VMM waits, stopped, until somebody has read
    # how it ended: a clean shutdown is not lost when no daemon is there to see it.
    yield from ("-S", "-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=none")
    yield from ("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1")
    # QEMU's own seccomp filter, inside the sandbox.
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def _memory(spec: MachineSpec, fds: Descriptors) -> Iterator[str]:
    size = spec.memory_mib << 20
    yield from ("-m", f"{spec.memory_mib}M")
    if fds.memory is None:
        # Anonymous private memory: it has no name anywhere, and free pages go back to the host (free-page-reporting).
        yield from json_option("-object", {"qom-type": "memory-backend-ram", "id": "ram", "size": size})
        return
    # A fork maps the seed's memory privately: what it writes is copied first, what it leaves alone is shared by all.
    file = {"qom-type": "memory-backend-file", "id": "ram", "size": size, "mem-path": f"/proc/self/fd/{fds.memory}"}
    yield from json_option("-object", {**file, "share": fds.state is None})
    if fds.state is not None:
        # Told which state to read through the monitor, once it knows that the stream has no memory in it.
        yield from ("-incoming", "defer")


def _boot(spec: MachineSpec, fds: Descriptors) -> Iterator[str]:
    if fds.kernel is None or fds.initrd is None:
        return
    # QEMU reads these two by path only. The link in /proc leads to the inherited descriptor, so no folder of the
    # host has to be reachable.
    yield from ("-kernel", f"/proc/self/fd/{fds.kernel}")
    yield from ("-initrd", f"/proc/self/fd/{fds.initrd}")
    yield from ("-append", spec.cmdline)


def _monitor(fds: Descriptors) -> Iterator[str]:
    yield from _listening_chardev(QMP_CHARDEV, fds.qmp)
    yield from ("-mon", f"chardev={QMP_CHARDEV},mode=control")
    yield from _listening_chardev(CONSOLE_CHARDEV, fds.console)
    yield from ("-serial", f"chardev:{CONSOLE_CHARDEV}")


def _listening_chardev(name: str, fd: int) -> Iterator[str]:
    yield from ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off")


def _platform_devices() -> Iterator[str]:
    yield from json_option("-device", {"driver": "vmgenid", "id": "vmgenid", "guid": "auto"})
    yield from json_option("-object", {"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"})
    yield from _pci("virtio-rng-pci", _SLOT_RNG, {"id": "rng", "rng": "entropy"})
    yield from _pci(
        "virtio-balloon-pci", _SLOT_BALLOON, {"id": BALLOON_ID, "deflate-on-oom": True, "free-page-reporting": True}
    )
    yield from json_option(
        "-device", {"driver": "pvpanic-pci", "id": "panic", "bus": "pcie.0", "addr": f"{_SLOT_PANIC:#x}"}
    )
    for port in range(HOTPLUG_PORTS):
        # Twice as much: firmware puts it anywhere, and such memory lies at a multiple of its own size.
        room = sum(2 * kind.size for kind in (FRAMES, BULK_MEMORY) if kind.port == port)
        yield from _root_port(ROOT_PORT_BUS.format(port), _SLOT_PORTS, port, chassis=port + 1, room=room)


def _root_port(name: str, slot: int, function: int, *, chassis: int, room: int = 0) -> Iterator[str]:
    """:param room: bytes of memory that a device on it will show, if that is more than registers."""
    yield from json_option(
        "-device",
        {
            "driver": "pcie-root-port",
            "id": name,
            "bus": "pcie.0",
            "addr": f"{slot:#x}.{function:#x}",
            "multifunction": function == 0,
            "chassis": chassis,
            "slot": chassis,
            # No hot-plugged device of ours has I/O ports, and there is room for few such windows only.
            "io-reserve": 0,
            **({"pref64-reserve": room} if room else {}),
        },
    )


def nic_options(nic: Nic | None, fd: int) -> Iterator[str]:
    """A network end that waits for somebody to connect to its listening socket, and for the next one after that; and
    the interface on it, which a machine without network has not: QEMU 7.2 cannot be given such an end later."""
    address = {"type": "fd", "str": str(fd)}
    yield from json_option("-netdev", {"type": "stream", "id": NIC_NETDEV, "server": True, "addr": address})
    if nic is not None:
        yield from json_option("-device", interface(NIC_DEVICE, NIC_NETDEV, NIC_BUS, nic.mac))


def interface(name: str, netdev: str, bus: str, mac: str) -> dict[str, object]:
    """A network interface, whether there from the start or plugged later."""
    # No option ROM: nothing is booted from a network. A fork's guest is not asked to tell the network where it is now;
    # and QEMU 7.2, told so at the restore only, ends when that guest resets the interface (``timer_del(NULL)``).
    device = {"id": name, "bus": bus, "netdev": netdev, "mac": mac, "romfile": "", "guest_announce": False}
    return {"driver": "virtio-net-pci", "disable-legacy": "on", **device}


def memory_file(kind: PluggedMemory, fd: int) -> dict[str, object]:
    """The memory of :func:`memory_device`, an open file of the VMM's."""
    file = {"id": kind.memory, "size": kind.size, "mem-path": f"/proc/self/fd/{fd}"}
    # A dump of the VMM has no pictures in it; they are not looked through for pages that are equal to another's.
    return {"qom-type": "memory-backend-file", **file, "share": True, "dump": False, "merge": False}


def memory_device(kind: PluggedMemory) -> dict[str, object]:
    """What the guest sees of its memory: a PCI device whose only registers nobody uses, and the memory."""
    return {"driver": "ivshmem-plain", "id": kind.device, "bus": ROOT_PORT_BUS.format(kind.port), "memdev": kind.memory}


def _link_ports(links: int) -> Iterator[str]:
    for port in range(links):
        slot, function = _SLOT_LINKS + port // _FUNCTIONS, port % _FUNCTIONS
        yield from _root_port(LINK_PORT_BUS.format(port), slot, function, chassis=HOTPLUG_PORTS + port + 1)


def _host_devices(devices: Sequence[PciAddress]) -> Iterator[str]:
    for index, address in enumerate(devices):
        bus = DEVICE_PORT_BUS.format(index)
        yield from _root_port(bus, _SLOT_DEVICES, index, chassis=HOTPLUG_PORTS + MAX_LINKS + index + 1)
        # Its option ROM is a program of whoever had the device before.
        device = {"driver": "vfio-pci", "id": f"device{index}", "host": str(address), "bus": bus, "rombar": 0}
        yield from json_option("-device", device)


def _display() -> Iterator[str]:
    """What a PC has, for systems that know nothing else: a VGA card, and a tablet: its pointer is where the user's is.

    The screen listens nowhere: a connection is handed over by the monitor (``add_client``).
    """
    yield from json_option("-device", {"driver": "VGA", "id": "vga", "bus": "pcie.0", "addr": f"{_SLOT_VGA:#x}"})
    yield from json_option("-device", {"driver": "qemu-xhci", "id": "usb", "bus": "pcie.0", "addr": f"{_SLOT_USB:#x}"})
    yield from json_option("-device", {"driver": "usb-tablet", "id": "tablet", "bus": "usb.0"})
    yield from ("-vnc", "none")


def _cd(source: BlockSource, fds: DiskDescriptors) -> Iterator[str]:
    """A drive that every system knows, on a controller that only machines with a CD have; booted from before disks."""
    yield from chain_options(CD_NODE, source, fds)
    yield from json_option("-device", {"driver": "ich9-ahci", "id": "ahci", "bus": "pcie.0", "addr": f"{_SLOT_CD:#x}"})
    yield from json_option(
        "-device", {"driver": "ide-cd", "id": "cd", "bus": "ahci.0", "drive": CD_NODE, "bootindex": 0}
    )


def _channels(names: Sequence[str], fds: Sequence[int]) -> Iterator[str]:
    yield from _pci("virtio-serial-pci", _SLOT_SERIAL, {"id": "serial", "max_ports": MAX_CHANNELS + 1})
    for index, (name, fd) in enumerate(zip(names, fds, strict=True)):
        yield from _listening_chardev(channel_chardev(index), fd)
        yield from json_option(
            "-device",
            {
                "driver": "virtserialport",
                "id": f"port{index}",
                "bus": "serial.0",
                "nr": index + 1,
                "chardev": channel_chardev(index),
                "name": name,
            },
        )


def _disks(disks: Sequence[Disk], fds: Sequence[DiskDescriptors]) -> Iterator[str]:
    for index, (disk, disk_fds) in enumerate(zip(disks, fds, strict=True)):
        yield from chain_options(disk_node(index), disk.source, disk_fds)
        yield from _pci(
            "virtio-blk-pci",
            _SLOT_FIRST_DISK + index,
            {"id": disk_device(index), "drive": disk_node(index), "serial": disk.name, "write-cache": "on"},
        )


def _pci(driver: str, slot: int, properties: Mapping[str, object]) -> Iterator[str]:
    """A virtio device without the legacy interface, on the root bus."""
    device = {"driver": driver, "bus": "pcie.0", "addr": f"{slot:#x}", "disable-legacy": "on", **properties}
    yield from json_option("-device", device)
