"""The qcow2 pool against a model: any order of operations, real overlays written with QEMU's tools.

What holds for every driver is in tests/contract/test_pool.py; here is what is special to this one.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from insula.model.block import KIB, MIB, BlockSource, LayerFormat, VolumeSpec
from insula.storage import manifest as manifest_module
from insula.storage.pool import StorageError, VolumeBusy
from insula.storage.qcow2_image import BadImage
from insula.storage.qcow2_pool import Qcow2Pool
from insula.storage.volume_folder import REFUSED
from insula.testing import guest_disk

T = TypeVar("T")
SIZE = 256 * KIB
ROOT = VolumeSpec("root", "default", "qubes/debian/root", SIZE, save_on_stop=True, revisions_to_keep=1)
APP = VolumeSpec("root", "default", "qubes/work/root", SIZE, snap_on_start=True, source=ROOT.vid)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Qcow2Pool]:
    pool = Qcow2Pool("default", {}, tmp_path / "pool", reserve=0)
    await pool.recover(frozenset())
    yield pool
    await pool.aclose()


async def read(pool: Qcow2Pool, spec: VolumeSpec) -> bytes:
    return b"".join([piece async for piece in pool.export(spec)])


async def run(pool: Qcow2Pool, spec: VolumeSpec, byte: int) -> BlockSource:
    source = await pool.activate(spec)
    guest_disk.write(source, 0, spec.size, byte)
    await pool.deactivate(spec, commit=True)
    return source


def files_of(tmp_path: Path, spec: VolumeSpec) -> set[str]:
    return {path.name for path in (tmp_path / "pool" / spec.vid).iterdir()}


async def test_overlay_without_data_is_small_and_sound(pool: Qcow2Pool) -> None:
    await pool.create(replace(ROOT, size=64 * 1024 * MIB))
    source = await pool.activate(ROOT)
    assert [layer.format for layer in source.layers] == [LayerFormat.QCOW2, LayerFormat.RAW]
    assert source.layers[0].path.stat().st_blocks * 512 <= 64 * KIB
    guest_disk.check(source.layers[0].path)


async def test_files_are_for_the_daemon_alone(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, 1)
    await pool.activate(ROOT)
    await pool.activate(APP)
    paths = list((tmp_path / "pool").rglob("*"))
    assert len(paths) > 5
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_folding_leaves_one_file_for_each_revision(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.create(ROOT)
    for byte in range(1, 6):
        await run(pool, ROOT, byte)
    await pool.settle()
    assert len(files_of(tmp_path, ROOT)) == 1 + 2  # record, base, one layer on it
    assert await read(pool, ROOT) == bytes([5]) * SIZE


async def test_clone_shares_files_and_folding_does_not_touch_them(pool: Qcow2Pool, tmp_path: Path) -> None:
    copy = replace(ROOT, vid="qubes/copy/root", revisions_to_keep=0)
    await pool.create(ROOT)
    await run(pool, ROOT, 1)
    await pool.settle()
    await pool.clone(ROOT, copy)
    shared = [p for p in (tmp_path / "pool" / copy.vid).iterdir() if p.stat().st_nlink > 1]
    before = {p.stat().st_ino: p.read_bytes() for p in shared}
    assert len(before) == 2
    for byte in (2, 3, 4):
        await run(pool, copy, byte)
        await run(pool, ROOT, byte + 10)
        await pool.settle()
    assert {p.stat().st_ino: p.read_bytes() for p in shared} == before
    assert await read(pool, copy) == bytes([4]) * SIZE
    assert await read(pool, ROOT) == bytes([14]) * SIZE


async def test_folding_is_retried_when_the_last_snapshot_ends(pool: Qcow2Pool, tmp_path: Path) -> None:
    spec = replace(ROOT, revisions_to_keep=0)
    await pool.create(spec)
    await pool.activate(APP)
    await run(pool, spec, 1)
    await pool.settle()
    assert len(files_of(tmp_path, spec)) == 1 + 2
    await pool.deactivate(APP, commit=False)
    await pool.settle()
    assert len(files_of(tmp_path, spec)) == 1 + 1


async def test_activation_does_not_wait_for_folding(pool: Qcow2Pool) -> None:
    """The fold of 64 MiB is interrupted, not waited for, and nothing is lost by it."""
    spec = replace(ROOT, size=64 * MIB, revisions_to_keep=0)
    await pool.create(spec)
    await run(pool, spec, 1)
    await asyncio.sleep(0)  # the fold begins
    source = await pool.activate(spec)
    assert len(source.layers) == 3, "not folded yet"
    assert guest_disk.content(source) == bytes([1]) * 64 * MIB
    await pool.deactivate(spec, commit=False)
    await pool.settle()
    assert len((await pool.activate(spec)).layers) == 2


async def test_activation_waits_for_folding_of_a_long_chain(pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a volume that is started again and again at once would grow without end."""
    monkeypatch.setattr("insula.storage.qcow2_pool.LAYERS_WANTED", 2)
    spec = replace(ROOT, size=16 * MIB, revisions_to_keep=0)
    await pool.create(spec)
    for byte in range(1, 8):
        source = await run(pool, spec, byte)
        assert len(source.layers) <= 1 + 2 + 1  # overlay, what is wanted, one commit more
        await asyncio.sleep(0)


