"""A disk image that somebody else made becomes a template: as a distribution whose packages are there already.

The system on the disk is taken file by file and built into a root of our own form, with our agent, by the steps of all
templates (``build.py``). Everything that reads the image is shut in, and nothing on it is ever run here:

* ``qemu-img`` reads the image's tables in the sandbox of :mod:`insula.storage.qemu_img`, after the header was found to
  name no other file (:mod:`insula.templates.foreign_disk`);
* ``debugfs`` and what comes after it see, of this machine, ``/usr`` and the one folder they work on; no network.

Whether the image is the one its makers published is for a signature to say, before.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from insula.storage import qemu_img
from insula.storage.pool import StorageError
from insula.templates import foreign_tree, namespace
from insula.templates.distribution import APPLICATIONS, OsInfo, Progress, Workroom
from insula.templates.distributions.debian import DEFAULT_USER, DEFAULT_USER_ID
from insula.templates.errors import TemplateError
from insula.templates.foreign_archive import HEAD_BYTES, is_archive, unpack_disk
from insula.templates.foreign_disk import read_disk
from insula.templates.partition_table import TABLE_BYTES, find_root

OS_RELEASE = "usr/lib/os-release"
MAX_OS_RELEASE = 65536
"""Bytes that are read of it."""
MAX_WORD = 64
"""Characters of a word of it."""
_WORD_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
HASH_PIECE = 1 << 20

SHUT_IN = (
    *("bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--clearenv"),
    *("--setenv", "PATH", "/usr/sbin:/usr/bin", "--setenv", "LC_ALL", "C.UTF-8", "--ro-bind", "/usr", "/usr"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64", "--dev", "/dev", "--proc", "/proc"),
)
"""Run by the namespace's root, who keeps its capabilities over what it can see: that is this."""

MASKED_UNITS = (
    # The network of a qube is its agent's; so are the programs of roles.
    "networking.service", "NetworkManager.service", "dhcpcd.service", "whonix-firewall.service",
    "tor.service", "tor@default.service", "openvpn.service",
    # What the host gives, and what would be the template's in every qube.
    "systemd-random-seed.service", "systemd-firstboot.service",
    # Nobody sits at its console, and updates come when the host says so.
    "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer",
)  # fmt: skip

_ADAPT = """\
# $1: folder of the unpacked system, $2: our agent as a Debian package. All of it shut in with these two.
exec {shut_in} --bind "$1" /tree --ro-bind "$2" /agent.deb --chdir /tree sh -ec '
for folder in boot etc etc/systemd etc/systemd/system home usr usr/bin usr/lib usr/lib/modules; do
    if [ -L $folder ] || [ ! -d $folder ]; then
        echo "this system cannot be a template: it has no folder /$folder"
        exit 1
    fi
done
if [ ! -e usr/bin/python3 ] || [ ! -e usr/lib/systemd/systemd ]; then
    echo "this system cannot be a template: it has no python3, or no systemd"
    exit 1
fi
# What is read from here afterwards by name must be files of this system, not links to others.
find boot usr/lib/modules -type l -delete
find boot -size +{kernel_limit}M -delete
rm -rf usr/bin/busybox
cp /usr/bin/busybox usr/bin/busybox
dpkg-deb --extract /agent.deb .
# Of the agent what is run is a copy that is nowhere in this system.
dpkg-deb --extract /agent.deb /agent
rm -rf {applications}
python3 -I -S /agent/usr/lib/insula/insula_agent/desktop/menus.py --root /tree > {applications}
if ! grep -q "^{user}:" etc/passwd; then
    echo "{user}:x:{uid}:{uid}::/home/{user}:/bin/bash" >> etc/passwd
    echo "{user}:x:{uid}:" >> etc/group
    echo "{user}:!:19000:0:99999:7:::" >> etc/shadow
    mkdir -p home/{user}
    chown {uid}:{uid} home/{user}
fi
for unit in {units}; do
    ln -sfn /dev/null "etc/systemd/system/$unit"
done
ln -sfn /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
rm -f etc/machine-id etc/fstab etc/hostname etc/resolv.conf var/lib/dbus/machine-id var/lib/systemd/random-seed
: > etc/machine-id
: > etc/fstab
: > etc/resolv.conf
echo localhost > etc/hostname
rm -rf usr/local.orig
cp -a usr/local usr/local.orig
mkdir -p rw
'
"""
_KERNEL_LIMIT_MIB = 256
"""Of one file in ``/boot`` that is kept; kernels have ten."""


