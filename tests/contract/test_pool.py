"""What every pool driver that stores volumes must do. A new driver is one more entry in OPENERS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from insula.model.block import KIB, MIB, VolumeSpec
from insula.model.system import PoolConfig
from insula.storage.pool import NoSpace, NoSuchRevision, NoSuchVolume, Pool, StorageError, VolumeBusy
from insula.storage.registry import DRIVERS, open_pool
from insula.testing import guest_disk

READ_ONLY_DRIVERS = {"linux-kernel"}
OPENERS: dict[str, Callable[[Path], Pool]] = {
    "qcow2": lambda folder: open_pool(
        PoolConfig("default", "qcow2", {"dir_path": str(folder / "pool"), "reserve_mib": "0"})
    )
}
SIZE = 1 * MIB
ROOT = VolumeSpec("root", "default", "qubes/debian/root", SIZE, save_on_stop=True, revisions_to_keep=2)
COPY = replace(ROOT, vid="qubes/copy/root")
APP = VolumeSpec("root", "default", "qubes/work/root", SIZE, snap_on_start=True, source=ROOT.vid)
OTHER_APP = replace(APP, vid="qubes/personal/root")
VOLATILE = VolumeSpec("volatile", "default", "qubes/work/volatile", SIZE)


def test_registered_drivers_are_all_under_this_contract() -> None:
    assert set(DRIVERS) == set(OPENERS) | READ_ONLY_DRIVERS


@pytest.fixture(params=sorted(OPENERS))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Pool]:
    """Opens the same pool again and again, as a restarted daemon does."""
    return lambda: OPENERS[request.param](tmp_path)


@pytest.fixture
async def pool(opener: Callable[[], Pool]) -> AsyncIterator[Pool]:
    pool = opener()
    assert await pool.recover(frozenset()) == []
    yield pool
    await pool.aclose()


def filled(*ranges: tuple[int, int, int], size: int = SIZE) -> bytes:
    """A disk of zeros with ``(offset, length, byte)`` written to it."""
    disk = bytearray(size)
    for offset, length, byte in ranges:
        disk[offset : offset + length] = bytes([byte]) * length
    return bytes(disk)


async def read(pool: Pool, spec: VolumeSpec) -> bytes:
    return b"".join([piece async for piece in pool.export(spec)])


async def run(pool: Pool, spec: VolumeSpec, *ranges: tuple[int, int, int], commit: bool = True) -> None:
    """A machine's life: start, write, end."""
    source = await pool.activate(spec)
    for offset, length, byte in ranges:
        guest_disk.write(source, offset, length, byte)
    await pool.deactivate(spec, commit=commit)


async def stream(data: bytes, piece: int = 40_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


# Existence


async def test_created_volume_reads_zero_and_is_listed(pool: Pool) -> None:
    await pool.create(ROOT)
    assert await pool.volumes() == [ROOT.vid]
    assert await pool.size(ROOT) == SIZE
    assert await pool.revisions(ROOT) == []
    assert await read(pool, ROOT) == bytes(SIZE)


async def test_create_of_existing_refused_content_kept(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 7))
    with pytest.raises(StorageError, match="exists"):
        await pool.create(ROOT)
    assert await read(pool, ROOT) == filled((0, 4096, 7))


