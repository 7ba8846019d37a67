"""The initramfs: its archive as cpio reads it, its script as a shell reads it."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from insula.templates.errors import BuildFailed
from insula.templates.initramfs import (
    ROOT_MODULES,
    Entry,
    Module,
    build_initramfs,
    init_script,
    plan_initramfs,
    write_newc,
)
from insula.testing.template_parts import KERNEL_VERSION, tiny_system


def cpio(archive: bytes, *options: str, folder: Path | None = None) -> str:
    result = subprocess.run(
        ["cpio", "--quiet", *options], input=archive, capture_output=True, check=True, cwd=folder, timeout=120
    )
    return result.stdout.decode()


def test_archive_unpacks_to_what_was_packed(tmp_path: Path) -> None:
    entries = [
        Entry("a", stat.S_IFDIR | 0o755),
        Entry("a/odd", stat.S_IFREG | 0o640, b"x" * 4097),
        Entry("a/empty", stat.S_IFREG | 0o755),
    ]
    cpio(write_newc(entries), "-i", folder=tmp_path)
    assert (tmp_path / "a/odd").read_bytes() == b"x" * 4097
    assert stat.S_IMODE((tmp_path / "a/odd").stat().st_mode) == 0o640
    assert (tmp_path / "a/empty").read_bytes() == b""


def test_device_node_has_its_numbers() -> None:
    listing = cpio(write_newc([Entry("console", stat.S_IFCHR | 0o600, device=(5, 1))]), "-itv")
    assert listing.startswith("crw-------")
    assert "5,   1" in listing


def test_equal_inputs_give_equal_bytes() -> None:
    modules = [Module("b", ("a",), b"B"), Module("a", (), b"A")]
    assert write_newc(plan_initramfs(b"", "1", modules)) == write_newc(plan_initramfs(b"", "1", modules))


def test_index_tells_modprobe_what_a_module_needs() -> None:
    entries = {e.path: e for e in plan_initramfs(b"bb", "6.1", [Module("a", (), b"A"), Module("b", ("a",), b"B")])}
    assert entries["lib/modules/6.1/modules.dep"].data == b"a.ko:\nb.ko: a.ko\n"
    assert entries["lib/modules/6.1/b.ko"].data == b"B"
    assert stat.S_IMODE(entries["init"].mode) == 0o755


def test_folders_come_before_what_is_in_them() -> None:
    seen = {""}
    for entry in plan_initramfs(b"bb", "6.1", [Module("a", (), b"A")]):
        assert entry.path.rpartition("/")[0] in seen
        seen.add(entry.path)


def test_init_is_a_shell_script() -> None:
    subprocess.run(["sh", "-n"], input=init_script(ROOT_MODULES).encode(), check=True, timeout=120)


def test_system_without_a_needed_module_is_refused(tmp_path: Path) -> None:
    modules = tmp_path / KERNEL_VERSION
    modules.mkdir()
    (modules / "modules.dep").write_text("kernel/other.ko:\n")
    busybox = tmp_path / "busybox"
    busybox.touch()
    with pytest.raises(BuildFailed, match=ROOT_MODULES[0]):
        build_initramfs(busybox, modules)


def test_system_gives_its_modules_to_the_archive(tmp_path: Path) -> None:
    for name, content in tiny_system().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    archive = build_initramfs(tmp_path / "usr/bin/busybox", tmp_path / "usr/lib/modules" / KERNEL_VERSION)
    names = cpio(archive, "-it").splitlines()
    assert {f"lib/modules/{KERNEL_VERSION}/{name}.ko" for name in ROOT_MODULES} <= set(names)
