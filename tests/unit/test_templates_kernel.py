"""Kernel: unpacking a bzImage, PVH notes, module order. The image is made here, field by field."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from insula.templates.errors import BuildFailed
from insula.templates.kernel import (
    find_kernel,
    has_pvh_entry,
    load_order,
    module_name,
    parse_modules_dep,
    unpack_bzimage,
)
from insula.testing.template_parts import bzimage, pvh_elf


def test_kernel_is_the_payload() -> None:
    elf = pvh_elf()
    assert unpack_bzimage(bzimage(elf)) == elf


def damaged_magic(image: bytes) -> bytes:
    return image[:0x202] + b"XXXX" + image[0x206:]


def old_protocol(image: bytes) -> bytes:
    return image[:0x206] + struct.pack("<H", 0x0207) + image[0x208:]


def cut(image: bytes) -> bytes:
    return image[:-20]


def no_xz(image: bytes) -> bytes:
    return image[:1024] + b"\x1f\x8b" + image[1026:]


@pytest.mark.parametrize("damage", [damaged_magic, old_protocol, cut, no_xz, lambda image: image[:100]])
def test_damaged_image_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(BuildFailed):
        unpack_bzimage(damage(bzimage(pvh_elf())))


def test_kernel_without_pvh_entry_is_refused() -> None:
    elf = pvh_elf(note_kind=6)
    assert not has_pvh_entry(elf)
    with pytest.raises(BuildFailed, match="PVH"):
        unpack_bzimage(bzimage(elf))


def test_payload_that_is_no_elf_file_is_refused() -> None:
    with pytest.raises(BuildFailed, match="ELF"):
        unpack_bzimage(bzimage(b"text"))


def test_xz_is_what_debian_uses_and_tests_use() -> None:
    assert lzma.compress(b"") in bzimage(b"")


def make_kernel(root: Path, version: str, *, modules: bool = True) -> None:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").touch()
    if modules:
        folder = root / "usr/lib/modules" / version
        folder.mkdir(parents=True)
        (folder / "modules.dep").touch()


def test_newest_kernel_with_modules_is_taken(tmp_path: Path) -> None:
    make_kernel(tmp_path, "6.1.0-9-amd64")
    make_kernel(tmp_path, "6.1.0-56-amd64")
    make_kernel(tmp_path, "6.9.0-1-amd64", modules=False)
    found = find_kernel(tmp_path)
    assert found.version == "6.1.0-56-amd64"
    assert (tmp_path / found.image).is_file()
    assert (tmp_path / found.modules).is_dir()


def test_system_without_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed):
        find_kernel(tmp_path)


DEP = """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc16.ko.xz:
kernel/lib/crc16.ko:
kernel/drivers/block/virtio-blk.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
"""


def test_modules_come_after_what_they_need() -> None:
    order = load_order(parse_modules_dep(DEP), ["ext4", "virtio_blk", "jbd2"])
    names = [module_name(path) for path in order]
    assert sorted(names) == ["crc16", "ext4", "jbd2", "virtio", "virtio_blk"]
    assert names.index("ext4") > max(names.index("crc16"), names.index("jbd2"))
    assert names.index("virtio_blk") > names.index("virtio")


def test_unknown_module_is_refused() -> None:
    with pytest.raises(BuildFailed, match="zfs"):
        load_order(parse_modules_dep(DEP), ["zfs"])


@pytest.mark.parametrize("path", ["kernel/drivers/block/virtio-blk.ko", "virtio_blk.ko.xz", "virtio_blk"])
def test_module_has_one_name(path: str) -> None:
    assert module_name(path) == "virtio_blk"
