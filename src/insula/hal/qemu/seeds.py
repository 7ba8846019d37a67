"""Seeds in use: written and read in threads, each loaded once however many machines start from it at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from insula.hal.errors import DriverError, SeedUnusable
from insula.hal.qemu.seed_files import Cancelled, LoadedSeed, Manifest, empty, load_seed, write_seed


@dataclass(frozen=True)
class _Entry:
    loading: asyncio.Task[LoadedSeed]
    cancelled: Event


class SeedCache:
    """Owns what it has loaded; a folder is read once until it is forgotten, whatever happens to it meanwhile.

    :param qemu: version of QEMU that forks would run.
    """

    def __init__(self, qemu: str) -> None:
        self._qemu = qemu
        self._entries: dict[Path, _Entry] = {}
        self._ending: set[asyncio.Task[LoadedSeed]] = set()

    async def get(self, folder: Path) -> LoadedSeed:
        """The seed in ``folder``, loaded if it is not yet.

        A caller that is cancelled does not disturb the others.

        :raise SeedUnusable: see :func:`load_seed`; the next call tries anew.
        """
        entry = self._entries.get(folder)
        if entry is None:
            cancelled = Event()
            loading = asyncio.create_task(self._load(folder, cancelled), name=f"load seed {folder.name}")
            entry = self._entries[folder] = _Entry(loading, cancelled)
            loading.add_done_callback(lambda task: self._loaded(folder, task))
        return await asyncio.shield(entry.loading)

    async def _load(self, folder: Path, cancelled: Event) -> LoadedSeed:
        try:
            seed = await asyncio.to_thread(load_seed, folder, self._qemu, cancelled)
        except Cancelled as error:
            raise SeedUnusable(f"the seed in {folder} was unloaded while it was read") from error
        if cancelled.is_set():
            seed.close()
        return seed

    def _loaded(self, folder: Path, task: asyncio.Task[LoadedSeed]) -> None:
        self._ending.discard(task)
        # Asking for the exception tells asyncio that it was seen: all who wait may have been cancelled.
        failed = task.cancelled() or task.exception() is not None
        entry = self._entries.get(folder)
        if failed and entry is not None and entry.loading is task:
            del self._entries[folder]

    def forget(self, folder: Path) -> None:
        """Unload, or give up loading. Idempotent."""
        if (entry := self._entries.pop(folder, None)) is None:
            return
        entry.cancelled.set()
        if entry.loading.done():
            entry.loading.result().close()
        else:
            self._ending.add(entry.loading)

    async def close(self) -> None:
        """Unload all; returns once no thread reads any more."""
        for folder in list(self._entries):
            self.forget(folder)
        await asyncio.gather(*self._ending, return_exceptions=True)


async def store(folder: Path, manifest: Manifest, memory: int, state: int) -> None:
    """:func:`write_seed` in a thread; when cancelled, it stops and leaves the folder empty.

    :raise DriverError: the disk is full or fails; the folder is empty.
    """
    cancelled = Event()
    writing = asyncio.ensure_future(asyncio.to_thread(write_seed, folder, manifest, memory, state, cancelled))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([writing])
        if writing.exception() is None:
            empty(folder)
        raise
    except Cancelled as error:
        raise DriverError("freezing was cancelled") from error
