"""A whole PC in emulation, for what this machine lacks: with an IOMMU and a network card, it runs our code as its own.

Its root is this machine's own, read-only (9p) with a layer in memory above it, so nothing has to be built or copied and
nothing that happens in there is left. The kernel is the one of Debian's generic package. A command given to
:func:`run` is all that runs in it; what it prints comes back.

Inside, root is root, and virtual machines are emulated within the emulation: everything there takes ten times as long.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from insula.testing.tiny_guest import CACHE, GENERIC_KERNEL, Member, archive, kernel_root, module_files, module_members

CARD = "0000:01:00.0"
"""Address of the network card."""
CARD_MODULES = ("pps_core", "ptp", "e1000e")
"""Its driver, in the order of the dependencies."""
GATEWAY = "10.0.2.2"
"""In the card's network: this machine's loopback (QEMU's user-mode network)."""
MEMORY_MIB = 1536
END = "emulated pc: exit code "

_BUSYBOX = Path("/usr/bin/busybox")
_MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "overlay"),
    *("irqbypass", "vfio_virqfd", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", *CARD_MODULES),
)
"""In the order of their dependencies; those that a kernel has built in are left out."""

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
mount -t tmpfs tmpfs /above
mkdir /above/upper /above/work
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /below
mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work overlay /root
for folder in proc sys dev; do mount --move /$folder /root/$folder; done
for folder in tmp run; do mount -t tmpfs tmpfs /root/$folder; done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t devpts devpts /root/dev/pts
cp /command /root/run/command
exec switch_root /root /bin/sh /run/command
"""
_COMMAND = """cd {folder}
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin {variables}
{command}
echo "{end}$?"
# What was printed goes out before it does anything; the kernel's own words do not wait for it.
stty -echo
echo o >/proc/sysrq-trigger
sleep 60
"""


class EmulatedPcFailed(Exception):
    """It did not run the command to its end; the message has what was printed."""


def run(
    command: Sequence[str], *, limit_s: float, with_iommu: bool = True, variables: dict[str, str] | None = None
) -> tuple[int, str]:
    """Boot the PC and run ``command`` in this process's current folder; its exit code and all that was printed.

    :raise EmulatedPcFailed: it was not done within ``limit_s`` seconds.
    """
    root = kernel_root(CACHE, GENERIC_KERNEL)
    (kernel,) = root.glob("boot/vmlinuz-*")
    with TemporaryDirectory(prefix="insula-pc-") as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(archive(_members(root, command, variables or {})))
        argv = _argv(kernel, initrd, with_iommu=with_iommu)
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=limit_s, cwd=folder
            )
        except subprocess.TimeoutExpired as error:
            printed = (error.stdout or b"").decode(errors="replace")
            raise EmulatedPcFailed(f"not done after {limit_s} s:\n{printed}") from error
    printed = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    before, end, code = printed.rpartition(END)
    if not end:
        raise EmulatedPcFailed(f"ended early:\n{printed}\n{done.stderr.decode(errors='replace')}")
    return int(code.split()[0]), before


def _members(root: Path, command: Sequence[str], variables: dict[str, str]) -> list[Member]:
    script = _COMMAND.format(
        folder=shlex.quote(str(Path.cwd())),
        variables=" ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
        command=shlex.join(command),
        end=END,
    )
    folders = ("bin", "dev", "proc", "sys", "above", "below", "root", "modules")
    return [
        *(Member(name, 0o040755) for name in folders),
        # The kernel opens its console before any script runs.
        Member("dev/console", 0o020600, device=(5, 1)),
        Member("bin/busybox", 0o100755, _BUSYBOX.read_bytes()),
        Member("init", 0o100755, _INIT.encode()),
        Member("command", 0o100755, script.encode()),
        *module_members(module_files(root, _MODULES)),
    ]


def _argv(kernel: Path, initrd: Path, *, with_iommu: bool) -> list[str]:
    # (Interrupts can be remapped only with "caching-mode", which VFIO needs of an emulated IOMMU.)
    iommu = ["-device", "intel-iommu,intremap=on,caching-mode=on"] if with_iommu else []
    cmdline = "console=ttyS0 quiet loglevel=3 intel_iommu=on iommu.passthrough=0 panic=-1 random.trust_cpu=on"
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Westmere-v1,rdrand=on"),
        *("-smp", str(min(2, os.cpu_count() or 1)), "-m", str(MEMORY_MIB), "-serial", "stdio", *iommu),
        *(
            "-kernel",
            str(kernel),
            "-initrd",
            str(initrd),
            "-append",
            f"{cmdline} mitigations=off tsc=reliable no_timer_check",
        ),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-device", "virtio-rng-pci"),
        *("-device", "pcie-root-port,id=card-port,chassis=1"),
        *("-netdev", "user,id=net", "-device", "e1000e,netdev=net,bus=card-port,romfile="),
    ]
