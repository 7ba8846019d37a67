"""Run by test_storage_full_disk.py inside a user namespace, on a small tmpfs: what a full disk does to a pool (MC-60).

Usage: full_disk.py FOLDER. Exit status 0 when all held.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

from insula.model.block import KIB, MIB, VolumeSpec
from insula.storage.pool import NoSpace
from insula.storage.qcow2_pool import Qcow2Pool
from insula.testing import guest_disk

SIZE = 32 * MIB
"""Twice the disk's."""
ROOT = VolumeSpec("root", "default", "qubes/debian/root", SIZE, save_on_stop=True, revisions_to_keep=0)
NEW = replace(ROOT, vid="qubes/new/root")
APP = VolumeSpec("root", "default", "qubes/work/root", SIZE, snap_on_start=True, source=ROOT.vid)


class Filler:
    """Takes all the space that is left, gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        with self.path.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4 * KIB))
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self.path.unlink()


async def refused(work: Awaitable[object]) -> None:
    try:
        await work
    except NoSpace as error:
        assert "disk is full" in str(error), error
        return
    raise AssertionError("it was not refused")


async def content(pool: Qcow2Pool) -> bytes:
    return b"".join([piece async for piece in pool.export(ROOT)])


async def noise() -> AsyncIterator[bytes]:
    for _ in range(32):
        yield os.urandom(MIB)


async def scenario(folder: Path) -> None:
    # No reserve: the disk fills up in the middle of operations that were let begin.
    pool = Qcow2Pool("default", {}, folder / "pool", reserve=0)
    await pool.recover(frozenset())
    await pool.create(ROOT)
    guest_disk.write(await pool.activate(ROOT), 0, MIB, 1)
    await pool.deactivate(ROOT, commit=True)
    await pool.settle()
    expected = bytes([1]) * MIB + bytes(SIZE - MIB)

    # import: larger than the disk
    await refused(pool.import_stream(ROOT, noise(), SIZE))
    assert await content(pool) == expected

    # nothing at all can be written
    with Filler(folder / "filler"):
        await refused(pool.create(NEW))
        await refused(pool.clone(ROOT, NEW))
        await refused(pool.clear(ROOT))
        await refused(pool.activate(ROOT))
        await refused(pool.activate(APP))
        await refused(pool.resize(ROOT, 2 * SIZE))
        assert await pool.volumes() == [ROOT.vid]
        assert await content(pool) == expected

    # a commit that cannot be recorded: the volume stays active and the commit can be repeated
    guest_disk.write(await pool.activate(ROOT), 2 * MIB, 64 * KIB, 2)
    with Filler(folder / "filler"):
        await refused(pool.deactivate(ROOT, commit=True))
    await pool.deactivate(ROOT, commit=True)
    expected = expected[: 2 * MIB] + bytes([2]) * 64 * KIB + expected[2 * MIB + 64 * KIB :]
    await pool.settle()
    assert await content(pool) == expected

    # a machine whose overlay outgrows the disk; what it could not write is its problem, the volume is whole
    source = await pool.activate(ROOT)
    try:
        guest_disk.write(source, 0, SIZE, 3)
    except subprocess.CalledProcessError:
        await pool.deactivate(ROOT, commit=False)
    else:
        raise AssertionError("the disk was not full")
    assert await content(pool) == expected

    # no room to fold: not folded, still right; folded when there is room
    guest_disk.write(await pool.activate(ROOT), 4 * MIB, 3 * MIB, 4)
    await pool.deactivate(ROOT, commit=True)
    expected = expected[: 4 * MIB] + bytes([4]) * 3 * MIB + expected[7 * MIB :]
    with Filler(folder / "filler"):
        await pool.settle()
        assert layer_count(folder) == 2
    assert await content(pool) == expected
    await pool.settle()
    assert layer_count(folder) == 1
    assert await content(pool) == expected
    assert await pool.recover(frozenset()) == []
    await pool.aclose()


def layer_count(folder: Path) -> int:
    return len([path for path in (folder / "pool" / ROOT.vid).iterdir() if path.suffix in (".raw", ".qcow2")])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(scenario(Path(sys.argv[1])))