async def test_cancelled_create_has_made_nothing(pool: Pool) -> None:
    for loop_steps in range(8):
        task = asyncio.ensure_future(pool.create(ROOT))
        for _ in range(loop_steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await pool.volumes() == []
    assert await pool.recover(frozenset()) == []


async def test_prepared_volume_holds_from_the_start_what_was_written(pool: Pool) -> None:
    def prepare(path: Path) -> None:
        assert path.stat().st_size == SIZE
        with path.open("r+b") as file:
            file.write(b"\5" * 4096)

    await pool.create(ROOT, prepare)
    assert await read(pool, ROOT) == filled((0, 4096, 5))
    assert await pool.revisions(ROOT) == []
    await run(pool, ROOT, (4096, 4096, 6))
    assert await read(pool, ROOT) == filled((0, 4096, 5), (4096, 4096, 6))


async def test_failed_preparation_has_made_nothing(pool: Pool, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageError("no tool")

    def shrink(path: Path) -> None:
        os.truncate(path, 512)

    with pytest.raises(StorageError, match="no tool"):
        await pool.create(ROOT, fail)
    with pytest.raises(StorageError, match="size"):
        await pool.create(ROOT, shrink)
    assert await pool.volumes() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    await pool.create(ROOT)
    assert await read(pool, ROOT) == bytes(SIZE)


async def test_volumes_that_keep_nothing_are_not_prepared(pool: Pool) -> None:
    for spec in (VOLATILE, APP):
        await pool.create(spec, lambda path: pytest.fail(f"{path} was prepared"))


async def test_create_of_volume_that_keeps_nothing_makes_none(pool: Pool) -> None:
    await pool.create(VOLATILE)
    await pool.create(APP)
    assert await pool.volumes() == []


@pytest.mark.parametrize(
    "vid", ["", "/", "/etc/passwd", "..", "a/../b", "../a", "a//b", "a/", ".scratch/x", "a b", "a\n", "ä", "x" * 300]
)
async def test_malformed_vid_refused_everywhere(pool: Pool, vid: str) -> None:
    bad = replace(ROOT, vid=vid)
    await pool.create(ROOT)
    with pytest.raises(StorageError):
        await pool.create(bad)
    with pytest.raises(StorageError):
        await pool.remove(bad)
    with pytest.raises(StorageError):
        await pool.activate(bad)
    with pytest.raises(StorageError):
        await pool.clone(ROOT, bad)
    with pytest.raises(StorageError):
        await pool.activate(replace(APP, source=vid))


@pytest.mark.parametrize("size", [0, -512, 100, 513, 2**63])
async def test_impossible_size_refused(pool: Pool, size: int) -> None:
    with pytest.raises(StorageError, match="size"):
        await pool.create(replace(ROOT, size=size))
    with pytest.raises(StorageError, match="size"):
        await pool.activate(replace(VOLATILE, size=size))
    assert await pool.volumes() == []


async def test_volume_inside_another_refused(pool: Pool) -> None:
    await pool.create(ROOT)
    with pytest.raises(StorageError, match="inside"):
        await pool.create(replace(ROOT, vid=ROOT.vid + "/inner"))
    with pytest.raises(StorageError):
        await pool.create(replace(ROOT, vid="qubes/debian"))
    assert await pool.volumes() == [ROOT.vid]


async def test_removed_and_created_again_reads_zero(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, SIZE, 9))
    await pool.remove(ROOT)
    assert await pool.volumes() == []
    await pool.create(ROOT)
    assert await read(pool, ROOT) == bytes(SIZE)


async def test_remove_of_absent_volume_is_fine(pool: Pool) -> None:
    await pool.remove(ROOT)
    await pool.remove(APP)


async def test_operations_on_absent_volume_say_so(pool: Pool) -> None:
    for operation in (
        pool.activate(ROOT),
        pool.activate(APP),
        pool.size(ROOT),
        pool.usage(ROOT),
        pool.revisions(ROOT),
        pool.revert(ROOT, "x"),
        pool.resize(ROOT, 2 * SIZE),
        pool.clear(ROOT),
        pool.clone(ROOT, COPY),
        pool.import_stream(ROOT, stream(b""), SIZE),
        read(pool, ROOT),
    ):
        with pytest.raises(NoSuchVolume):
            await operation


# Machines


async def test_committed_writes_are_kept(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    await run(pool, ROOT, (SIZE - 512, 512, 2))
    assert await read(pool, ROOT) == filled((0, 4096, 1), (SIZE - 512, 512, 2))


async def test_discarded_writes_are_gone(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    await run(pool, ROOT, (0, SIZE, 2), commit=False)
    assert await read(pool, ROOT) == filled((0, 4096, 1))
    assert guest_disk.content(await pool.activate(ROOT)) == filled((0, 4096, 1))


async def test_zeros_written_over_data_are_kept_through_folding(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, SIZE, 1))
    for _ in range(4):
        await run(pool, ROOT, (64 * KIB, 128 * KIB, 0))
        await pool.settle()
    assert await read(pool, ROOT) == filled((0, SIZE, 1), (64 * KIB, 128 * KIB, 0))


async def test_machine_sees_committed_content_and_its_own_writes(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    source = await pool.activate(ROOT)
    assert source.size == SIZE
    assert source.writable
    guest_disk.write(source, 8192, 512, 3)
    assert guest_disk.content(source) == filled((0, 4096, 1), (8192, 512, 3))
    assert await read(pool, ROOT) == filled((0, 4096, 1)), "export shows what is committed"


async def test_second_activation_refused_first_undisturbed(pool: Pool) -> None:
    await pool.create(ROOT)
    for spec in (ROOT, APP, VOLATILE):
        await pool.activate(spec)
        with pytest.raises(VolumeBusy):
            await pool.activate(spec)
        await pool.deactivate(spec, commit=True)


async def test_many_activations_at_once_one_wins(pool: Pool) -> None:
    await pool.create(ROOT)
    outcomes = await asyncio.gather(*(pool.activate(ROOT) for _ in range(10)), return_exceptions=True)
    losers = [outcome for outcome in outcomes if isinstance(outcome, VolumeBusy)]
    assert len(losers) == 9


async def test_cancelled_activation_leaves_volume_idle(pool: Pool) -> None:
    await pool.create(ROOT)
    for loop_steps in range(12):
        task = asyncio.ensure_future(pool.activate(ROOT))
        for _ in range(loop_steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await run(pool, ROOT)


async def test_deactivate_twice_or_without_activation_is_fine(pool: Pool) -> None:
    await pool.create(ROOT)
    for spec in (ROOT, APP, VOLATILE, COPY):
        await pool.deactivate(spec, commit=True)
    await run(pool, ROOT, (0, 512, 1))
    await pool.deactivate(ROOT, commit=True)
    await pool.deactivate(ROOT, commit=False)
    assert await read(pool, ROOT) == filled((0, 512, 1))


async def test_read_only_volume_gives_content_not_writable_keeps_nothing(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    source = await pool.activate(replace(ROOT, rw=False))
    assert not source.writable
    assert guest_disk.content(source) == filled((0, 512, 1))
    await pool.deactivate(replace(ROOT, rw=False), commit=True)
    assert len(await pool.revisions(ROOT)) == 1


async def test_volatile_reads_zero_each_time_and_leaves_nothing(pool: Pool) -> None:
    for _ in range(2):
        source = await pool.activate(VOLATILE)
        assert source.unlink_top
        assert guest_disk.content(source) == bytes(SIZE)
        guest_disk.write(source, 0, SIZE, 5)
        assert await pool.usage(VOLATILE) >= SIZE
        await pool.deactivate(VOLATILE, commit=True)
        assert not source.layers[0].path.exists()
        assert await pool.usage(VOLATILE) == 0


@pytest.mark.parametrize("spec", [VOLATILE, APP])
async def test_ephemeral_volume_works_and_leaves_nothing_readable(pool: Pool, tmp_path: Path, spec: VolumeSpec) -> None:
    """No file of the pool shows what was written, nor does one hold the key: neither while it runs nor afterwards."""
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    plain, encrypted = await pool.activate(spec), None
    await pool.deactivate(spec, commit=False)
    keys = set()
    for _ in range(2):
        encrypted = await pool.activate(replace(spec, ephemeral=True))
        assert (encrypted.size, encrypted.writable, encrypted.layers[1:]) == (plain.size, True, plain.layers[1:])
        assert guest_disk.content(encrypted) == (filled((0, 4096, 1)) if spec is APP else bytes(SIZE))
        guest_disk.write(encrypted, 512, 8192, 0xA7)
        assert guest_disk.content(encrypted)[512:8704] == bytes([0xA7]) * 8192
        assert encrypted.key is not None
        keys.add(encrypted.key)
        found = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert bytes([0xA7]) * 16 not in found
        assert encrypted.key not in found
        assert base64.urlsafe_b64decode(encrypted.key) not in found
        await pool.deactivate(replace(spec, ephemeral=True), commit=True)
        assert not encrypted.layers[0].path.exists()
    assert len(keys) == 2, "a key is used once"
    assert await read(pool, ROOT) == filled((0, 4096, 1))


async def test_ephemeral_volume_grows_while_it_runs(pool: Pool) -> None:
    await pool.create(ROOT)
    source = await pool.activate(replace(APP, ephemeral=True))
    guest_disk.grow(source, 2 * SIZE)
    guest_disk.write(source, 2 * SIZE - 512, 512, 4)
    assert guest_disk.content(source) == filled((2 * SIZE - 512, 512, 4), size=2 * SIZE)


async def test_ephemeral_volume_found_running_after_a_restart_ends_like_any(opener: Callable[[], Pool]) -> None:
    """What was written down of it has no key."""
    spec = replace(VOLATILE, ephemeral=True)
    first = opener()
    source = await first.activate(spec)
    await first.aclose()
    second = opener()
    await second.mark_active(spec, source.without_key())
    assert await second.recover(frozenset({spec.vid})) == []
    assert source.layers[0].path.exists()
    with pytest.raises(VolumeBusy):
        await second.activate(spec)
    await second.deactivate(spec, commit=True)
    assert not source.layers[0].path.exists()
    assert (await second.activate(spec)).key not in (None, source.key)


async def test_key_is_not_in_what_is_shown_or_written_down(pool: Pool) -> None:
    source = await pool.activate(replace(VOLATILE, ephemeral=True))
    assert source.key is not None
    assert source.key.decode() not in repr(source)
    assert source.without_key().key is None
    assert source.without_key() == source


@pytest.mark.parametrize("rw", [True, False])
async def test_volume_that_is_kept_cannot_be_ephemeral(pool: Pool, rw: bool) -> None:
    await pool.create(ROOT)
    with pytest.raises(StorageError, match="ephemeral"):
        await pool.activate(replace(ROOT, ephemeral=True, rw=rw))
    await run(pool, ROOT, (0, 512, 1))


async def test_plain_volume_has_no_key(pool: Pool) -> None:
    await pool.create(ROOT)
    for spec in (ROOT, APP, VOLATILE):
        assert (await pool.activate(spec)).key is None


# Snapshots


async def test_snapshots_of_one_source_do_not_see_each_other(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    one, two = await pool.activate(APP), await pool.activate(OTHER_APP)
    guest_disk.write(one, 0, 512, 2)
    guest_disk.write(two, 512, 512, 3)
    assert guest_disk.content(one) == filled((0, 4096, 1), (0, 512, 2))
    assert guest_disk.content(two) == filled((0, 4096, 1), (512, 512, 3))
    await pool.deactivate(APP, commit=True)
    await pool.deactivate(OTHER_APP, commit=True)
    assert await read(pool, ROOT) == filled((0, 4096, 1))
    assert guest_disk.content(await pool.activate(APP)) == filled((0, 4096, 1))


async def test_running_snapshot_keeps_the_version_it_started_with(pool: Pool) -> None:
    """MC-58, with everything that makes layers disappear going on meanwhile."""
    spec = replace(ROOT, revisions_to_keep=0)
    await pool.create(spec)
    await run(pool, spec, (0, 4096, 1))
    source = await pool.activate(APP)
    assert not await pool.is_outdated(APP)
    for byte in (2, 3, 4):
        await run(pool, spec, (0, 4096, byte))
        await pool.settle()
    await pool.import_stream(spec, stream(filled((0, SIZE, 5))), SIZE)
    await pool.settle()
    assert guest_disk.content(source) == filled((0, 4096, 1))
    assert await pool.is_outdated(APP)
    await pool.deactivate(APP, commit=False)
    await pool.settle()
    assert guest_disk.content(await pool.activate(APP)) == filled((0, SIZE, 5))
    assert not await pool.is_outdated(APP)


async def test_snapshot_of_active_volume_has_its_committed_content(pool: Pool) -> None:
    await pool.create(ROOT)
    source = await pool.activate(ROOT)
    guest_disk.write(source, 0, 512, 1)
    assert guest_disk.content(await pool.activate(APP)) == bytes(SIZE)


async def test_source_of_running_snapshot_not_removed(pool: Pool) -> None:
    await pool.create(ROOT)
    await pool.activate(APP)
    with pytest.raises(VolumeBusy):
        await pool.remove(ROOT)
    await pool.deactivate(APP, commit=False)
    await pool.remove(ROOT)
    assert await pool.volumes() == []


async def test_first_layer_is_fresh_the_others_are_those_of_the_source(pool: Pool) -> None:
    """So a caller may put a layer of its own between the two."""
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    one, two = await pool.activate(APP), await pool.activate(OTHER_APP)
    assert one.layers[0] != two.layers[0]
    assert one.layers[1:] == two.layers[1:]
    assert len((await pool.activate(VOLATILE)).layers) == 1
    # What is found running after a restart has such a layer.
    own = replace(one.layers[0], path=one.layers[0].path.with_name("own"))
    await pool.deactivate(APP, commit=False)
    await pool.mark_active(APP, replace(one, layers=(one.layers[0], own, *one.layers[1:])))
    assert not await pool.is_outdated(APP)
    await run(pool, ROOT, (0, 4096, 2))
    assert await pool.is_outdated(APP)


# Identity of content


async def test_revision_key_changes_with_the_content_and_only_then(pool: Pool) -> None:
    spec = replace(ROOT, revisions_to_keep=1)
    await pool.create(spec)
    key = await pool.revision_key(spec)
    seen = [key]

    async def changed(operation: Awaitable[object]) -> None:
        await operation
        seen.append(await pool.revision_key(spec))
        await pool.settle()
        assert await pool.revision_key(spec) == seen[-1], "folding changes no content"

    for byte in range(1, 5):
        await changed(run(pool, spec, (0, 4096, byte)))
    await changed(pool.revert(spec, (await pool.revisions(spec))[0].id))
    await changed(pool.resize(spec, 2 * SIZE))
    await changed(pool.clear(spec))
    await changed(pool.import_stream(spec, stream(bytes(SIZE)), SIZE))
    await pool.create(COPY)
    await changed(pool.clone(COPY, spec))
    assert len(set(seen)) == len(seen)
    await run(pool, spec, (0, 512, 9), commit=False)
    await pool.set_revisions_to_keep(spec, 0)
    await pool.resize(spec, await pool.size(spec))
    await pool.settle()
    assert await pool.revision_key(spec) == seen[-1]


async def test_revision_key_of_a_snapshot_is_that_of_its_source(pool: Pool) -> None:
    await pool.create(ROOT)
    key = await pool.revision_key(ROOT)
    assert await pool.revision_key(APP) == await pool.revision_key(OTHER_APP) == key
    source = await pool.activate(APP)
    assert source.revision == key
    await run(pool, ROOT, (0, 512, 1))
    assert source.revision == key != await pool.revision_key(APP)
    assert (await pool.activate(ROOT)).revision == await pool.revision_key(ROOT)


async def test_revision_key_survives_a_restart(opener: Callable[[], Pool]) -> None:
    first = opener()
    await first.create(ROOT)
    await run(first, ROOT, (0, 512, 1))
    key = await first.revision_key(ROOT)
    await first.aclose()
    assert await opener().revision_key(ROOT) == key


async def test_revision_keys_of_volumes_made_after_each_other_under_one_name_differ(pool: Pool) -> None:
    keys = set()
    for _ in range(5):
        await pool.create(ROOT)
        keys.add(await pool.revision_key(ROOT))
        await pool.remove(ROOT)
    await pool.create(COPY)
    keys.add(await pool.revision_key(COPY))
    assert len(keys) == 6


async def test_what_keeps_nothing_has_no_revision_key(pool: Pool) -> None:
    for spec in (VOLATILE, APP, ROOT):
        with pytest.raises(NoSuchVolume):
            await pool.revision_key(spec)


# Revisions


@pytest.mark.parametrize(("keep", "kept"), [(-1, 0), (0, 0), (1, 1), (3, 3)])
async def test_commit_keeps_as_many_older_revisions_as_asked(pool: Pool, keep: int, kept: int) -> None:
    spec = replace(ROOT, revisions_to_keep=keep)
    await pool.create(spec)
    for byte in range(1, 6):
        await run(pool, spec, (0, 512, byte))
    await pool.settle()
    revisions = await pool.revisions(spec)
    assert len(revisions) == kept
    assert [revision.id for revision in revisions] == sorted(revision.id for revision in revisions)
    assert await read(pool, spec) == filled((0, 512, 5))


async def test_revert_brings_back_each_revision_and_can_be_undone(pool: Pool) -> None:
    spec = replace(ROOT, revisions_to_keep=6)
    await pool.create(spec)
    for number in range(1, 4):
        await run(pool, spec, (number * 4096, 4096, number))
    ids = [revision.id for revision in await pool.revisions(spec)]
    expected = [filled(*((n * 4096, 4096, n) for n in range(1, count + 1))) for count in range(4)]
    for revision_id, content in zip(ids, expected, strict=False):
        await pool.revert(spec, revision_id)
        await pool.settle()
        assert await read(pool, spec) == content
    newest_before = (await pool.revisions(spec))[3].id
    await pool.revert(spec, newest_before)
    assert await read(pool, spec) == expected[3]


async def test_writing_after_a_revert_starts_from_the_reverted_content(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    await run(pool, ROOT, (0, 4096, 2))
    await pool.revert(ROOT, (await pool.revisions(ROOT))[1].id)
    await run(pool, ROOT, (4096, 4096, 3))
    await pool.settle()
    assert await read(pool, ROOT) == filled((0, 4096, 1), (4096, 4096, 3))


async def test_revert_to_unknown_or_newest_revision_refused(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    for revision_id in ("", "nonsense", "../x", "20261123T101500-000001"):
        with pytest.raises(NoSuchRevision):
            await pool.revert(ROOT, revision_id)


async def test_revisions_to_keep_lowered_drops_the_oldest_at_once(pool: Pool) -> None:
    await pool.create(ROOT)
    for byte in (1, 2, 3):
        await run(pool, ROOT, (0, 512, byte))
    newest_older = (await pool.revisions(ROOT))[-1]
    await pool.set_revisions_to_keep(ROOT, 1)
    await pool.settle()
    assert await pool.revisions(ROOT) == [newest_older]
    await pool.set_revisions_to_keep(ROOT, -1)
    assert await pool.revisions(ROOT) == []
    assert await read(pool, ROOT) == filled((0, 512, 3))
    for count in (-2, 10**6):
        with pytest.raises(StorageError):
            await pool.set_revisions_to_keep(ROOT, count)


# Clones


async def test_clone_is_independent_of_its_source(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 4096, 1))
    await pool.clone(ROOT, COPY)
    for number in range(4):
        await run(pool, COPY, (4096 * number, 512, 10 + number))
        await run(pool, ROOT, (8192 * number, 512, 20 + number))
        await pool.settle()
    assert await read(pool, COPY) == filled((0, 4096, 1), *((4096 * n, 512, 10 + n) for n in range(4)))
    assert await read(pool, ROOT) == filled((0, 4096, 1), *((8192 * n, 512, 20 + n) for n in range(4)))
    await pool.remove(ROOT)
    assert await read(pool, COPY) == filled((0, 4096, 1), *((4096 * n, 512, 10 + n) for n in range(4)))


async def test_clone_of_clones_stays_right_and_short(pool: Pool) -> None:
    """Layers shared with other volumes cannot be folded in place; chains must not grow for ever all the same."""
    specs = [replace(ROOT, vid=f"qubes/c{number}/root", revisions_to_keep=1) for number in range(14)]
    await pool.create(specs[0])
    for number, (source, target) in enumerate(pairwise(specs), start=1):
        for byte in (number, number + 100):
            await run(pool, source, (4096 * number, 512, byte))
        await pool.clone(source, target)
    await pool.settle()
    expected = filled(*((4096 * n, 512, n + 100) for n in range(1, 14)))
    assert await read(pool, specs[-1]) == expected
    active = await pool.activate(specs[-1])
    assert len(active.layers) < 20
    assert guest_disk.content(active) == expected


async def test_clone_onto_existing_replaces_content_and_size_keeps_revision(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    await pool.create(replace(COPY, size=2 * SIZE))
    await run(pool, COPY, (SIZE, 512, 2))
    await pool.clone(ROOT, COPY)
    assert await read(pool, COPY) == filled((0, 512, 1))
    await pool.revert(COPY, (await pool.revisions(COPY))[-1].id)
    assert await read(pool, COPY) == filled((SIZE, 512, 2), size=2 * SIZE)


async def test_clone_of_active_source_has_committed_content_active_target_refused(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    guest_disk.write(await pool.activate(ROOT), 0, 512, 2)
    await pool.clone(ROOT, COPY)
    assert await read(pool, COPY) == filled((0, 512, 1))
    with pytest.raises(VolumeBusy):
        await pool.clone(COPY, ROOT)
    with pytest.raises(StorageError):
        await pool.clone(COPY, COPY)
    with pytest.raises(StorageError):
        await pool.clone(COPY, VOLATILE)


# Size


async def test_resize_idle_appends_zeros(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, SIZE, 1))
    await pool.resize(ROOT, 3 * SIZE)
    assert await pool.size(ROOT) == 3 * SIZE
    assert await read(pool, ROOT) == filled((0, SIZE, 1), size=3 * SIZE)
    await run(pool, ROOT, (2 * SIZE, 512, 2))
    for byte in (3, 4, 5):
        await run(pool, ROOT, (0, 512, byte))
    await pool.settle()
    assert await read(pool, ROOT) == filled((0, SIZE, 1), (0, 512, 5), (2 * SIZE, 512, 2), size=3 * SIZE)


@pytest.mark.parametrize("machine_follows", [True, False])
async def test_resize_while_active_holds_after_commit_and_discard(pool: Pool, machine_follows: bool) -> None:
    await pool.create(ROOT)
    for commit in (True, False):
        source = await pool.activate(ROOT)
        size = await pool.size(ROOT) + SIZE
        await pool.resize(ROOT, size)
        if machine_follows:
            guest_disk.grow(source, size)
            guest_disk.write(source, size - 512, 512, 1)
        await pool.deactivate(ROOT, commit=commit)
        assert await pool.size(ROOT) == size
    kept = [(2 * SIZE - 512, 512, 1)] if machine_follows else []
    assert await read(pool, ROOT) == filled(*kept, size=3 * SIZE)
    assert guest_disk.content(await pool.activate(ROOT)) == filled(*kept, size=3 * SIZE)


async def test_shrinking_refused(pool: Pool) -> None:
    await pool.create(ROOT)
    with pytest.raises(StorageError, match="shrink"):
        await pool.resize(ROOT, SIZE // 2)
    with pytest.raises(StorageError, match="shrink"):
        await pool.resize(VOLATILE, SIZE // 2)
    assert await pool.size(ROOT) == SIZE


async def test_snapshot_is_at_least_as_large_as_its_source(pool: Pool) -> None:
    await pool.create(replace(ROOT, size=2 * SIZE))
    assert await pool.size(APP) == 2 * SIZE
    assert (await pool.activate(APP)).size == 2 * SIZE
    larger = replace(OTHER_APP, size=4 * SIZE)
    assert await pool.size(larger) == 4 * SIZE
    assert len(guest_disk.content(await pool.activate(larger))) == 4 * SIZE


# Streams


@pytest.mark.parametrize("piece", [1000, 65536, 3 * MIB])
async def test_imported_stream_is_exported_as_it_was(pool: Pool, piece: int) -> None:
    noise = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(8192))
    data = noise[:100_000] + bytes(SIZE) + noise[100_000:] + bytes(-(len(noise) + SIZE) % 512)
    await pool.create(ROOT)
    await run(pool, ROOT, (0, SIZE, 1))
    await pool.import_stream(ROOT, stream(data, piece), len(data))
    assert await pool.size(ROOT) == len(data)
    assert await read(pool, ROOT) == data
    await pool.revert(ROOT, (await pool.revisions(ROOT))[-1].id)
    assert await read(pool, ROOT) == filled((0, SIZE, 1))


async def test_imported_zeros_take_no_space(pool: Pool) -> None:
    await pool.create(ROOT)
    await pool.import_stream(ROOT, stream(bytes(8 * MIB)), 8 * MIB)
    assert await pool.usage(ROOT) < MIB


async def test_imported_file_is_exported_as_it_was(pool: Pool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(filled((70_000, 5000, 3), size=3 * SIZE))
    await pool.create(ROOT)
    await pool.import_file(ROOT, image)
    assert await read(pool, ROOT) == image.read_bytes()
    image.write_bytes(b"odd")
    with pytest.raises(StorageError, match="size"):
        await pool.import_file(ROOT, image)
    with pytest.raises(StorageError):
        await pool.import_file(ROOT, tmp_path / "absent")


@pytest.mark.parametrize("length", [0, 512, SIZE - 1, SIZE + 1, 2 * SIZE])
async def test_import_of_wrong_length_keeps_the_old_content(pool: Pool, length: int) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    with pytest.raises(StorageError, match="announced"):
        await pool.import_stream(ROOT, stream(b"x" * length), SIZE)
    assert await read(pool, ROOT) == filled((0, 512, 1))
    await run(pool, ROOT)


async def test_import_whose_stream_fails_keeps_the_old_content(pool: Pool) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionResetError

    await pool.create(ROOT)
    with pytest.raises(ConnectionResetError):
        await pool.import_stream(ROOT, broken(), SIZE)
    assert await read(pool, ROOT) == bytes(SIZE)
    await run(pool, ROOT)


async def test_volume_being_imported_is_busy_but_readable(pool: Pool) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 512
        await more.wait()
        yield b"x" * (SIZE - 512)

    await pool.create(ROOT)
    importing = asyncio.ensure_future(pool.import_stream(ROOT, slow(), SIZE))
    try:
        while True:  # until the import has begun
            await asyncio.sleep(0)
            try:
                await pool.activate(ROOT)
            except VolumeBusy:
                break
            await pool.deactivate(ROOT, commit=False)
        for operation in (pool.remove(ROOT), pool.clear(ROOT), pool.import_stream(ROOT, stream(b""), SIZE)):
            with pytest.raises(VolumeBusy):
                await operation
        assert await read(pool, ROOT) == bytes(SIZE)
    finally:
        more.set()
        with suppress(VolumeBusy):  # the probing activation may have come first
            await importing
    await run(pool, ROOT)


async def test_content_operations_on_active_volume_refused(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, 512, 1))
    older = (await pool.revisions(ROOT))[0].id
    await pool.activate(ROOT)
    for operation in (
        pool.remove(ROOT),
        pool.clear(ROOT),
        pool.revert(ROOT, older),
        pool.import_stream(ROOT, stream(bytes(SIZE)), SIZE),
    ):
        with pytest.raises(VolumeBusy):
            await operation
    await pool.deactivate(ROOT, commit=True)
    assert await read(pool, ROOT) == filled((0, 512, 1))


async def test_export_begun_before_changes_shows_one_version_whole(pool: Pool) -> None:
    spec = replace(ROOT, size=4 * MIB, revisions_to_keep=0)
    await pool.create(spec)
    await run(pool, spec, (0, 4 * MIB, 1))
    pieces = pool.export(spec)
    data = [await anext(pieces)]
    for byte in (2, 3):
        await run(pool, spec, (0, 4 * MIB, byte))
        await pool.settle()
    data += [piece async for piece in pieces]
    assert b"".join(data) == filled((0, 4 * MIB, 1), size=4 * MIB)
    await pool.settle()
    assert await read(pool, spec) == filled((0, 4 * MIB, 3), size=4 * MIB)


async def test_cleared_volume_reads_zero_and_can_be_reverted(pool: Pool) -> None:
    await pool.create(ROOT)
    await run(pool, ROOT, (0, SIZE, 1))
    await pool.clear(ROOT)
    assert await read(pool, ROOT) == bytes(SIZE)
    assert guest_disk.content(await pool.activate(ROOT)) == bytes(SIZE)
    await pool.deactivate(ROOT, commit=False)
    await pool.revert(ROOT, (await pool.revisions(ROOT))[-1].id)
    assert await read(pool, ROOT) == filled((0, SIZE, 1))


async def test_usage_follows_what_is_written(pool: Pool) -> None:
    spec = replace(ROOT, size=16 * MIB, revisions_to_keep=0)
    await pool.create(spec)
    assert await pool.usage(spec) < MIB
    await run(pool, spec, (0, 4 * MIB, 1))
    await pool.settle()
    assert 4 * MIB <= await pool.usage(spec) < 6 * MIB
    usage = await pool.pool_usage()
    assert 4 * MIB < usage.used < usage.size


# Restarts


@pytest.mark.parametrize("commit", [True, False])
async def test_volume_active_when_the_daemon_died_waits_for_its_settlement(
    opener: Callable[[], Pool], commit: bool
) -> None:
    before = opener()
    await before.recover(frozenset())
    await before.create(ROOT)
    guest_disk.write(await before.activate(ROOT), 0, 512, 1)
    await before.aclose()

    after = opener()
    with pytest.raises(VolumeBusy):
        await after.activate(ROOT)
    lines = await after.recover(frozenset())
    assert any(ROOT.vid in line for line in lines)
    with pytest.raises(VolumeBusy):
        await after.remove(ROOT)
    await after.deactivate(ROOT, commit=commit)
    assert await read(after, ROOT) == (filled((0, 512, 1)) if commit else bytes(SIZE))
    await run(after, ROOT)
    await after.aclose()


async def test_machines_that_outlive_the_daemon_keep_their_disks(opener: Callable[[], Pool]) -> None:
    spec = replace(ROOT, revisions_to_keep=0)
    before = opener()
    await before.recover(frozenset())
    await before.create(spec)
    await run(before, spec, (0, 4096, 1))
    snapshot, volatile = await before.activate(APP), await before.activate(VOLATILE)
    await before.activate(OTHER_APP)  # of a machine that dies with the daemon
    await before.aclose()

    after = opener()
    await after.mark_active(APP, snapshot)
    await after.mark_active(VOLATILE, volatile)
    lines = await after.recover(frozenset({APP.vid, VOLATILE.vid}))
    assert len(lines) == 1
    assert "personal" in lines[0]
    for byte in (2, 3):
        await run(after, spec, (0, 4096, byte))
        await after.settle()
    assert guest_disk.content(snapshot) == filled((0, 4096, 1))
    assert await after.is_outdated(APP)
    with pytest.raises(VolumeBusy):
        await after.activate(APP)
    await after.deactivate(APP, commit=False)
    await after.deactivate(VOLATILE, commit=False)
    assert await after.recover(frozenset()) == []
    await after.aclose()


async def test_configuration_is_shown_as_given(pool: Pool) -> None:
    assert pool.name == "default"
    assert pool.driver in DRIVERS
    assert pool.config["reserve_mib"] == "0"
    known = {option.name for option in DRIVERS[pool.driver].options}
    assert set(pool.config) <= known


async def test_reserve_touched_everything_that_takes_space_refused(tmp_path: Path, opener: Callable[[], Pool]) -> None:
    """MC-60: refused beforehand, with figures, nothing changed."""
    roomy = opener()
    await roomy.recover(frozenset())
    await roomy.create(ROOT)
    await roomy.aclose()
    # A terabyte is more than a test machine has free, whatever it has.
    tight = open_pool(PoolConfig("default", roomy.driver, {**roomy.config, "reserve_mib": str(1024 * 1024)}))
    for operation in (
        tight.create(COPY),
        tight.activate(ROOT),
        tight.activate(APP),
        tight.activate(VOLATILE),
        tight.clone(ROOT, COPY),
        tight.clear(ROOT),
        tight.import_stream(ROOT, stream(bytes(SIZE)), SIZE),
    ):
        with pytest.raises(NoSpace, match=r"MiB free in .* MiB are kept as a reserve"):
            await operation
    assert await tight.volumes() == [ROOT.vid]
    assert await tight.recover(frozenset()) == []
    assert await read(tight, ROOT) == bytes(SIZE)
    await tight.aclose()
