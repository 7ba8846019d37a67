"""An untrimmed Debian to compare with: bootstrapped with its defaults, with its own kernel, initramfs and services.

Built once, without root, from the mirrors and keys this machine's apt uses; kept where the test's templates are. Shared
by scripts.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from guest_boot import accelerator_options, guest
from insula.templates import namespace
from insula.templates.apt_sources import KEYRING, machine_mirrors, machine_proxies
from insula.testing.guest import cache_folder

CODENAME = "bookworm"
SIZE = 4 << 30
MEMORY_MIB = 1024
"""What such a system is usually given; with 400 MiB its own initramfs hardly fits."""
LOGIN = b"login:"
"""Printed when the system is up."""
TIMEOUT_S = 300.0

_MAKE = """
set -e
mkdir tree
tar --extract --numeric-owner --file system.tar --directory tree --exclude ./dev/*
cp tree/boot/vmlinuz-* kernel
cp tree/boot/initrd.img-* initrd
echo debian > tree/etc/hostname
printf '/dev/vda / ext4 defaults 0 1\\n' > tree/etc/fstab
mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 -d tree root.raw
chmod 644 kernel initrd root.raw
rm -rf tree system.tar
"""


@dataclass(frozen=True)
class Untrimmed:
    kernel: Path
    initrd: Path
    root: Path


async def untrimmed() -> Untrimmed:
    """The system, built if it is not there yet: two minutes."""
    folder = cache_folder() / f"untrimmed-{CODENAME}"
    system = Untrimmed(folder / "kernel", folder / "initrd", folder / "root.raw")
    if not (folder / "complete").exists():
        await _build(folder)
    return system


async def _build(folder: Path) -> None:
    print("building an untrimmed Debian", file=sys.stderr, flush=True)
    ids = namespace.own_id_map()
    if folder.exists():
        await namespace.run(["sh", "-c", "rm -rf -- * .??*"], work_dir=folder, ids=ids)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    namespace.hand_over(folder, ids)
    mirror = machine_mirrors().archive
    proxies = [word for option in machine_proxies() for word in ("--aptopt", option)]
    await namespace.run(
        [
            "mmdebstrap", "--mode=unshare", "--variant=important", "--format=tar", "--architectures=amd64",
            "--include=linux-image-amd64,systemd-sysv", *proxies, CODENAME, str(namespace.INSIDE / "system.tar"),
            f"deb [signed-by={KEYRING}] {mirror} {CODENAME} main",
        ],
        work_dir=folder,
        ids=ids,
    )  # fmt: skip
    root = folder / "root.raw"
    with root.open("xb") as file:
        file.truncate(SIZE)
    namespace.hand_over(root, ids)
    await namespace.run(["sh", "-c", _MAKE], work_dir=folder, ids=ids)
    (folder / "complete").touch()


def command(system: Untrimmed, accelerator: list[str]) -> list[str]:
    """QEMU's, with the devices a virtual machine usually has; what is written is thrown away."""
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *accelerator,
        "-machine", "q35", "-smp", "2", "-m", str(MEMORY_MIB), "-no-reboot", "-snapshot",
        "-kernel", str(system.kernel), "-initrd", str(system.initrd), "-append", "root=/dev/vda console=ttyS0",
        "-drive", f"if=virtio,file={system.root},format=raw", "-device", "virtio-rng-pci", "-serial", "stdio",
    ]  # fmt: skip


def login_seconds(argv: list[str]) -> float:
    """From QEMU's start until the system asks who is there. :raise RuntimeError: it does not."""
    begin = time.perf_counter()
    seen = b""
    with guest(argv) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        while LOGIN not in seen:
            left = TIMEOUT_S - (time.perf_counter() - begin)
            readable, _, _ = select.select([output], [], [], max(left, 0))
            data = os.read(output, 65536) if readable else b""
            if not data:
                raise RuntimeError(f"no login after {TIMEOUT_S:.0f} s: {seen[-500:]!r}")
            seen += data
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(login_seconds(command(asyncio.run(untrimmed()), accelerator_options())))
