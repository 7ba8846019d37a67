from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.model.block import BlockLayer, BlockSource, LayerFormat, VolumeSpec
from insula.storage.kernel_pool import KernelPool
from insula.storage.pool import NoSuchVolume, StorageError

KERNEL = VolumeSpec("kernel", "linux-kernel", "6.1.0-40", 0, rw=False)
ABSENT = replace(KERNEL, vid="9.9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("6.1.0-40", "6.12.1+deb13"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "vmlinuz").write_bytes(b"kernel")
        (tmp_path / version / "initrd").write_bytes(b"x" * 9000)
    (tmp_path / "half-made").mkdir()
    (tmp_path / ".new-abc").mkdir()
    (tmp_path / ".new-abc" / "vmlinuz").touch()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.fixture
def pool(folder: Path) -> KernelPool:
    return KernelPool("linux-kernel", {"dir_path": str(folder)}, folder)


async def nothing() -> AsyncIterator[bytes]:
    yield b""


async def test_versions_with_an_image_are_the_volumes(pool: KernelPool) -> None:
    assert await pool.volumes() == ["6.1.0-40", "6.12.1+deb13"]


async def test_folder_that_does_not_exist_yet_has_no_volumes(tmp_path: Path) -> None:
    pool = KernelPool("linux-kernel", {}, tmp_path / "absent")
    assert await pool.volumes() == []
    assert (await pool.pool_usage()).size > 0


async def test_kernel_of_a_qube_comes_and_goes_without_touching_the_kernel(pool: KernelPool, folder: Path) -> None:
    await pool.create(KERNEL)
    assert await pool.usage(KERNEL) > 0
    assert await pool.size(KERNEL) == 0
    assert await pool.revisions(KERNEL) == []
    assert not await pool.is_outdated(KERNEL)
    source = BlockSource((BlockLayer(folder / "file", LayerFormat.RAW),), 512, writable=False)
    await pool.mark_active(KERNEL, source)
    await pool.deactivate(KERNEL, commit=True)
    await pool.remove(KERNEL)
    assert await pool.recover(frozenset()) == []
    await pool.settle()
    await pool.aclose()
    assert await pool.volumes() == ["6.1.0-40", "6.12.1+deb13"]


@pytest.mark.parametrize("vid", ["9.9", "", "..", "half-made", ".new-abc", "file", "6.1.0-40/../6.1.0-40"])
async def test_what_is_no_kernel_is_no_volume(pool: KernelPool, vid: str) -> None:
    spec = replace(KERNEL, vid=vid)
    for operation in (pool.create(spec), pool.usage(spec), pool.size(spec), pool.revisions(spec)):
        with pytest.raises(NoSuchVolume):
            await operation


async def test_everything_that_changes_is_refused(pool: KernelPool, folder: Path) -> None:
    for operation in (
        pool.activate(KERNEL),
        pool.clone(KERNEL, ABSENT),
        pool.revert(KERNEL, "x"),
        pool.resize(KERNEL, 512),
        pool.import_stream(KERNEL, nothing(), 512),
        pool.import_file(KERNEL, folder / "file"),
        pool.clear(KERNEL),
        pool.set_revisions_to_keep(KERNEL, 1),
        anext(pool.export(KERNEL)),
    ):
        with pytest.raises(StorageError, match="read-only"):
            await operation


def test_relative_folder_refused() -> None:
    with pytest.raises(StorageError, match="absolute"):
        KernelPool("linux-kernel", {}, Path("kernels"))