def parse_os_release(untrusted_text: str) -> OsInfo:
    """os-release(5), as far as it is made of the letters such words have."""
    values: dict[str, str] = {}
    for line in untrusted_text[:MAX_OS_RELEASE].splitlines():
        key, _, value = line.partition("=")
        value = value.strip().strip("\"'").lower()
        values[key.strip()] = value if len(value) <= MAX_WORD and _WORD_LETTERS.issuperset(value) else ""
    return OsInfo(values.get("ID", "") or "linux", values.get("ID_LIKE", ""), values.get("VERSION_ID", ""), "")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex. :raise OSError:"""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_PIECE):
            found.update(piece)
    return found.hexdigest()


@dataclass
class ForeignSystem:
    """A :class:`~insula.templates.distribution.Distribution` that is on a disk."""

    name: str
    source: Path
    word: str
    """Part of the disk's name in an archive."""
    digest: str
    """Of ``source``."""
    os: OsInfo = field(default_factory=lambda: OsInfo("linux", "", "", ""))
    """Known once the system was unpacked."""

    def bootstrap_inputs(self) -> Mapping[str, str]:
        return {"digest": self.digest, "word": self.word}

    async def bootstrap(self, room: Workroom, target: str, progress: Progress) -> None:
        folder = room.path / "tmp"
        with self.source.open("rb") as file:
            is_packed = is_archive(file.read(HEAD_BYTES))
        image = self.source
        if is_packed:
            progress(0.0, "unpacking the archive")
            image = folder / "disk"
            loop = asyncio.get_running_loop()

            def show(done: int, size: int) -> None:
                loop.call_soon_threadsafe(progress, 0.4 * done / max(size, 1), f"unpacking: {done >> 20} MiB")

            await asyncio.to_thread(unpack_disk, self.source, self.word, image, show)
        progress(0.4, "reading the disk")
        partition = folder / "partition"
        try:
            await _copy_root(image, folder, partition)
        except StorageError as error:
            raise TemplateError(f"the disk cannot be read: {error}") from error
        if is_packed:
            image.unlink()
        namespace.hand_over(partition, room.ids)
        progress(0.6, "taking the files out")
        program = folder / "foreign_tree.py"
        program.write_bytes(Path(foreign_tree.__file__).read_bytes())
        inside = str(namespace.INSIDE / "tmp")
        shut_in = [*SHUT_IN, "--bind", inside, "/work", "--chdir", "/work"]
        for command in (
            ["python3", "-I", "-S", program.name, partition.name, "tree"],
            ["tar", "--create", "--file", "system.tar", "--numeric-owner", "--directory", "tree", "."],
        ):
            await namespace.run([*shut_in, *command], work_dir=room.path, ids=room.ids)
        self.os = await asyncio.to_thread(_read_os_release, folder / "tree")
        (folder / "system.tar").rename(room.path / target)

    def adapt_script(self) -> str:
        return _ADAPT.format(
            shut_in=" ".join(SHUT_IN), units=" ".join(MASKED_UNITS), user=DEFAULT_USER, uid=DEFAULT_USER_ID,
            kernel_limit=_KERNEL_LIMIT_MIB, applications=APPLICATIONS,
        )  # fmt: skip


async def _copy_root(image: Path, folder: Path, target: Path) -> None:
    """Copy the file system with the system on it to ``target``. :raise TemplateError, StorageError:"""
    with image.open("rb") as file:
        disk = read_disk(file, image.stat().st_size)
    table = folder / "table"
    await _copy_part(image, disk.format, table, 0, min(disk.size, TABLE_BYTES))
    root = find_root(table.read_bytes(), disk.size)
    table.unlink()
    await _copy_part(image, disk.format, target, root.offset, root.size)


async def _copy_part(image: Path, image_format: str, target: Path, offset: int, size: int) -> None:
    with target.open("xb") as file:
        file.truncate(size)
    await qemu_img.copy_out(image, image_format, target, offset, size)


def _read_os_release(tree: Path) -> OsInfo:
    path = tree / OS_RELEASE
    for part in (path, *path.parents[: len(Path(OS_RELEASE).parts) - 1]):
        if part.is_symlink():
            # It could lead to a file of this machine.
            return parse_os_release("")
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return parse_os_release(file.read(MAX_OS_RELEASE))
    except OSError:
        return parse_os_release("")
