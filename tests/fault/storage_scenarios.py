"""Operations of the qcow2 pool that faults are injected into, each with the states that may be found afterwards.

A scenario starts from a prepared pool on the disk, does one operation, and names for every volume the contents
(one byte repeated) that are right after an interruption: the old or the new, whole.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from insula.model.block import KIB, VolumeSpec
from insula.storage.qcow2_pool import Qcow2Pool
from insula.testing import guest_disk

T = TypeVar("T")
SIZE = 256 * KIB
ROOT = VolumeSpec("root", "default", "qubes/debian/root", SIZE, save_on_stop=True, revisions_to_keep=1)
COPY = replace(ROOT, vid="qubes/copy/root")
NEW = replace(ROOT, vid="qubes/new/root")
APP = VolumeSpec("root", "default", "qubes/work/root", SIZE, snap_on_start=True, source=ROOT.vid)
VOLATILE = VolumeSpec("volatile", "default", "qubes/work/volatile", SIZE)
LAYERS_WANTED = 3
"""Tests lower the pool's limit to this, so that few layers are a long chain."""
GONE = None
"""Instead of a byte: the volume does not exist."""
Contents = dict[str, set[int | None]]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def open_pool(folder: Path) -> Qcow2Pool:
    return Qcow2Pool("default", {}, folder, reserve=0)