async def test_too_many_layers_in_use_refused_with_reason(pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.storage.qcow2_pool.LAYERS_MAX", 3)
    await pool.create(ROOT)
    for number in range(3):
        await pool.activate(replace(APP, vid=f"qubes/app{number}/root"))
        await run(pool, ROOT, number + 1)
    await pool.settle()
    for spec in (ROOT, replace(APP, vid="qubes/app3/root")):
        with pytest.raises(VolumeBusy, match="layers"):
            await pool.activate(spec)


# What a monitor in a guest's hands may do to its overlay (MC-65)


def rewrite(path: Path, *arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments, str(path)], check=True, capture_output=True, timeout=120)


async def test_overlay_whose_header_names_a_backing_file_is_not_committed(pool: Qcow2Pool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    await pool.create(ROOT)
    await run(pool, ROOT, 1)
    source = await pool.activate(ROOT)
    rewrite(source.layers[0].path, "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret))
    with pytest.raises(BadImage, match="names a backing file"):
        await pool.deactivate(ROOT, commit=True)
    assert REFUSED in files_of(tmp_path, ROOT)
    assert await read(pool, ROOT) == bytes([1]) * SIZE
    await pool.deactivate(ROOT, commit=True)  # settled: asking again is fine
    await run(pool, ROOT, 2)
    assert await read(pool, ROOT) == bytes([2]) * SIZE


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"RAW!"),  # no qcow2 any more
        (24, (SIZE * 2).to_bytes(8, "big")),  # larger than it may be
        (24, (SIZE // 2).to_bytes(8, "big")),  # smaller than what is below
        (72, (4).to_bytes(8, "big")),  # incompatible feature: external data file
        (32, (1).to_bytes(4, "big")),  # encrypted
    ],
)
async def test_overlay_with_changed_header_is_not_committed(pool: Qcow2Pool, offset: int, data: bytes) -> None:
    await pool.create(ROOT)
    source = await pool.activate(ROOT)
    with source.layers[0].path.open("r+b") as overlay:
        overlay.seek(offset)
        overlay.write(data)
    with pytest.raises(BadImage):
        await pool.deactivate(ROOT, commit=True)
    assert await read(pool, ROOT) == bytes(SIZE)
    await run(pool, ROOT, 2)


async def test_names_in_headers_of_layers_are_ignored_by_fold_and_export(pool: Qcow2Pool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    await pool.create(ROOT)
    source = await pool.activate(ROOT)
    guest_disk.write(source, 0, 64 * KIB, 1)
    await pool.deactivate(ROOT, commit=True)
    rewrite(source.layers[0].path, "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret))
    expected = bytes([1]) * 64 * KIB + bytes(SIZE - 64 * KIB)
    assert await read(pool, ROOT) == expected
    await pool.set_revisions_to_keep(ROOT, 0)
    await pool.settle()
    assert len((await pool.activate(ROOT)).layers) == 2, "folded"
    assert await read(pool, ROOT) == expected


async def test_overlay_with_broken_tables_fails_the_fold_not_the_volume_record(pool: Qcow2Pool) -> None:
    """Committed tables are read by the sandboxed tool only; what it refuses stays unfolded."""
    await pool.create(ROOT)
    source = await run(pool, ROOT, 1)
    with source.layers[0].path.open("r+b") as overlay:
        overlay.seek(40)
        overlay.write(b"\xff" * 8)  # offset of the L1 table
    await pool.set_revisions_to_keep(ROOT, 0)
    await pool.settle()
    assert await pool.size(ROOT) == SIZE
    with pytest.raises(StorageError, match="qemu-img"):
        await read(pool, ROOT)
    await pool.clear(ROOT)
    assert await read(pool, ROOT) == bytes(SIZE)


# Records that cannot be trusted (MC-63)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\x00" * len(text),
        lambda text: json.dumps(json.loads(text) | {"version": 2}),
        lambda text: json.dumps(json.loads(text) | {"colour": "red"}),
        lambda text: json.dumps(json.loads(text) | {"vid": "qubes/other/root"}),
        lambda text: json.dumps(json.loads(text) | {"revisions": []}),
        lambda text: json.dumps(json.loads(text) | {"dirty": "../../etc/passwd"}),
    ],
)
async def test_damaged_or_newer_record_refused_nothing_touched(pool: Qcow2Pool, tmp_path: Path, damage: Any) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, 1)
    await pool.settle()
    record = tmp_path / "pool" / ROOT.vid / "manifest.json"
    record.write_text(damage(record.read_text()))
    damaged, names = record.read_bytes(), files_of(tmp_path, ROOT)
    for operation in (pool.activate(ROOT), pool.activate(APP), pool.size(ROOT), pool.clear(ROOT), read(pool, ROOT)):
        with pytest.raises(StorageError, match="record"):
            await operation
    with pytest.raises(StorageError, match="exists"):
        await pool.create(ROOT)
    lines = await pool.recover(frozenset())
    assert len(lines) == 1
    assert ROOT.vid in lines[0]
    await pool.settle()
    assert record.read_bytes() == damaged
    assert files_of(tmp_path, ROOT) == names
    await pool.remove(ROOT)
    assert await pool.volumes() == []


