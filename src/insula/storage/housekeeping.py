"""Background work of a qcow2 pool: unlinking what no record names any more, folding old layers.

One volume at a time; each is tidied under its turn, and steps aside at once when somebody wants the volume (a
fold that is interrupted changed nothing visible, see manifest.py, and is started again afterwards). A fold that
cannot be done now, for layers in use or lack of space, is retried when the volume is next scheduled. Failures are
logged: the volume stays right, only longer than it need be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import assert_never

from insula.storage import files, qemu_img
from insula.storage.manifest import Flatten, Fold, Manifest, Merge, plan_fold
from insula.storage.pool import NoSuchVolume, StorageError
from insula.storage.threads import in_thread
from insula.storage.turns import Turns
from insula.storage.volume_folder import PoolFolder, VolumeFolder


class Housekeeper:
    """Owns the background tasks of one pool.

    Until :meth:`enable` nothing is done: which layers running machines use is not known before those found after
    a restart have been marked.
    """

    def __init__(
        self, folder: PoolFolder, turns: Turns, space: files.Space, in_use: Callable[[], Set[Path]], log: logging.Logger
    ) -> None:
        self._folder = folder
        self._turns = turns
        self._space = space
        self._in_use = in_use
        self._log = log
        self._enabled = False
        self._slot = asyncio.Semaphore(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._due: set[str] = set()
        """Scheduled, and not begun since."""

    def enable(self) -> None:
        self._enabled = True

    def schedule(self, vid: str) -> None:
        """Tidy the volume soon."""
        if self._enabled:
            self._due.add(vid)
            self._begin(vid)

    def is_busy(self, vid: str) -> bool:
        return vid in self._tasks

    async def settle(self) -> None:
        """Return when nothing is left to do."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))
            await asyncio.sleep(0)  # lets the callbacks remove the finished tasks

    async def aclose(self) -> None:
        """Stop: nothing is folded any more, and no file is left that is not needed."""
        self._enabled = False
        unfinished = {*self._due, *self._tasks}
        self._due.clear()
        for task in self._tasks.values():
            task.cancel()
        await self.settle()
        for vid in sorted(unfinished):
            with self._warning(vid):
                async with self._turns.hold(vid):
                    await in_thread(partial(_clean_up, self._folder.volume(vid), self._in_use()))

    def _begin(self, vid: str) -> None:
        if vid not in self._tasks:
            self._tasks[vid] = asyncio.create_task(self._run(vid), name=f"tidy {vid}")
            self._tasks[vid].add_done_callback(partial(self._ended, vid))

    def _ended(self, vid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[vid]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("volume %s: tidying failed", vid, exc_info=error)
        if vid in self._due:
            self._begin(vid)

    async def _run(self, vid: str) -> None:
        async with self._slot:
            self._due.discard(vid)
            with self._warning(vid):
                while not await self._tidy(vid):
                    self._log.debug("volume %s: folding stepped aside", vid)

    @contextmanager
    def _warning(self, vid: str) -> Iterator[None]:
        try:
            yield
        except NoSuchVolume:
            return  # removed since it was scheduled
        except (StorageError, OSError) as error:
            self._log.warning("volume %s: not tidied now: %s", vid, error)

    async def _tidy(self, vid: str) -> bool:
        """Do all there is to do; False if stopped half-way because somebody wants the volume."""
        async with self._turns.hold(vid, patient=True):
            volume = self._folder.volume(vid)
            manifest = await in_thread(volume.load)
            while True:
                fold = await in_thread(partial(_clean, volume, manifest, self._in_use()))
                if fold is None:
                    return True
                result = await self._unless_wanted(vid, volume, manifest, fold)
                if result is None:
                    return False
                manifest = result

    async def _unless_wanted(self, vid: str, volume: VolumeFolder, manifest: Manifest, fold: Fold) -> Manifest | None:
        work = asyncio.ensure_future(self._fold(volume, manifest, fold))
        wanted = asyncio.ensure_future(self._turns.wanted(vid))
        try:
            await asyncio.wait([work, wanted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait([work])
        return None if work.cancelled() else work.result()

    async def _fold(self, volume: VolumeFolder, manifest: Manifest, fold: Fold) -> Manifest:
        match fold:
            case Merge():
                return await self._merge(volume, manifest, fold)
            case Flatten():
                return await self._flatten(volume, manifest, fold)
            case _:
                assert_never(fold)

    async def _merge(self, volume: VolumeFolder, manifest: Manifest, fold: Merge) -> Manifest:
        chain = (*fold.below, fold.lower, fold.upper)
        lower, upper = volume.path / fold.lower.file, volume.path / fold.upper.file
        self._space.check(files.allocated(upper), f"folding volume {volume.vid}")
        await qemu_img.merge(volume.layers(chain), max(layer.size for layer in chain))

        def record() -> Manifest:
            files.sync_file(lower)
            changed = manifest.merged(fold)
            volume.save(changed)
            upper.unlink()
            return changed

        return await in_thread(record)

    async def _flatten(self, volume: VolumeFolder, manifest: Manifest, fold: Flatten) -> Manifest:
        size = max(layer.size for layer in fold.chain)
        layers = volume.layers(fold.chain)
        self._space.check(sum(files.allocated(layer.path) for layer in layers), f"folding volume {volume.vid}")
        staged = self._folder.scratch_file(volume.vid, ".raw")
        try:
            await in_thread(partial(files.create_sparse, staged, size))
            await qemu_img.flatten(layers, staged, size)

            def record() -> Manifest:
                files.sync_file(staged)
                base = volume.adopt_base(staged, size)
                files.sync_folder(volume.path)
                changed = manifest.flattened(fold, base)
                volume.save(changed)
                return changed

            return await in_thread(record)
        finally:
            await in_thread(partial(staged.unlink, missing_ok=True))


def _clean_up(volume: VolumeFolder, in_use: Set[Path]) -> None:
    _clean(volume, volume.load(), in_use)


def _clean(volume: VolumeFolder, manifest: Manifest, in_use: Set[Path]) -> Fold | None:
    """Unlink what is no longer needed; the next fold, if there is one."""
    for path in volume.stray_files(manifest, in_use):
        path.unlink()
    used_here = {path.name for path in in_use if path.parent == volume.path}
    return plan_fold(manifest, used_here, volume.shared_files(manifest))