async def _pieces(byte: int) -> AsyncIterator[bytes]:
    for _ in range(4):
        yield bytes([byte]) * (SIZE // 4)


async def commit(pool: Qcow2Pool, spec: VolumeSpec, byte: int) -> None:
    guest_disk.write(await pool.activate(spec), 0, SIZE, byte)
    await pool.deactivate(spec, commit=True)


async def prepare(folder: Path) -> None:
    """ROOT holds 2 (older: 1), COPY is a clone of an older state with 3 on it (older: 1)."""
    pool = open_pool(folder)
    await pool.recover(frozenset())
    await pool.create(ROOT)
    await commit(pool, ROOT, 1)
    await pool.clone(ROOT, COPY)
    await commit(pool, ROOT, 2)
    await commit(pool, COPY, 3)
    await pool.settle()
    await pool.aclose()


async def prepare_active(folder: Path) -> None:
    """As above; a machine has written 5 to ROOT and has ended."""
    await prepare(folder)
    pool = open_pool(folder)
    guest_disk.write(await pool.activate(ROOT), 0, SIZE, 5)
    await pool.aclose()


async def prepare_unfolded(folder: Path) -> None:
    """As :func:`prepare`, with ROOT at 4 and layers to fold (nothing is tidied before recovery)."""
    await prepare(folder)
    pool = open_pool(folder)
    for byte in (7, 8, 4):
        await commit(pool, ROOT, byte)
    await pool.set_revisions_to_keep(ROOT, 0)
    await pool.aclose()


async def prepare_long_shared(folder: Path) -> None:
    """COPY is a clone of ROOT with so many layers that they are to be flattened."""
    pool = open_pool(folder)
    spec = replace(ROOT, revisions_to_keep=20)
    await pool.create(spec)
    for byte in range(1, LAYERS_WANTED + 3):
        await commit(pool, spec, byte)
    await pool.clone(spec, COPY)
    await pool.aclose()


async def _tidy(pool: Qcow2Pool) -> None:
    await pool.recover(frozenset())
    await pool.settle()


def _fill(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        for start in range(0, SIZE, SIZE // 4):
            os.pwrite(fd, bytes([6]) * (SIZE // 4), start)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Scenario:
    operation: Callable[[Qcow2Pool], Awaitable[object]]
    allowed: Contents
    prepare: Callable[[Path], Coroutine[Any, Any, None]] = prepare


SAME: Contents = {ROOT.vid: {2}, COPY.vid: {3}, NEW.vid: {GONE}}
SCENARIOS: dict[str, Scenario] = {
    "create": Scenario(lambda pool: pool.create(NEW), SAME | {NEW.vid: {GONE, 0}}),
    "create prepared": Scenario(lambda pool: pool.create(NEW, _fill), SAME | {NEW.vid: {GONE, 6}}),
    "remove": Scenario(lambda pool: pool.remove(COPY), SAME | {COPY.vid: {3, GONE}}),
    "activate": Scenario(lambda pool: pool.activate(ROOT), SAME),
    "activate snapshot": Scenario(lambda pool: pool.activate(APP), SAME),
    "activate volatile": Scenario(lambda pool: pool.activate(VOLATILE), SAME),
    "activate ephemeral snapshot": Scenario(lambda pool: pool.activate(replace(APP, ephemeral=True)), SAME),
    "activate ephemeral volatile": Scenario(lambda pool: pool.activate(replace(VOLATILE, ephemeral=True)), SAME),
    "commit": Scenario(lambda pool: pool.deactivate(ROOT, commit=True), SAME | {ROOT.vid: {2, 5}}, prepare_active),
    "discard": Scenario(lambda pool: pool.deactivate(ROOT, commit=False), SAME, prepare_active),
    "clone to new": Scenario(lambda pool: pool.clone(ROOT, NEW), SAME | {NEW.vid: {GONE, 2}}),
    "clone to existing": Scenario(lambda pool: pool.clone(ROOT, COPY), SAME | {COPY.vid: {2, 3}}),
    "import": Scenario(lambda pool: pool.import_stream(ROOT, _pieces(6), SIZE), SAME | {ROOT.vid: {2, 6}}),
    "clear": Scenario(lambda pool: pool.clear(ROOT), SAME | {ROOT.vid: {2, 0}}),
    "resize": Scenario(lambda pool: pool.resize(ROOT, 2 * SIZE), SAME),
    "drop revisions": Scenario(lambda pool: pool.set_revisions_to_keep(ROOT, 0), SAME),
    "fold": Scenario(_tidy, SAME | {ROOT.vid: {4}}, prepare_unfolded),
    "flatten": Scenario(_tidy, {ROOT.vid: {LAYERS_WANTED + 2}, COPY.vid: {LAYERS_WANTED + 2}}, prepare_long_shared),
}


async def check(folder: Path, allowed: Contents) -> None:
    """What a daemon finds that starts on ``folder``: every volume old or new, whole and usable, nothing left over."""
    pool = open_pool(folder)
    for spec in (ROOT, COPY, NEW):  # as the daemon settles what was running
        await pool.deactivate(spec, commit=False)
    await pool.recover(frozenset())
    await pool.settle()
    present = await pool.volumes()
    for spec in (ROOT, COPY, NEW):
        possible = allowed.get(spec.vid, {GONE})
        if spec.vid not in present:
            assert GONE in possible, f"{spec.vid} is gone"
            continue
        content = await _content(pool, spec)
        assert content in [filled for byte in possible if byte is not GONE for filled in _filled(byte)], spec.vid
        await _use(pool, spec)
    assert await pool.recover(frozenset()) == [], "the first recovery left something over"
    await pool.settle()
    await pool.aclose()
    assert list((folder / ".scratch").iterdir()) == []


async def _content(pool: Qcow2Pool, spec: VolumeSpec) -> bytes:
    return b"".join([piece async for piece in pool.export(spec)])


def _filled(byte: int) -> list[bytes]:
    data = bytes([byte]) * SIZE
    return [data, data + bytes(SIZE)]  # before and after the resize


async def _use(pool: Qcow2Pool, spec: VolumeSpec) -> None:
    """A further commit, and every older revision can be read."""
    size = await pool.size(spec)
    source = await pool.activate(spec)
    guest_disk.write(source, 0, size, 9)
    await pool.deactivate(spec, commit=True)
    await pool.settle()
    assert await _content(pool, spec) == bytes([9]) * size
    for revision in await pool.revisions(spec):
        await pool.revert(spec, revision.id)
        await _content(pool, spec)
