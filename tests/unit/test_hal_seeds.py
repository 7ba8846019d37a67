from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from insula.hal.errors import DriverError, SeedUnusable
from insula.hal.qemu.seed_files import FileNote, Manifest, machine_memory, state_memory, write_seed
from insula.hal.qemu.seeds import SeedCache, store

QEMU = "7.2.22"
SIZE = 1 << 20
MANIFEST = Manifest(qemu=QEMU, model="model", memory=FileNote(SIZE, ""), state=FileNote(5, ""))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "seed"
    target.mkdir()
    with ExitStack() as stack:
        write_seed(target, MANIFEST, *machine(stack), Event())
    return target


def machine(stack: ExitStack) -> tuple[int, int]:
    memory, state = machine_memory(SIZE), state_memory()
    for fd in (memory, state):
        stack.callback(os.close, fd)
        os.pwrite(fd, b"bytes", 0)
    return memory, state


@pytest.fixture
async def cache() -> AsyncIterator[SeedCache]:
    """All it opened must be closed in the end."""
    before = open_count()
    made = SeedCache(QEMU)
    yield made
    await made.close()
    assert open_count() == before


def open_count() -> int:
    return sum(1 for path in Path("/proc/self/fd").iterdir() if is_of_a_seed(path))


def is_of_a_seed(path: Path) -> bool:
    """Whether a descriptor's link in /proc leads to a loaded seed; the one that lists the folder is gone already."""
    return path.is_symlink() and str(path.readlink()).startswith("/memfd:seed-")


async def test_many_at_once_get_one_seed_loaded_once(cache: SeedCache, folder: Path) -> None:
    seeds = await asyncio.gather(*(cache.get(folder) for _ in range(20)))
    assert {id(seed) for seed in seeds} == {id(await cache.get(folder))}
    assert open_count() == 2


async def test_cancelled_caller_does_not_disturb_the_others(cache: SeedCache, folder: Path) -> None:
    waiting = [asyncio.create_task(cache.get(folder)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] is results[2] is await cache.get(folder)


async def test_failure_reaches_all_who_wait_and_the_next_tries_anew(cache: SeedCache, folder: Path) -> None:
    away = folder.rename(folder.with_name("away"))
    results = await asyncio.gather(*(cache.get(folder) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [SeedUnusable] * 3
    away.rename(folder)
    await cache.get(folder)


async def test_forgotten_seed_is_closed_and_loaded_again_when_asked_for(cache: SeedCache, folder: Path) -> None:
    first = await cache.get(folder)
    cache.forget(folder)
    cache.forget(folder)
    assert open_count() == 0
    with ExitStack() as stack, pytest.raises(SeedUnusable):
        first.open(stack)
    assert await cache.get(folder) is not first


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_seed_forgotten_while_loading_is_not_kept(cache: SeedCache, folder: Path, turns: int) -> None:
    loading = asyncio.create_task(cache.get(folder))
    for _ in range(turns):
        await asyncio.sleep(0)
    cache.forget(folder)
    results = await asyncio.gather(loading, return_exceptions=True)
    if turns and not isinstance(results[0], SeedUnusable):
        with ExitStack() as stack, pytest.raises(SeedUnusable):
            results[0].open(stack)


async def test_closing_waits_for_loads_under_way(folder: Path) -> None:
    cache = SeedCache(QEMU)
    loading = asyncio.create_task(cache.get(folder))
    await asyncio.sleep(0)
    await cache.close()
    assert open_count() == 0
    await asyncio.gather(loading, return_exceptions=True)


async def test_stored_seed_can_be_loaded(cache: SeedCache, tmp_path: Path) -> None:
    with ExitStack() as stack:
        await store(tmp_path, MANIFEST, *machine(stack))
    await cache.get(tmp_path)


async def test_cancelled_store_leaves_an_empty_folder(tmp_path: Path) -> None:
    for turns in (1, 2, 3):
        with ExitStack() as stack:
            storing = asyncio.create_task(store(tmp_path, MANIFEST, *machine(stack)))
            for _ in range(turns):
                await asyncio.sleep(0)
            storing.cancel()
            results = await asyncio.gather(storing, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert list(tmp_path.iterdir()) == []


async def test_store_into_nowhere_is_a_driver_error(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(DriverError):
        await store(tmp_path / "absent", MANIFEST, *machine(stack))
