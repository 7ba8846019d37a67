"""A disk that somebody else made becomes a template that real qubes start from, with the network that the host gives.

The disk is of the published layout of Whonix' workstation: a GPT with an EFI and a root partition, ext4, its own kernel
in ``/boot``, a network set up by ifupdown with addresses of its own. The system on it is Debian's, from which what
makes it a qube was taken.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, sh
from insula.testing.net_world import discard

LIMIT_S = 300.0
MIB = 1 << 20
ROOT_AT = 2 * MIB
SECTOR = 512
AGENT_FILES = ("/usr/lib/systemd/system/insula-agent.service", "/usr/lib/insula/insula_agent/main.py")
LEFT_OUT = tuple(
    f"kernel/{part}/"
    for part in (
        "drivers/net/ethernet",
        "drivers/net/wireless",
        "drivers/scsi",
        "drivers/usb",
        "drivers/media",
        "sound",
    )
)
NETWORK = "/etc/network/interfaces"
STATIC = """\
auto lo eth0
iface lo inet loopback
iface eth0 inet static
    address 10.152.152.11
    netmask 255.255.192.0
    gateway 10.152.152.10
"""
ECHO = """
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
echo.settimeout(30)
echo.sendto(bytes.fromhex("0800f7ff00000000"), ("{}", 0))
print(echo.recv(99)[20])
"""
"""Asks a net qube whether it is there; 0 is its answer."""
NAMES = TEMPLATE, NET, QUBE = "test-imported", "test-import-net", "test-of-imported"


def debugfs(disk: Path, *options: str) -> str:
    command = ["debugfs", *options, f"{disk}?offset={ROOT_AT}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S, text=True).stdout


def drivers_left_out(disk: Path) -> list[str]:
    """Drivers of devices that no qube has: a third of the system, which tells nothing here and takes its time."""
    modules = "/usr/lib/modules"
    (version,) = (
        name for name in debugfs(disk, "-R", f"ls -p {modules}").split("/") if name[:1].isdigit() and "-" in name
    )
    listed = debugfs(disk, "-R", f"cat {modules}/{version}/modules.dep").splitlines()
    names = [line.partition(":")[0] for line in listed]
    return [f"{modules}/{version}/{name}" for name in names if name.startswith(LEFT_OUT)]


def write_table(disk: Path, size: int) -> None:
    """A GPT with an EFI partition and the root behind it."""
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 0, b"", 2, 128, 128, 0)
    entries = b""
    for kind, first, last in (
        ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", MIB, ROOT_AT),
        ("0fc63daf-8483-4772-8e79-3d69d8477de4", ROOT_AT, size),
    ):
        entries += struct.pack(
            "<16s16sQQQ72s", uuid.UUID(kind).bytes_le, b"", first // SECTOR, last // SECTOR - 1, 0, b""
        )
    protective = struct.pack("<B3sB3sII", 0, b"", 0xEE, b"", 1, size // SECTOR - 1).ljust(64, b"\0")
    with disk.open("r+b") as file:
        file.write(bytes(446) + protective + b"\x55\xaa" + header.ljust(SECTOR, b"\0") + entries)


def copy_with_holes(source: Path, target: Path, at: int) -> None:
    """Copy what is in a sparse file into another from byte ``at`` on."""
    size = source.stat().st_size
    with source.open("rb") as read, target.open("r+b") as written:
        position = 0
        while True:
            try:
                position = os.lseek(read.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(read.fileno(), position, os.SEEK_HOLE)
            while position < end:
                count = os.copy_file_range(
                    read.fileno(), written.fileno(), min(end - position, 64 * MIB), position, at + position
                )
                assert count
                position += count
        assert position <= size


def make_disk(root: Path, folder: Path) -> Path:
    disk, image, network = folder / "raw", folder / "Whonix-Workstation.qcow2", folder / "interfaces"
    size = root.stat().st_size + ROOT_AT
    with disk.open("wb") as file:
        file.truncate(size)
    copy_with_holes(root, disk, ROOT_AT)
    write_table(disk, size)
    network.write_text(STATIC, encoding="ascii")
    requests = [f"rm {path}" for path in (*AGENT_FILES, *drivers_left_out(disk))]
    requests += ["mkdir /etc/network", f"write {network} {NETWORK}"]
    commands = folder / "commands"
    commands.write_text("".join(f"{request}\n" for request in requests), encoding="ascii")
    debugfs(disk, "-w", "-f", str(commands))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(image)]
    subprocess.run(convert, check=True, capture_output=True, timeout=LIMIT_S)
    disk.unlink()
    return image


async def import_disk(daemon: DaemonProcess, folder: Path) -> None:
    built = await build_template()
    disk = await asyncio.to_thread(make_disk, built.root_image, folder)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), "template", "import", str(disk), TEMPLATE,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=daemon.environment,
    )  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    disk.unlink()
    assert process.returncode == 0, output.decode()


async def make_qube(daemon: DaemonProcess, folder: Path) -> None:
    """Import the disk, and start a qube from it behind a net qube of the ordinary template."""
    await create_app_qube(daemon.client, NET)
    await daemon.client.set_property("provides_network", "True", NET)
    await daemon.client.set_property("netvm", "", NET)
    await asyncio.gather(import_disk(daemon, folder), daemon.client.start(NET))
    await daemon.client.create_qube("AppVM", QUBE, "red", template=TEMPLATE)
    await daemon.client.set_property("netvm", NET, QUBE)
    # A seed would be one more start.
    await daemon.client.set_property("start_mode", "cold", QUBE)
    await daemon.client.start(QUBE)


@pytest.fixture(scope="module")
def imported(daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    try:
        asyncio.run(make_qube(daemon, tmp_path_factory.mktemp("import")))
        yield daemon
    finally:
        asyncio.run(discard(daemon, QUBE, NET, TEMPLATE))
        # What a next import of that name would go on from: as large as the system.
        shutil.rmtree(daemon.paths.templates / TEMPLATE, ignore_errors=True)


async def test_qube_starts_from_an_imported_disk_as_itself(imported: DaemonProcess) -> None:
    assert await imported.client.get_feature(TEMPLATE, "os-distribution") == "debian"
    assert await sh(imported, QUBE, "hostname") == QUBE
    # What it takes to be a person's system: root by sudo (set-uid), a home that is the qube's own.
    assert await sh(imported, QUBE, "sudo id -u; pwd; findmnt -no SOURCE /rw") == "0\n/home/user\n/dev/vdb"


async def test_network_of_an_imported_disk_is_the_one_the_host_gives(imported: DaemonProcess) -> None:
    address = (await imported.client.get_property("ip", QUBE)).value
    gateway = (await imported.client.get_property("ip", NET)).value
    assert (await sh(imported, QUBE, "hostname -I")).split() == [address]
    assert f"via {gateway} dev eth0" in await sh(imported, QUBE, "/sbin/ip route show default")
    assert "10.152.152" not in await sh(imported, QUBE, "/sbin/ip route; cat /etc/resolv.conf")
    assert "nameserver 10.139.1.1" in await sh(imported, QUBE, "cat /etc/resolv.conf")
    # What its makers set up is there still, and does nothing.
    assert "10.152.152.11" in await sh(imported, QUBE, f"cat {NETWORK}")
    assert (await sh(imported, QUBE, f"python3 -c '{ECHO.format(gateway)}'", user="root")) == "0"
