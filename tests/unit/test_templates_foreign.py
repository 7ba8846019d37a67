"""Disks that somebody else made become templates: whole, or in archives as makers publish them; others are refused.

The disks are made here by the tools that make them everywhere (``qemu-img``, ``mkfs.ext4``); the system on them is the
tiny one of template builds.
"""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.templates import foreign_archive
from insula.templates.build import build_distribution, clean
from insula.templates.errors import BuildFailed, TemplateError
from insula.templates.foreign import MASKED_UNITS, ForeignSystem, digest_of, parse_os_release
from insula.templates.foreign_archive import is_archive, unpack_disk
from insula.templates.foreign_disk import HEADER_BYTES, Disk, DiskFormat, parse_disk
from insula.templates.foreign_tree import special_modes
from insula.templates.partition_table import SECTOR, TABLE_BYTES, Extent, find_root
from insula.testing.template_parts import KERNEL_VERSION, pvh_elf, tiny_system

MIB = 1 << 20
DISK_SIZE = 24 * MIB
ROOT = Extent(2 * MIB, 20 * MIB)
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
EFI = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le


def tool(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def mbr(*partitions: tuple[int, Extent]) -> bytes:
    """A table of (type, place)."""
    entries = b"".join(
        struct.pack("<B3sB3sII", 0, b"", kind, b"", part.offset // SECTOR, part.size // SECTOR)
        for kind, part in partitions
    )
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def gpt(*partitions: tuple[bytes, Extent]) -> bytes:
    """A table of (type, place), as far as it is read."""
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 99, 34, 90, b"", 2, 128, 128, 0)
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", kind, b"", part.offset // SECTOR, (part.offset + part.size) // SECTOR - 1, 0, b"")
        for kind, part in partitions
    )
    whole = Extent(SECTOR, DISK_SIZE - SECTOR)
    return mbr((0xEE, whole)) + header.ljust(SECTOR, b"\0") + entries.ljust(128 * 128, b"\0")


def whonix_files() -> dict[str, bytes]:
    """What the import looks for, in a system that does nothing."""
    return {
        **tiny_system(),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n",
        "etc/group": b"root:x:0:\n",
        "etc/shadow": b"root:*:19000:0:99999:7:::\n",
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        "etc/fstab": b"/dev/sda1 / ext4 defaults 0 1\n",
        "etc/systemd/system/x.service": b"",
        "home/.keep": b"",
        "usr/bin/python3": b"python",
        "usr/lib/systemd/systemd": b"systemd",
        "usr/lib/os-release": b'ID=whonix\nID_LIKE="debian"\nVERSION_ID="17"\nNAME="Whonix (r) `x`"\n',
        "usr/local/bin/tool": b"",
        "usr/bin/sudo": b"sudo",
        "usr/share/applications/browser.desktop": b"[Desktop Entry]\nType=Application\nName=Browser\nExec=x\n",
    }


def write_disk(folder: Path, files: dict[str, bytes], table: bytes | None = None) -> Path:
    """A raw disk with these files on its root partition."""
    tree, partition, disk = folder / "tree", folder / "partition", folder / "disk.raw"
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tree / "usr/bin/sudo").chmod(0o4755) if "usr/bin/sudo" in files else None
    with partition.open("wb") as file:
        file.truncate(ROOT.size)
    tool("mkfs.ext4", "-q", "-F", "-d", tree, partition)
    with disk.open("wb") as file:
        file.write(gpt((EFI, Extent(MIB, MIB)), (LINUX, ROOT)) if table is None else table)
        file.seek(ROOT.offset)
        file.write(partition.read_bytes())
        file.truncate(DISK_SIZE)
    return disk