# Any order of operations


@dataclass
class Volume:
    """What the model knows of one."""

    newest: bytes
    older: dict[str, bytes] = field(default_factory=dict)
    source: BlockSource | None = None
    written: bytearray = field(default_factory=bytearray)


@dataclass
class Snapshot:
    source: BlockSource
    written: bytearray


VIDS = ("qubes/a/root", "qubes/b/root", "qubes/c/root")
MODEL_SIZE = 192 * KIB
KEEP = 1
GRAIN = 16 * KIB
ranges = st.tuples(st.integers(0, MODEL_SIZE // GRAIN - 1), st.integers(1, 6), st.booleans())
"""First grain, number of grains, whether zeros are written."""
pick = st.integers(0, len(VIDS) - 1)
"""One of the volumes there are, so that few steps do nothing."""


class PoolMachine(RuleBasedStateMachine):
    """Two or three volumes of which clones, commits, snapshots and reverts are made in any order."""

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="insula-pool-"))
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.byte = 0
        self.reopen()
        for vid in VIDS[:2]:
            self.create(vid)

    def reopen(self) -> None:
        self.pool = Qcow2Pool("default", {}, self.folder, reserve=0)
        for vid, snapshot in self.snapshots.items():
            self.wait(self.pool.mark_active(self.snap(vid), snapshot.source))
        for vid, volume in self.volumes.items():
            if volume.source is not None:
                self.wait(self.pool.mark_active(self.spec(vid), volume.source))
        active = {vid for vid, volume in self.volumes.items() if volume.source} | {
            self.snap(vid).vid for vid in self.snapshots
        }
        assert self.wait(self.pool.recover(frozenset(active))) == []

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            try:
                self.compare()
                self.settle()
                self.compare()
            finally:
                self.wait(self.pool.aclose())
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
                self.loop.close()
                shutil.rmtree(self.folder)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def spec(self, vid: str) -> VolumeSpec:
        return VolumeSpec("root", "default", vid, MODEL_SIZE, save_on_stop=True, revisions_to_keep=KEEP)

    def snap(self, vid: str) -> VolumeSpec:
        return VolumeSpec("root", "default", vid + "-snap", MODEL_SIZE, snap_on_start=True, source=vid)

    def picked(self, index: int) -> tuple[str, Volume]:
        return list(self.volumes.items())[index % len(self.volumes)]

    def replaced(self, vid: str, content: bytes) -> None:
        """The model's side of a new revision; the pool's ids are taken over."""
        volume = self.volumes[vid]
        contents = [*volume.older.values(), volume.newest][-KEEP:]
        ids = [revision.id for revision in self.wait(self.pool.revisions(self.spec(vid)))]
        volume.older = dict(zip(ids, contents, strict=True))
        volume.newest = content

    def create(self, vid: str) -> None:
        self.wait(self.pool.create(self.spec(vid)))
        self.volumes[vid] = Volume(bytes(MODEL_SIZE))

    def write(self, source: BlockSource, model: bytearray, write: tuple[int, int, bool]) -> None:
        self.byte = self.byte % 255 + 1
        byte = 0 if write[2] else self.byte
        start = write[0] * GRAIN
        length = min(write[1] * GRAIN, MODEL_SIZE - start)
        guest_disk.write(source, start, length, byte)
        model[start : start + length] = bytes([byte]) * length

    @rule(index=pick, writes=st.lists(ranges, min_size=1, max_size=3))
    def start_or_write(self, index: int, writes: list[tuple[int, int, bool]]) -> None:
        vid, volume = self.picked(index)
        if volume.source is None:
            volume.source = self.wait(self.pool.activate(self.spec(vid)))
            volume.written = bytearray(volume.newest)
        for write in writes:
            self.write(volume.source, volume.written, write)

    @rule(index=pick, commit=st.booleans())
    def stop(self, index: int, commit: bool) -> None:
        vid, volume = self.picked(index)
        if volume.source is None:
            return
        assert guest_disk.content(volume.source) == volume.written
        self.wait(self.pool.deactivate(self.spec(vid), commit=commit))
        volume.source = None
        if commit:
            self.replaced(vid, bytes(volume.written))

    @rule(index=pick, writes=st.lists(ranges, min_size=1, max_size=4))
    def commit_several(self, index: int, writes: list[tuple[int, int, bool]]) -> None:
        for write in writes:
            self.start_or_write(index, [write])
            self.stop(index, True)

    @rule(index=pick, write=ranges)
    def start_snapshot(self, index: int, write: tuple[int, int, bool]) -> None:
        vid, volume = self.picked(index)
        if vid not in self.snapshots:
            source = self.wait(self.pool.activate(self.snap(vid)))
            self.snapshots[vid] = Snapshot(source, bytearray(volume.newest))
            self.write(source, self.snapshots[vid].written, write)

    @rule(index=pick)
    def stop_snapshot(self, index: int) -> None:
        vid, _volume = self.picked(index)
        if vid in self.snapshots:
            snapshot = self.snapshots.pop(vid)
            assert guest_disk.content(snapshot.source) == snapshot.written
            self.wait(self.pool.deactivate(self.snap(vid), commit=False))

    @rule(index=pick, choice=st.integers(0, KEEP - 1))
    def revert(self, index: int, choice: int) -> None:
        vid, volume = self.picked(index)
        if volume.source is not None or choice >= len(volume.older):
            return
        revision_id, content = list(volume.older.items())[choice]
        self.wait(self.pool.revert(self.spec(vid), revision_id))
        self.replaced(vid, content)

    @rule(index=pick, copy=st.sampled_from(VIDS))
    def clone(self, index: int, copy: str) -> None:
        vid, volume = self.picked(index)
        if vid == copy or (copy in self.volumes and self.volumes[copy].source is not None):
            return
        self.wait(self.pool.clone(self.spec(vid), self.spec(copy)))
        if copy in self.volumes:
            self.replaced(copy, volume.newest)
        else:
            self.volumes[copy] = Volume(volume.newest)

    @rule(index=pick)
    def clear(self, index: int) -> None:
        vid, volume = self.picked(index)
        if volume.source is None:
            self.wait(self.pool.clear(self.spec(vid)))
            self.replaced(vid, bytes(MODEL_SIZE))

    @rule(index=pick)
    def remove(self, index: int) -> None:
        vid, volume = self.picked(index)
        if volume.source is None and vid not in self.snapshots and len(self.volumes) > 1:
            self.wait(self.pool.remove(self.spec(vid)))
            del self.volumes[vid]

    @rule()
    def settle(self) -> None:
        self.wait(self.pool.settle())

    @rule()
    def restart(self) -> None:
        self.wait(self.pool.aclose())
        self.reopen()

    @rule()
    def compare(self) -> None:
        for vid, volume in self.volumes.items():
            assert self.wait(read(self.pool, self.spec(vid))) == volume.newest
            assert [r.id for r in self.wait(self.pool.revisions(self.spec(vid)))] == list(volume.older)
            if volume.source is not None:
                assert guest_disk.content(volume.source) == volume.written
        for snapshot in self.snapshots.values():
            assert guest_disk.content(snapshot.source) == snapshot.written

    @rule(index=pick)
    def compare_older(self, index: int) -> None:
        """By reverting to each, the one that was newest last."""
        vid, volume = self.picked(index)
        if volume.source is None:
            for choice in range(len(volume.older)):
                self.revert(index, choice)
                assert self.wait(read(self.pool, self.spec(vid))) == volume.newest

    @invariant()
    def listed_as_in_the_model(self) -> None:
        if hasattr(self, "pool"):
            assert self.wait(self.pool.volumes()) == sorted(self.volumes)


PoolMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestPoolMachine = PoolMachine.TestCase


def test_limits_are_consistent() -> None:
    """A chain with every kept revision as a layer of its own fits below the limit that would refuse a start."""
    assert manifest_module.REVISIONS_MAX + manifest_module.LAYERS_WANTED < manifest_module.LAYERS_MAX
