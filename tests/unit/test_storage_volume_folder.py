from __future__ import annotations

from pathlib import Path

import pytest

from insula.model.block import KIB
from insula.storage.pool import NoSuchVolume, StorageError
from insula.storage.volume_folder import PoolFolder, VolumeFolder

SIZE = 256 * KIB
VID = "qubes/work/private"


@pytest.fixture
def pool(tmp_path: Path) -> PoolFolder:
    folder = PoolFolder(tmp_path / "pool", clock=lambda: 1_790_000_000.0)
    folder.prepare()
    return folder


def made(pool: PoolFolder, vid: str = VID) -> VolumeFolder:
    with pool.new_volume(vid) as staged:
        staged.populate((staged.new_base(SIZE),), SIZE)
    return pool.volume(vid)


def test_volume_appears_whole_or_not_at_all(pool: PoolFolder) -> None:
    with pytest.raises(KeyError), pool.new_volume(VID) as staged:
        staged.populate((staged.new_base(SIZE),), SIZE)
        raise KeyError
    assert pool.vids() == []
    assert list(pool.scratch.iterdir()) == []
    with pytest.raises(NoSuchVolume):
        pool.volume(VID).load()
    assert made(pool).load().size == SIZE


def test_removed_volume_takes_its_empty_folders_along(pool: PoolFolder) -> None:
    volume, neighbour = made(pool), made(pool, "qubes/personal/private")
    pool.remove_volume(volume)
    assert not volume.path.parent.exists()
    assert pool.vids() == [neighbour.vid]
    pool.remove_volume(neighbour)
    assert list(pool.root.iterdir()) == [pool.scratch]


def test_stray_files_are_ours_unnamed_and_unused(pool: PoolFolder) -> None:
    volume = made(pool)
    stray = volume.path / volume.new_base(SIZE).file
    used = volume.path / volume.new_base(SIZE).file
    killed = volume.path / "manifest.json.new"
    killed.touch()
    (volume.path / "notes.txt").touch()
    assert volume.stray_files(volume.load(), {used}) == sorted([stray, killed])


def test_scratch_is_cleared_of_all_but_what_active_volumes_have(pool: PoolFolder) -> None:
    mine, other, used = (pool.scratch_file(vid, ".raw") for vid in (VID, "qubes/b/root", "qubes/c/root"))
    for path in (mine, other, used):
        path.touch()
    assert pool.scratch_owner(mine) == VID
    lines = pool.clear_scratch({VID}, {used})
    assert len(lines) == 1
    assert str(other) in lines[0]
    assert sorted(pool.scratch.iterdir()) == sorted([mine, used])


def test_longest_vid_has_a_scratch_name(pool: PoolFolder) -> None:
    pool.scratch_file("x" * 200, ".qcow2").touch()


def test_folders_without_volumes_are_removed(pool: PoolFolder) -> None:
    made(pool)
    (pool.root / "qubes" / "half" / "made").mkdir(parents=True)
    assert pool.remove_empty_folders() == ["qubes/half/made", "qubes/half"]
    assert pool.vids() == [VID]


def test_link_in_place_of_a_record_is_not_followed(pool: PoolFolder, tmp_path: Path) -> None:
    volume = made(pool)
    record = volume.path / "manifest.json"
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((StorageError, OSError)):
        volume.load()


def test_opened_overlay_is_recorded_and_discarded(pool: PoolFolder) -> None:
    volume = made(pool)
    top = volume.open_overlay(volume.load())
    assert volume.load().dirty == top.path.name
    volume.discard_overlay(volume.load())
    assert volume.load().dirty is None
    assert not top.path.exists()