def packed(folder: Path, *disks: tuple[str, Path], suffix: str = ".tar", sparse: bool = False) -> Path:
    """An archive with these disks and what lies beside them."""
    archive = folder / f"Whonix{suffix}"
    mode = {".ova": "w", ".tar": "w", ".libvirt.xz": "w:xz"}[suffix]
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for name, content in (("Whonix-Gateway.xml", b"<domain/>"), ("WHONIX_BINARY_LICENSE_AGREEMENT", b"yes")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, disk in disks:
            tar.add(disk, arcname=name)
    return archive


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    work, out = tmp_path / "work", tmp_path / "out"
    yield work, out
    await clean(work)


def debugfs(image: Path, request: str) -> str:
    return tool("debugfs", "-R", request, image)


# the whole way


@pytest.mark.parametrize("layout", ["libvirt.xz", "ova", "qcow2", "raw"])
async def test_published_layout_becomes_a_template(tmp_path: Path, folders: tuple[Path, Path], layout: str) -> None:
    disk = write_disk(tmp_path, whonix_files())
    qcow2, vmdk = tmp_path / "Whonix-Gateway-LXQt-17.qcow2", tmp_path / "Whonix-disk001.vmdk"
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", disk, qcow2)
    tool("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, vmdk)
    source, word = {
        "libvirt.xz": (packed(tmp_path, (qcow2.name, qcow2), ("Whonix-Workstation-17.qcow2", qcow2),
                              suffix=".libvirt.xz"), "Gateway"),
        "ova": (packed(tmp_path, (vmdk.name, vmdk), suffix=".ova"), ""),
        "qcow2": (qcow2, ""),
        "raw": (disk, ""),
    }[layout]  # fmt: skip
    built = await build_distribution(ForeignSystem("whonix-gw", source, word, digest_of(source)), *folders)
    assert (built.distribution, built.release) == ("whonix", "17")
    assert built.kernel_version == KERNEL_VERSION
    assert built.kernel.read_bytes() == pvh_elf()
    # a system that is nobody's yet, with our agent in it
    assert debugfs(built.root_image, "cat /etc/machine-id") == ""
    assert debugfs(built.root_image, "cat /etc/fstab") == ""
    assert "user:x:1000:1000:" in debugfs(built.root_image, "cat /etc/passwd")
    assert "insula-agent.service" in debugfs(built.root_image, "ls -p /usr/lib/systemd/system")
    assert '"/dev/null"' in debugfs(built.root_image, f"stat /etc/systemd/system/{MASKED_UNITS[0]}")
    assert "Mode:  04755" in debugfs(built.root_image, "stat /usr/bin/sudo")
    assert "tool" in debugfs(built.root_image, "ls -p /usr/local.orig/bin")
    assert built.applications is not None
    assert "browser.desktop:Name=Browser\n" in built.applications.read_text()
    tool("e2fsck", "-fn", built.root_image)


async def test_file_that_is_a_link_to_one_of_this_machine_is_not_read(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """MC-74"""
    secret = tmp_path / "secret"
    files = whonix_files()
    secret.write_bytes(files.pop(f"boot/vmlinuz-{KERNEL_VERSION}"))
    (tmp_path / "tree" / "boot").mkdir(parents=True)
    (tmp_path / "tree" / "boot" / f"vmlinuz-{KERNEL_VERSION}").symlink_to(secret)
    disk = write_disk(tmp_path, files)
    with pytest.raises(BuildFailed, match="no kernel"):
        await build_distribution(ForeignSystem("bad", disk, "", digest_of(disk)), *folders)
    assert not list(folders[1].glob("*/template.json"))


async def test_applications_that_are_links_to_those_of_this_machine_are_not_told(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """MC-74"""
    of_this_machine = tmp_path / "other.desktop"
    of_this_machine.write_text("[Desktop Entry]\nType=Application\nName=Other\nExec=x\n")
    shared = tmp_path / "tree/usr/share"
    shared.mkdir(parents=True)
    (tmp_path / "tree/usr/local/share/applications").mkdir(parents=True)
    (tmp_path / "tree/usr/local/share/applications/other.desktop").symlink_to(of_this_machine)
    (shared / "applications").symlink_to(tmp_path)
    files = {name: data for name, data in whonix_files().items() if not name.startswith("usr/share/applications")}
    disk = write_disk(tmp_path, files)
    built = await build_distribution(ForeignSystem("links", disk, "", digest_of(disk)), *folders)
    assert built.applications is not None
    assert built.applications.read_text() == ""


async def test_file_that_is_a_link_to_one_of_this_machine_is_not_written_to(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """MC-74"""
    # Anybody may write here, so that it is the sandbox which keeps the image out.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    outside = tmp_path / "outside"
    outside.write_text("the host's own\n")
    outside.chmod(0o666)
    files = whonix_files()
    del files["etc/passwd"]
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "passwd").symlink_to(outside)
    disk = write_disk(tmp_path, files)
    with pytest.raises(BuildFailed):
        await build_distribution(ForeignSystem("bad", disk, "", digest_of(disk)), *folders)
    assert outside.read_text() == "the host's own\n"


@pytest.mark.parametrize("missing", ["usr/bin/python3", "usr/lib/systemd/systemd"])
async def test_system_that_cannot_be_a_template_is_refused_with_the_reason(
    tmp_path: Path, folders: tuple[Path, Path], missing: str
) -> None:
    files = whonix_files()
    del files[missing]
    disk = write_disk(tmp_path, files)
    with pytest.raises(BuildFailed) as caught:
        await build_distribution(ForeignSystem("bad", disk, "", digest_of(disk)), *folders)
    assert "cannot be a template" in caught.value.tail


# headers


def qcow2_with(folder: Path, **changes: tuple[int, bytes]) -> bytes:
    image = folder / "image.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", image, "100G")
    data = bytearray(image.read_bytes()[:HEADER_BYTES])
    for offset, value in changes.values():
        data[offset : offset + len(value)] = value
    return bytes(data)


def test_qcow2_is_taken_with_the_size_it_says(tmp_path: Path) -> None:
    assert parse_disk(qcow2_with(tmp_path), 200000) == Disk(DiskFormat.QCOW2, 100 << 30)


@pytest.mark.parametrize(
    "change",
    [
        (8, struct.pack(">QI", 512, 11)),  # a backing file
        (16, struct.pack(">I", 11)),  # its name's length alone
        (72, struct.pack(">Q", 1 << 2)),  # an external data file
        (72, struct.pack(">Q", 1 << 1)),  # corrupt
        (32, struct.pack(">I", 2)),  # encrypted
        (60, struct.pack(">I", 1)),  # snapshots
        (24, struct.pack(">Q", 1 << 62)),  # larger than may be
        (24, struct.pack(">Q", 0)),
        (24, struct.pack(">Q", 100 * MIB + 1)),
        (20, struct.pack(">I", 30)),
        (4, struct.pack(">I", 4)),
    ],
)
def test_qcow2_that_names_another_file_or_is_not_whole_is_refused(tmp_path: Path, change: tuple[int, bytes]) -> None:
    """MC-65"""
    with pytest.raises(TemplateError):
        parse_disk(qcow2_with(tmp_path, only=change), 200000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"parentCID=ffffffff", b"parentCID=12345678"),
        (b'createType="streamOptimized"', b'createType="monolithicFlat" '),
        (b'RW 49152 SPARSE "d.vmdk"', b'RW 49152 SPARSE "/a/vmdk'),
        (b"# Extent description\nRW", b'RW 1 FLAT "x" 0     \nRW'),
    ],
)
def test_vmdk_that_names_another_file_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    """MC-65"""
    raw, image = tmp_path / "d.raw", tmp_path / "d.vmdk"
    with raw.open("wb") as file:
        file.truncate(DISK_SIZE)
    tool("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image)
    data = image.read_bytes()[:HEADER_BYTES]
    assert parse_disk(data, len(data)) == Disk(DiskFormat.VMDK, DISK_SIZE)
    assert old in data
    with pytest.raises(TemplateError):
        parse_disk(data.replace(old, new), len(data))


@pytest.mark.parametrize(
    "start", [b"# Disk DescriptorFile\n", b"conectix", b"<<< Oracle VM VirtualBox Disk Image >>>", b"QED\0", b""]
)
def test_other_formats_are_refused(start: bytes) -> None:
    with pytest.raises(TemplateError):
        parse_disk(start, len(start))


@given(st.binary(max_size=600), st.sampled_from([b"", b"QFI\xfb\0\0\0\3", b"KDMV\1\0\0\0"]), st.integers(0, 1 << 40))
def test_any_bytes_are_a_disk_of_a_size_that_is_taken_or_refused(data: bytes, magic: bytes, length: int) -> None:
    try:
        disk = parse_disk(magic + data, length)
    except TemplateError:
        return
    assert 0 < disk.size <= 1 << 40
    assert disk.size % SECTOR == 0


# partition tables


def test_root_is_the_largest_partition_for_linux() -> None:
    start = gpt((EFI, Extent(MIB, MIB)), (LINUX, Extent(2 * MIB, MIB)), (LINUX, Extent(4 * MIB, 16 * MIB)))
    assert find_root(start, DISK_SIZE) == Extent(4 * MIB, 16 * MIB)
    assert find_root(mbr((0x83, ROOT), (0x82, Extent(0, MIB))) + bytes(SECTOR), DISK_SIZE) == ROOT


def test_disk_without_partitions_is_all_root() -> None:
    start = bytearray(4096)
    start[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    assert find_root(bytes(start), DISK_SIZE) == Extent(0, DISK_SIZE)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        bytes(4096),
        mbr() + bytes(SECTOR),
        mbr((0x83, Extent(0, MIB))) + bytes(SECTOR),
        mbr((0x83, Extent(MIB, 2 * DISK_SIZE))) + bytes(SECTOR),
        mbr((0xEE, ROOT)) + bytes(SECTOR),
        gpt((EFI, ROOT)),
        gpt((LINUX, ROOT))[:1000],
    ],
)
def test_table_without_a_root_is_refused(start: bytes) -> None:
    with pytest.raises(TemplateError):
        find_root(start, DISK_SIZE)


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(1 << 20, 1 << 41))
def test_any_table_gives_a_place_on_the_disk_or_is_refused(noise: bytes, at: int, size: int) -> None:
    start = bytearray(gpt((EFI, Extent(MIB, MIB)), (LINUX, ROOT)))
    start[at : at + len(noise)] = noise
    try:
        root = find_root(bytes(start[:TABLE_BYTES]), size)
    except TemplateError:
        return
    assert root.size > 0
    assert root.offset >= 0
    assert root.offset + root.size <= size


