"""A guest of a few megabytes for tests: Debian's cloud kernel and an initramfs of static busybox and one script.

The kernel is Debian's package, downloaded and unpacked into a cache folder, never installed. The initramfs is made
here. What the guest does is chosen by a word on its kernel command line (:class:`Behaviour`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

CACHE = Path("~/.cache/insula-tests").expanduser()
TOOL_LIMIT_S = 300
"""Longest time for one apt or dpkg call."""

READY_LINE = b"tiny-guest ready"
"""Printed to the console once the guest's script runs, before it does what it was told."""

_BUSYBOX = Path("/usr/bin/busybox")
CLOUD_KERNEL = "linux-image-cloud-amd64"
GENERIC_KERNEL = "linux-image-amd64"
"""What templates have: larger, and with a driver for the generation id that tells a fork it is one."""
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_balloon",
    "pvpanic",
    "pvpanic-pci",
    "failover",
    "net_failover",
    "virtio_net",
)
"""In the order of their dependencies."""

_SCRIPT = b"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
mdev -s
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = insula.rpc ] && rpc=/dev/${port##*/}
done
echo "cmdline $(cat /proc/cmdline)"
echo tiny-guest ready
for word in $(cat /proc/cmdline); do
    case $word in
        tiny.do=echo) cat 0<>$rpc 1>&0 & ;;
        # Reading ends at once while nobody is connected. Closing would throw away what has come already.
        tiny.do=shell) exec 3<>$rpc; while :; do sh <&3 >&3 2>&1; sleep 0.02; done & ;;
        tiny.do=poweroff) poweroff -f ;;
        tiny.do=reboot) reboot -f ;;
        tiny.do=panic) echo c >/proc/sysrq-trigger ;;
        tiny.do=flood) cat /dev/urandom ;;
        tiny.do=disks) for disk in /sys/block/vd*; do
            echo "disk ${disk##*/} $(cat $disk/serial) $(cat $disk/size) $(cat $disk/ro)"
        done ;;
        tiny.do=write) dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\\000' W >/dev/vda && sync && echo written ;;
    esac
done
while :; do sleep 1000; done
"""


class Behaviour(StrEnum):
    """Words for the guest's kernel command line."""

    IDLE = "tiny.do=idle"
    ECHO = "tiny.do=echo"
    """Send back what comes over the channel ``insula.rpc``."""
    SHELL = "tiny.do=shell"
    """Run what comes over the channel ``insula.rpc`` as a script and send back its output, connection by connection."""
    POWER_OFF = "tiny.do=poweroff"
    REBOOT = "tiny.do=reboot"
    PANIC = "tiny.do=panic"
    FLOOD = "tiny.do=flood"
    """Write random bytes to the console for ever."""
    LIST_DISKS = "tiny.do=disks"
    """Print ``disk NODE SERIAL SECTORS READ-ONLY`` for each disk."""
    WRITE_DISK = "tiny.do=write"
    """Fill the first MiB of the first disk with ``W`` and print ``written``."""

    @property
    def cmdline(self) -> str:
        # As templates: the random numbers are good from the start, so that a fork tells when it makes them anew.
        return f"console=ttyS0 quiet tsc=reliable panic=0 random.trust_cpu=on {self.value}"


@dataclass(frozen=True)
class TinyGuest:
    kernel: Path
    initrd: Path


def build(cache: Path = CACHE, kernel_package: str = CLOUD_KERNEL, more_modules: Sequence[str] = ()) -> TinyGuest:
    """Return the guest, made on first use. Needs apt (once) and Debian's ``busybox-static``.

    :param more_modules: to be loaded too, in the order of their dependencies.
    """
    root = kernel_root(cache, kernel_package)
    kernel = next(iter(sorted(root.glob("boot/vmlinuz-*"))))
    wanted = (*_MODULES, *more_modules)
    modules = module_files(root, wanted)
    if not _is_static(_BUSYBOX):
        raise RuntimeError(f"{_BUSYBOX} must be Debian's busybox-static: apt-get install busybox-static")
    # Anew each time: it takes milliseconds and so never is older than this file.
    initrd = cache / ("-".join(["tiny", root.name, *more_modules]) + ".cpio")
    partial = initrd.with_suffix(f".partial-{os.getpid()}")
    partial.write_bytes(archive(_members(modules)))
    partial.replace(initrd)
    return TinyGuest(kernel, initrd)


def module_files(root: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """Name → file of those kernel modules that an unpacked kernel package has, in the order they are wanted."""
    found = {path.stem.replace("-", "_"): path for path in root.glob("lib/modules/*/kernel/**/*.ko")}
    names = {name: name.replace("-", "_") for name in wanted}
    return {name: found[stem] for name, stem in names.items() if stem in found}


def kernel_root(cache: Path, kernel_package: str) -> Path:
    """Folder with what is in the newest package of that kernel, downloaded on first use."""
    package = _newest_kernel_package(kernel_package)
    root = cache / package
    if root.is_dir():
        return root
    partial = cache / f"{package}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _run(["apt-get", "download", package], partial)
    (deb,) = partial.glob("*.deb")
    _run(["dpkg-deb", "-x", deb.name, "root"], partial)
    (partial / "root").replace(root)
    shutil.rmtree(partial)
    return root


def _newest_kernel_package(meta_package: str) -> str:
    """The package that one of Debian's meta packages stands for, e.g. ``linux-image-6.1.0-56-cloud-amd64``."""
    for line in _run(["apt-cache", "depends", meta_package], Path("/")).splitlines():
        if match := re.fullmatch(r"\s*Depends: (linux-image-\S+)", line):
            return match[1]
    raise RuntimeError(f"apt knows no {meta_package}: apt-get update")


def _run(command: list[str], cwd: Path) -> str:
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, encoding="utf-8", timeout=TOOL_LIMIT_S
    ).stdout


def _is_static(program: Path) -> bool:
    """Whether an ELF program runs without a dynamic loader (names none)."""
    return program.exists() and b"ld-linux" not in program.read_bytes()[:4096]


@dataclass(frozen=True)
class Member:
    """Of an initramfs."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _members(modules: dict[str, Path]) -> Iterable[Member]:
    yield Member("bin", 0o040755)
    yield Member("dev", 0o040755)
    # The kernel opens its console before any script runs.
    yield Member("dev/console", 0o020600, device=(5, 1))
    yield Member("modules", 0o040755)
    yield Member("bin/busybox", 0o100755, _BUSYBOX.read_bytes())
    yield Member("init", 0o100755, _SCRIPT)
    yield from module_members(modules)


def module_members(modules: Mapping[str, Path]) -> Iterable[Member]:
    """Files in ``modules``, and the order to load them in."""
    yield Member("modules/order", 0o100644, " ".join(modules).encode())
    for name, path in modules.items():
        yield Member(f"modules/{name}.ko", 0o100644, path.read_bytes())


def archive(members: Iterable[Member]) -> bytes:
    """An archive in "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts = [_entry(number, member) for number, member in enumerate(members, start=1)]
    return b"".join([*parts, _entry(0, Member("TRAILER!!!", 0))])


def _entry(inode: int, member: Member) -> bytes:
    name = member.name.encode() + b"\0"
    numbers = (inode, member.mode, 0, 0, 1, 0, len(member.data), 0, 0, *member.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return _padded(header) + _padded(member.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
