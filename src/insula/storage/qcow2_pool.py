"""The embedded default pool: plain files on any file system, overlays in qcow2.

Who does what: :mod:`manifest` decides what a volume's record becomes, :mod:`volume_folder` makes it so on the disk
in durable steps, :mod:`housekeeping` tidies up behind, :mod:`qemu_img` lets a sandboxed tool read image formats.
This module says when: it checks requests, keeps one operation a volume at a time, knows which files are in use, and
keeps blocking work off the event loop.

docs/decisions/002-qcow2-chains.md gives the reasons for the design.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path

from insula.model.block import BlockLayer, BlockSource, LayerFormat, VolumeSpec
from insula.storage import files, qcow2_image, transfer
from insula.storage.housekeeping import Housekeeper
from insula.storage.manifest import LAYERS_MAX, LAYERS_WANTED, REVISIONS_MAX, Manifest, check_size
from insula.storage.pool import NoSuchVolume, PoolUsage, Prepare, Revision, StorageError, VolumeBusy
from insula.storage.spare_headers import SpareHeaders
from insula.storage.transfer import blocking
from insula.storage.turns import Turns
from insula.storage.volume_folder import Clock, PoolFolder, VolumeFolder


class _Kind(Enum):
    """What the flags of a volume mean (admin-api §5)."""

    KEPT = auto()
    READ_ONLY = auto()
    SNAPSHOT = auto()
    VOLATILE = auto()

    @classmethod
    def of(cls, spec: VolumeSpec) -> _Kind:
        if spec.save_on_stop and spec.snap_on_start:
            raise StorageError(f"volume {spec.vid} cannot be a snapshot and kept as well")
        if spec.snap_on_start:
            return cls.SNAPSHOT
        if spec.save_on_stop:
            return cls.KEPT if spec.rw else cls.READ_ONLY
        return cls.VOLATILE

    @property
    def has_record(self) -> bool:
        return self in (_Kind.KEPT, _Kind.READ_ONLY)


class Qcow2Pool:
    """Implements :class:`insula.storage.pool.Pool`; see there for what each method promises."""

    driver = "qcow2"

    def __init__(
        self,
        name: str,
        config: Mapping[str, str],
        dir_path: Path,
        *,
        reserve: int | None = None,
        clock: Clock = time.time,
    ) -> None:
        """
        :param config: what :attr:`config` shows.
        :param dir_path: absolute; made if it is missing. Nothing else may change what is in it.
        :param reserve: bytes kept free; None for the default (:class:`insula.storage.files.Space`).
        :raise StorageError: the folder cannot be made or used.
        """
        if not dir_path.is_absolute():
            raise StorageError(f"dir_path of pool {name} must be an absolute path, not {str(dir_path)!r}")
        self.name = name
        self.config = dict(config)
        self._folder = PoolFolder(dir_path, clock)
        with files.storage_errors(f"opening pool {name}"):
            self._folder.prepare()
        self._space = files.Space(dir_path, reserve)
        self._turns = Turns()
        self._active: dict[str, BlockSource] = {}
        """vid → what its machine has."""
        self._spare_headers = SpareHeaders()
        self._readers: dict[object, frozenset[Path]] = {}
        """Files that exports read."""
        self._importing: set[str] = set()
        self._housekeeper = Housekeeper(
            self._folder, self._turns, self._space, self._in_use, logging.getLogger(f"insula.storage.{name}")
        )

    # Existence

    async def create(self, spec: VolumeSpec, prepare: Prepare | None = None) -> None:
        check_size(spec.size)
        volume = self._folder.volume(spec.vid)
        if not _Kind.of(spec).has_record:
            return

        def make() -> None:
            self._space.check(0, f"creating volume {spec.vid}")
            with self._folder.new_volume(spec.vid) as staged:
                staged.populate((staged.new_base(spec.size, prepare),), spec.size)

        async with self._turns.hold(volume.vid):
            await blocking(f"creating volume {spec.vid}", make, undo=lambda _: self._remove(volume))

    async def remove(self, spec: VolumeSpec) -> None:
        volume = self._folder.volume(spec.vid)
        async with self._turns.hold(spec.vid):
            if spec.vid in self._active or spec.vid in self._importing:
                raise VolumeBusy(f"volume {spec.vid} is in use")
            if any(path.parent == volume.path for path in self._in_use()):
                raise VolumeBusy(f"volume {spec.vid} is in use: a running qube started from it, or it is being read")
            if _Kind.of(spec).has_record:
                await blocking(f"removing volume {spec.vid}", partial(self._remove, volume))

    def _remove(self, volume: VolumeFolder) -> None:
        if not volume.exists():
            return
        try:
            dirty = volume.load().dirty is not None
        except StorageError:
            dirty = False  # an unreadable record must not make a volume stay for ever
        if dirty:
            raise VolumeBusy(f"volume {volume.vid} is in use")
        self._folder.remove_volume(volume)

    async def clone(self, source: VolumeSpec, target: VolumeSpec) -> None:
        if source.vid == target.vid:
            raise StorageError(f"volume {source.vid} cannot be cloned to itself")
        if not _Kind.of(target).has_record:
            raise StorageError(f"volume {target.vid} keeps nothing, so nothing can be cloned to it")
        origin, volume = self._folder.volume(source.vid), self._folder.volume(target.vid)

        def link() -> None:
            self._space.check(0, f"cloning volume {source.vid}")
            newest = origin.load().newest
            if not volume.exists():
                with self._folder.new_volume(target.vid) as staged:
                    staged.populate(staged.link_chain(origin, newest.chain), newest.size)
                return
            manifest = _load_settled(volume)
            volume.extend(manifest, volume.link_chain(origin, newest.chain), newest.size, _keep(target))

        async with self._turns.hold(source.vid, target.vid):
            self._check_idle(target.vid)
            try:
                await blocking(f"cloning volume {source.vid} to {target.vid}", link)
            finally:
                self._housekeeper.schedule(target.vid)

    # Use by machines

    async def activate(self, spec: VolumeSpec) -> BlockSource:
        kind = _Kind.of(spec)
        if spec.ephemeral and kind.has_record:
            # Refused rather than ignored: the owner was promised that nothing readable reaches the disk.
            raise StorageError(f"volume {spec.vid} is kept, so it cannot be ephemeral")
        base_vid = self._base_vid(spec, kind)
        keys = (spec.vid,) if base_vid is None else (spec.vid, base_vid)
        patient = base_vid is not None and self._housekeeper.is_busy(base_vid) and await self._has_long_chain(base_vid)
        async with self._turns.hold(*keys, patient=patient):
            self._check_idle(spec.vid)
            source: BlockSource = await blocking(
                f"starting with volume {spec.vid}",
                partial(self._open, spec, kind, base_vid),
                undo=partial(self._close, spec, commit=False),
            )
            self._active[spec.vid] = source
        if spec.ephemeral:
            self._spare_headers.refill_later()
        return source

    def _base_vid(self, spec: VolumeSpec, kind: _Kind) -> str | None:
        """The volume whose committed content the machine sees; None for volatile ones."""
        if kind is _Kind.VOLATILE:
            check_size(spec.size)
            return None
        if kind is not _Kind.SNAPSHOT:
            return spec.vid
        if spec.source is None:
            raise StorageError(f"volume {spec.vid} is a snapshot of nothing")
        return spec.source

    async def _has_long_chain(self, vid: str) -> bool:
        manifest = await blocking(f"reading volume {vid}", self._folder.volume(vid).load)
        return len(manifest.newest.chain) > LAYERS_WANTED

    def _open(self, spec: VolumeSpec, kind: _Kind, base_vid: str | None) -> BlockSource:
        self._space.check(0, f"starting with volume {spec.vid}")
        if base_vid is None:
            top, key = self._scratch_layer(spec, spec.size, LayerFormat.RAW)
            return BlockSource((top,), spec.size, writable=spec.rw, unlink_top=True, key=key)
        base = self._folder.volume(base_vid)
        manifest = base.load() if kind is _Kind.SNAPSHOT else _load_settled(base)
        revision = manifest.newest
        if len(revision.chain) > LAYERS_MAX:
            raise VolumeBusy(
                f"volume {base_vid} has {len(revision.chain)} layers that cannot be folded while qubes that started "
                "from older ones run; stop those"
            )
        below = tuple(reversed(base.layers(revision.chain)))
        if kind is _Kind.KEPT:
            top = base.open_overlay(manifest)
            return BlockSource((top, *below), revision.size, writable=True, revision=manifest.content_key)
        size = revision.size if kind is _Kind.READ_ONLY else max(spec.size, revision.size)
        top, key = self._scratch_layer(spec, size, LayerFormat.QCOW2)
        return BlockSource(
            (top, *below), size, writable=spec.rw, unlink_top=True, key=key, revision=manifest.content_key
        )

    def _scratch_layer(self, spec: VolumeSpec, size: int, plain: LayerFormat) -> tuple[BlockLayer, bytes | None]:
        """An empty layer that is thrown away, and its key. Not synced: nobody needs it after a power loss.

        :param plain: its format if it is not encrypted.
        """
        layer_format = LayerFormat.QCOW2 if spec.ephemeral else plain
        path = self._folder.scratch_file(spec.vid, f".{layer_format.value}")
        key = None
        if spec.ephemeral:
            key, encryption = self._spare_headers.take()
            qcow2_image.write_encrypted_overlay(path, size, encryption)
        elif layer_format is LayerFormat.QCOW2:
            qcow2_image.write_overlay(path, size)
        else:
            with files.new_file(path) as fd:
                os.ftruncate(fd, size)
        return BlockLayer(path, layer_format), key

    async def mark_active(self, spec: VolumeSpec, source: BlockSource) -> None:
        self._folder.volume(spec.vid)
        self._active[spec.vid] = source

    async def deactivate(self, spec: VolumeSpec, *, commit: bool) -> None:
        kind = _Kind.of(spec)
        async with self._turns.hold(spec.vid):
            source = self._active.get(spec.vid)
            try:
                await blocking(f"closing volume {spec.vid}", partial(self._close, spec, source, commit=commit))
            except qcow2_image.BadImage:
                self._active.pop(spec.vid, None)  # it was put aside: the volume is settled
                raise
            self._active.pop(spec.vid, None)
        base_vid = self._base_vid(spec, kind)
        if base_vid is not None:
            self._housekeeper.schedule(base_vid)

    def _close(self, spec: VolumeSpec, source: BlockSource | None, *, commit: bool) -> None:
        if source is not None and source.unlink_top:
            source.layers[0].path.unlink(missing_ok=True)
        if not _Kind.of(spec).has_record:
            return
        volume = self._folder.volume(spec.vid)
        try:
            manifest = volume.load()
        except NoSuchVolume:
            return
        if manifest.dirty is None:
            return
        if commit:
            volume.commit_overlay(manifest, _keep(spec))
        else:
            volume.discard_overlay(manifest)

    async def is_outdated(self, spec: VolumeSpec) -> bool:
        source = self._active.get(spec.vid)
        if source is None or _Kind.of(spec) is not _Kind.SNAPSHOT or spec.source is None:
            return False
        base = self._folder.volume(spec.source)
        manifest = await blocking(f"reading volume {base.vid}", base.load)
        # Layers in use are not folded, so a chain that differs shows another content. Others than the source's are from
        # whoever prepared the machine.
        started_from = [layer for layer in reversed(source.layers[1:]) if layer.path.parent == base.path]
        return tuple(started_from) != base.layers(manifest.newest.chain)

    # Content

    async def revision_key(self, spec: VolumeSpec) -> str:
        base_vid = self._base_vid(spec, _Kind.of(spec))
        if base_vid is None:
            raise NoSuchVolume(f"volume {spec.vid} keeps nothing")
        manifest = await blocking(f"reading volume {base_vid}", self._folder.volume(base_vid).load)
        return manifest.content_key

    async def revisions(self, spec: VolumeSpec) -> list[Revision]:
        if not _Kind.of(spec).has_record:
            return []
        return (await self._load(spec)).older()

    async def revert(self, spec: VolumeSpec, revision_id: str) -> None:
        def change(volume: VolumeFolder, manifest: Manifest) -> None:
            older = manifest.find(revision_id)
            volume.extend(manifest, older.chain, older.size, _keep(spec))

        await self._change(spec, f"reverting volume {spec.vid}", change)

    async def clear(self, spec: VolumeSpec) -> None:
        def change(volume: VolumeFolder, manifest: Manifest) -> None:
            self._space.check(0, f"clearing volume {spec.vid}")
            volume.extend(manifest, (volume.new_base(manifest.size),), manifest.size, _keep(spec))

        await self._change(spec, f"clearing volume {spec.vid}", change)

    async def resize(self, spec: VolumeSpec, size: int) -> None:
        check_size(size)
        if not _Kind.of(spec).has_record:
            if size < spec.size:
                raise StorageError(f"volume {spec.vid} cannot shrink to {size} bytes")
            return  # what the next activation makes goes by its spec
        volume = self._folder.volume(spec.vid)

        def grow() -> None:
            manifest = volume.load()
            if size < manifest.size:
                raise StorageError(f"volume {spec.vid} has {manifest.size} bytes and cannot shrink to {size}")
            if size > manifest.size:
                volume.save(manifest.resized(size))

        async with self._turns.hold(spec.vid):
            await blocking(f"resizing volume {spec.vid}", grow)

    async def set_revisions_to_keep(self, spec: VolumeSpec, count: int) -> None:
        if not -1 <= count <= REVISIONS_MAX:
            raise StorageError(f"revisions_to_keep is a number from -1 to {REVISIONS_MAX}, not {count}")
        if not _Kind.of(spec).has_record:
            return
        volume = self._folder.volume(spec.vid)

        def trim() -> None:
            manifest = volume.load()
            trimmed = manifest.trimmed(count)
            if trimmed != manifest:
                volume.save(trimmed)

        async with self._turns.hold(spec.vid):
            await blocking(f"dropping revisions of volume {spec.vid}", trim)
        self._housekeeper.schedule(spec.vid)

    async def size(self, spec: VolumeSpec) -> int:
        kind = _Kind.of(spec)
        if kind.has_record:
            return (await self._load(spec)).size
        if kind is _Kind.SNAPSHOT and spec.source is not None:
            manifest = await blocking(f"reading volume {spec.source}", self._folder.volume(spec.source).load)
            return max(spec.size, manifest.size)
        return spec.size

    async def usage(self, spec: VolumeSpec) -> int:
        if _Kind.of(spec).has_record:
            volume = self._folder.volume(spec.vid)
            return await blocking(f"measuring volume {spec.vid}", lambda: volume.usage(volume.load()))
        source = self._active.get(spec.vid)
        return 0 if source is None else files.allocated(source.layers[0].path)

    # Streams

    async def export(self, spec: VolumeSpec) -> AsyncIterator[bytes]:
        if not _Kind.of(spec).has_record:
            raise NoSuchVolume(f"volume {spec.vid} keeps nothing that could be exported")
        volume = self._folder.volume(spec.vid)
        doing = f"exporting volume {spec.vid}"
        reader = object()
        async with self._turns.hold(spec.vid):
            newest = (await blocking(doing, volume.load)).newest
            chain = volume.layers(newest.chain)
            self._readers[reader] = frozenset(layer.path for layer in chain)
        try:
            largest = max(layer.size for layer in newest.chain)
            staged = self._folder.scratch_file(spec.vid, ".raw")
            fd = await transfer.open_raw(chain, largest, staged, self._space, doing)
            try:
                async with aclosing(transfer.read_stream(fd, newest.size, doing)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                os.close(fd)
        finally:
            del self._readers[reader]
            self._housekeeper.schedule(spec.vid)

    async def import_stream(self, spec: VolumeSpec, data: AsyncIterable[bytes], size: int) -> None:
        check_size(size)
        doing = f"importing volume {spec.vid}"
        async with self._importing_to(spec) as staged:
            await transfer.write_stream(staged, data, size, self._space, doing)
            await self._publish(spec, staged, size)

    async def import_file(self, spec: VolumeSpec, path: Path) -> None:
        async with self._importing_to(spec) as staged:
            size = await transfer.copy_file(staged, path, self._space, f"importing volume {spec.vid}")
            await self._publish(spec, staged, size)

    @asynccontextmanager
    async def _importing_to(self, spec: VolumeSpec) -> AsyncIterator[Path]:
        """A name for the new content; meanwhile the volume does not start, but can be read."""
        if not _Kind.of(spec).has_record:
            raise StorageError(f"volume {spec.vid} keeps nothing, so nothing can be imported to it")
        volume = self._folder.volume(spec.vid)
        staged = self._folder.scratch_file(spec.vid, ".raw")
        async with self._turns.hold(spec.vid):
            self._check_idle(spec.vid)
            await blocking(f"importing volume {spec.vid}", partial(_load_settled, volume))
            self._importing.add(spec.vid)
        try:
            yield staged
        finally:
            self._importing.discard(spec.vid)
            await blocking(f"importing volume {spec.vid}", partial(staged.unlink, missing_ok=True))
            self._housekeeper.schedule(spec.vid)

    async def _publish(self, spec: VolumeSpec, staged: Path, size: int) -> None:
        volume = self._folder.volume(spec.vid)

        def publish() -> None:
            manifest = _load_settled(volume)
            volume.extend(manifest, (volume.adopt_base(staged, size),), size, _keep(spec))

        async with self._turns.hold(spec.vid):
            await blocking(f"importing volume {spec.vid}", publish)

    # The pool

    async def volumes(self) -> list[str]:
        return await blocking(f"listing pool {self.name}", self._folder.vids)

    async def pool_usage(self) -> PoolUsage:
        def measure() -> PoolUsage:
            total = self._space.total()
            return PoolUsage(size=total, used=total - self._space.free())

        return await blocking(f"measuring pool {self.name}", measure)

    async def recover(self, active: frozenset[str]) -> list[str]:
        doing = f"recovering pool {self.name}"
        lines = await blocking(doing, partial(self._folder.clear_scratch, active, self._in_use()))
        vids = await blocking(doing, self._folder.vids)
        for vid in vids:
            async with self._turns.hold(vid):
                lines += await blocking(
                    doing, partial(_recover_volume, self._folder.volume(vid), active, self._in_use())
                )
        lines += await blocking(doing, self._folder.remove_empty_folders)
        self._housekeeper.enable()
        for vid in vids:
            self._housekeeper.schedule(vid)
        return lines

    async def settle(self) -> None:
        await self._housekeeper.settle()

    async def aclose(self) -> None:
        await self._housekeeper.aclose()
        await self._spare_headers.aclose()

    # Parts of the above

    def _in_use(self) -> set[Path]:
        """Files that must keep their content and their place."""
        used = {layer.path for source in self._active.values() for layer in source.layers}
        return used.union(*self._readers.values())

    def _check_idle(self, vid: str) -> None:
        if vid in self._active:
            raise VolumeBusy(f"volume {vid} is in use by a running qube")
        if vid in self._importing:
            raise VolumeBusy(f"volume {vid} is being imported")

    async def _load(self, spec: VolumeSpec) -> Manifest:
        return await blocking(f"reading volume {spec.vid}", self._folder.volume(spec.vid).load)

    async def _change(self, spec: VolumeSpec, doing: str, change: Callable[[VolumeFolder, Manifest], object]) -> None:
        """Do something to the content of an idle volume, then tidy it."""
        if not _Kind.of(spec).has_record:
            raise NoSuchVolume(f"volume {spec.vid} keeps nothing")
        volume = self._folder.volume(spec.vid)
        async with self._turns.hold(spec.vid):
            self._check_idle(spec.vid)
            try:
                await blocking(doing, lambda: change(volume, _load_settled(volume)))
            finally:
                self._housekeeper.schedule(spec.vid)


def _keep(spec: VolumeSpec) -> int:
    return min(spec.revisions_to_keep, REVISIONS_MAX)


def _load_settled(volume: VolumeFolder) -> Manifest:
    """:raise VolumeBusy: a machine writes to the volume, or did when the daemon ended"""
    manifest = volume.load()
    if manifest.dirty is not None:
        raise VolumeBusy(f"volume {volume.vid} was in use when the daemon ended; what was written is not settled yet")
    return manifest


def _recover_volume(volume: VolumeFolder, active: frozenset[str], in_use: set[Path]) -> list[str]:
    try:
        manifest = volume.load()
    except StorageError as error:
        return [f"left alone: {error}"]
    lines = []
    for path in volume.stray_files(manifest, in_use):
        path.unlink()
        lines.append(f"removed {path}: left by an operation that was interrupted")
    if manifest.dirty is not None and volume.vid not in active:
        lines.append(f"volume {volume.vid} was in use when the daemon ended")
    return lines
