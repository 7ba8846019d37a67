"""Our own initial RAM disk: loads a handful of modules, mounts the disk named ``root``, starts the system.

A distribution's initramfs must find any root on any machine; ours knows the machine, so it has no udev, no scripts and
no waiting. Under software emulation every process started costs 10 to 20 ms, hence one static busybox, one modprobe and
a short ``/init``.
The archive is the kernel's "newc" cpio, uncompressed, written here so that equal inputs give equal bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.templates.kernel import load_order, module_name, parse_modules_dep

ROOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_console", "pvpanic_pci")
"""What it takes to mount the root disk (ext4 looks its checksum up at mount time, so no index names it); the agent's
port: loaded here, the agent need not wait for udev; and what tells the host of a panic, which must not look like a
shutdown."""

ROOT_SERIAL = "root"
"""Serial of the root disk; disks are told apart by serial, never by order."""

_INIT = """\
#!/bin/busybox sh
# Own short way from the kernel to the system; see the module docstring of insula.templates.initramfs.
B=/bin/busybox
$B mount -t devtmpfs devtmpfs /dev
$B mount -t sysfs sysfs /sys
$B modprobe -a {modules} || echo "insula: not all modules were loaded"
# The disks are there when the driver's registration returns, except on a slow bus: then look again.
tries=0
while :; do
    for disk in /sys/block/vd*; do
        serial=
        read -r serial < $disk/serial
        if [ "$serial" = {serial} ]; then
            break 2
        fi
    done
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "insula: no disk with serial '{serial}'"
        exec $B poweroff -f
    fi
    $B sleep 0.1
done
if ! $B mount -t ext4 -o {options} /dev/${{disk##*/}} /root; then
    echo "insula: the root disk cannot be mounted"
    exec $B poweroff -f
fi
$B mount --move /dev /root/dev
$B mount --move /sys /root/sys
exec $B switch_root /root /sbin/init
"""

MOUNT_OPTIONS = "rw,noatime"
"""No access times: they turn reads of a shared template into writes of each qube's overlay."""


@dataclass(frozen=True)
class Entry:
    """One member of the archive."""

    path: str
    mode: int
    """File type and permissions, as in ``st_mode``."""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def write_newc(entries: Iterable[Entry]) -> bytes:
    """A newc archive: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html. Owner root, time 0."""
    archive = bytearray()
    number = 0
    for number, entry in enumerate(entries, 1):
        _append(archive, number, entry)
    _append(archive, number + 1, Entry("TRAILER!!!", 0))
    return bytes(archive)


def _append(archive: bytearray, number: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive += bytes(-len(archive) % 4) + entry.data
    archive += bytes(-len(archive) % 4)


def init_script(modules: Sequence[str]) -> str:
    """Text of ``/init`` that loads the named modules in this order."""
    return _INIT.format(modules=" ".join(modules), serial=ROOT_SERIAL, options=MOUNT_OPTIONS)


@dataclass(frozen=True)
class Module:
    name: str
    needs: tuple[str, ...]
    """Names of the modules to be loaded before."""
    content: bytes


def plan_initramfs(busybox: bytes, kernel_version: str, modules: Sequence[Module]) -> list[Entry]:
    """Members of the archive for a static busybox and the modules of a kernel."""
    folder, program, plain = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    place = f"lib/modules/{kernel_version}"
    # Where and in the form modprobe looks: one line a module, what it needs behind the colon.
    index = "".join(f"{m.name}.ko:{''.join(f' {need}.ko' for need in m.needs)}\n" for m in modules)
    return [
        *(Entry(name, folder) for name in ("bin", "dev", "sys", "root", "lib", "lib/modules", place)),
        # The kernel opens /dev/console for /init before devtmpfs is mounted.
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", program, busybox),
        *(Entry(f"{place}/{module.name}.ko", plain, module.content) for module in modules),
        Entry(f"{place}/modules.dep", plain, index.encode()),
        Entry("init", program, init_script(ROOT_MODULES).encode()),
    ]


def build_initramfs(busybox: Path, modules: Path) -> bytes:
    """The archive for a system's ``usr/lib/modules/VERSION`` folder. :raise BuildFailed: a module is missing."""
    index = parse_modules_dep((modules / "modules.dep").read_text(encoding="utf-8"))
    found = [
        Module(module_name(path), tuple(map(module_name, index[path])), (modules / path).read_bytes())
        for path in load_order(index, ROOT_MODULES)
    ]
    return write_newc(plan_initramfs(busybox.read_bytes(), modules.name, found))