# archives


def test_only_what_looks_like_an_archive_is_one(tmp_path: Path) -> None:
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(4096))
    assert is_archive(packed(tmp_path, ("d.img", disk)).read_bytes()[:512])
    assert is_archive(packed(tmp_path, ("d.img", disk), suffix=".libvirt.xz").read_bytes()[:512])
    assert not is_archive(bytes(512))
    assert not is_archive(b"QFI\xfb")


def test_disk_of_an_archive_keeps_its_holes(tmp_path: Path) -> None:
    disk = tmp_path / "d.img"
    with disk.open("wb") as file:
        file.seek(63 * MIB)
        file.write(b"end")
        file.truncate(64 * MIB)
    shown: list[tuple[int, int]] = []
    name = unpack_disk(packed(tmp_path, ("x/d.img", disk)), "", tmp_path / "out", lambda *some: shown.append(some))
    assert name == "x/d.img"
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 <= 2 * MIB
    assert shown[-1] == (64 * MIB, 64 * MIB)


@pytest.mark.parametrize(("word", "said"), [("", "several disks"), ("Nobody", "no disk with")])
def test_disk_that_is_not_clear_is_refused_and_nothing_is_left(tmp_path: Path, word: str, said: str) -> None:
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(4096))
    archive = packed(tmp_path, ("Gateway.qcow2", disk), ("Workstation.qcow2", disk))
    with pytest.raises(TemplateError, match=said):
        unpack_disk(archive, word, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_links_and_too_many_members_of_an_archive_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-74"""
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("disk.raw")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(TemplateError, match="no disk"):
        unpack_disk(archive, "", tmp_path / "out", lambda *_: None)
    monkeypatch.setattr(foreign_archive, "MAX_MEMBERS", 1)
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(4096))
    with pytest.raises(TemplateError, match="more than 1"):
        unpack_disk(packed(tmp_path, ("d.img", disk)), "", tmp_path / "out", lambda *_: None)
    monkeypatch.setattr(foreign_archive, "MAX_MEMBERS", 100)
    monkeypatch.setattr(foreign_archive, "MAX_IMAGE", 4095)
    with pytest.raises(TemplateError, match="larger"):
        unpack_disk(packed(tmp_path, ("d.img", disk)), "", tmp_path / "out", lambda *_: None)


@pytest.mark.parametrize("cut", [100, 600, 3000])
def test_archive_that_ends_early_is_refused_and_nothing_is_left(tmp_path: Path, cut: int) -> None:
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(range(256)) * 16)
    archive = packed(tmp_path, ("d.img", disk))
    archive.write_bytes(archive.read_bytes()[: 512 + cut])
    with pytest.raises(TemplateError):
        unpack_disk(archive, "", tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


# words of the system


@given(st.text(max_size=300))
def test_any_os_release_gives_words_that_features_may_have(text: str) -> None:
    found = parse_os_release(f"ID={text}\nVERSION_ID={text}\n{text}")
    assert found.distribution
    assert all(character.isascii() and character.isprintable() for character in found.distribution + found.version)


@given(st.binary(max_size=300))
def test_any_listing_gives_modes_of_plain_files_below_the_folders_asked_for(noise: bytes) -> None:
    listing = b'debugfs: ls -p "/usr/bin"\n/12/104755/0/0/sudo/1234/\n/13/040755/0/0/x//\n' + noise
    found = list(special_modes(listing, ["/usr/bin"]))
    assert found[0] == ("/usr/bin/sudo", 0o4755)
    assert all(path.startswith("/usr/bin/") and path.count("/") == 3 for path, _ in found)
