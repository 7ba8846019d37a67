"""A pool's folder on the disk: where volumes lie, and every change of a volume as one durable step.

Layout::

    DIR_PATH/<vid>/manifest.json        the record (see manifest.py); a volume exists if and only if this does
    DIR_PATH/<vid>/<16 hex>.raw|.qcow2  layers, and the overlay of a running machine
    DIR_PATH/<vid>/refused.qcow2        an overlay that was not accepted; in no record, never opened
    DIR_PATH/.scratch/                  throw-away overlays, volumes being made, removed or exported

Volumes appear and disappear by renaming a whole folder from and to ``.scratch``; within a volume only the
rewriting of the manifest counts, so files are made durable before it and unlinked after it. Anything that a
killed process left behind is therefore recognised as not named by any record. All methods block and are
called by one thread per volume at a time (the pool's locks).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from insula.model.block import BlockLayer, LayerFormat
from insula.storage import files, qcow2_image
from insula.storage.manifest import (
    MANIFEST_MAX,
    Chain,
    Layer,
    Manifest,
    check_vid,
    decode,
    encode,
    first_manifest,
    is_layer_file,
)
from insula.storage.pool import NoSuchVolume, Prepare, StorageError

MANIFEST = "manifest.json"
SCRATCH = ".scratch"
REFUSED = "refused.qcow2"
"""The last overlay that was not acceptable, for whoever wants to know what happened. One at most, or a guest that
has taken over its monitor could fill the disk with them."""
Clock = Callable[[], float]
"""Unix time, as :func:`time.time`."""


class VolumeFolder:
    """One volume. Knows files and the record, nothing about who uses them."""

    def __init__(self, path: Path, vid: str, clock: Clock = time.time) -> None:
        self.path = path
        self.vid = vid
        self._clock = clock

    def exists(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def load(self) -> Manifest:
        """:raise NoSuchVolume: :raise StorageError: the record is unreadable"""
        try:
            fd = files.open_file(self.path / MANIFEST)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchVolume(f"there is no volume {self.vid}") from error
        with os.fdopen(fd, "rb") as stream:
            return decode(stream.read(MANIFEST_MAX + 1), self.vid)

    def save(self, manifest: Manifest) -> None:
        files.replace_file(self.path / MANIFEST, encode(manifest))

    def layers(self, chain: Chain) -> tuple[BlockLayer, ...]:
        """The files of ``chain``, base first."""
        return tuple(BlockLayer(self.path / layer.file, layer.format) for layer in chain)

    # Making files. They count only once a manifest that names them is saved.

    def new_base(self, size: int, prepare: Prepare | None = None) -> Layer:
        """A raw layer that reads as zero but for what ``prepare`` writes."""
        layer = Layer(files.unique_name(".raw"), LayerFormat.RAW, size)
        path = self.path / layer.file
        files.create_sparse(path, size)
        if prepare is not None:
            prepare(path)
            if path.stat().st_size != size:
                raise StorageError(f"preparing volume {self.vid} changed its size")
            files.sync_file(path)
        return layer

    def adopt_base(self, staged: Path, size: int) -> Layer:
        """Move a synced raw file from the scratch folder here."""
        layer = Layer(files.unique_name(".raw"), LayerFormat.RAW, size)
        staged.rename(self.path / layer.file)
        return layer

    def link_chain(self, source: VolumeFolder, chain: Chain) -> Chain:
        """Have the layers of another volume here as well, without copying them."""
        linked = []
        for layer in chain:
            name = files.unique_name("." + layer.format.value)
            files.link_or_copy(source.path / layer.file, self.path / name)
            linked.append(Layer(name, layer.format, layer.size))
        return tuple(linked)

    # Steps. Each leaves the record as it was if it fails; files made for it are then strays.

    def populate(self, chain: Chain, size: int) -> None:
        """The first record of a volume that is still in the scratch folder."""
        self.save(first_manifest(self.vid, chain, size, self._clock()))

    def open_overlay(self, manifest: Manifest) -> BlockLayer:
        """Record a fresh overlay over the newest revision as what a machine writes."""
        name = files.unique_name(".qcow2")
        # Not synced: what a power loss takes from it, it takes from the guest's uncommitted writes anyway.
        qcow2_image.write_overlay(self.path / name, manifest.size)
        self.save(manifest.opened(name))
        return BlockLayer(self.path / name, LayerFormat.QCOW2)

    def commit_overlay(self, manifest: Manifest, keep: int) -> Manifest:
        """The overlay becomes the newest revision.

        :raise BadImage: the overlay is not acceptable; it was put aside, the volume is as before the start.
        """
        assert manifest.dirty is not None
        newest = manifest.newest
        try:
            size = self._check_overlay(manifest.dirty, smallest=newest.chain[-1].size, largest=newest.size)
        except qcow2_image.BadImage as error:
            self.save(manifest.discarded())
            (self.path / manifest.dirty).replace(self.path / REFUSED)
            raise qcow2_image.BadImage(f"{error}; what was written is not kept, see {self.path / REFUSED}") from error
        files.sync_file(self.path / manifest.dirty)
        layer = Layer(manifest.dirty, LayerFormat.QCOW2, size)
        return self.extend(manifest, (*newest.chain, layer), newest.size, keep)

    def _check_overlay(self, layer_file: str, smallest: int, largest: int) -> int:
        """Virtual size of an overlay a machine wrote. :raise BadImage: not what it was given, or a changed size"""
        fd = files.open_file(self.path / layer_file)
        try:
            size = qcow2_image.read_header(fd).size
        finally:
            os.close(fd)
        if not smallest <= size <= largest:
            raise qcow2_image.BadImage(f"the overlay's size was changed to {size} bytes")
        return size

    def discard_overlay(self, manifest: Manifest) -> Manifest:
        """The volume is again what it was before the machine started."""
        assert manifest.dirty is not None
        overlay = self.path / manifest.dirty
        # Emptied first: on a disk that this very overlay has filled there is no room for a record otherwise. Should
        # we be killed in between, an empty overlay can only be discarded, which is what was wanted.
        with suppress(FileNotFoundError):
            os.truncate(overlay, 0)
        changed = manifest.discarded()
        self.save(changed)
        overlay.unlink(missing_ok=True)
        return changed

    def extend(self, manifest: Manifest, chain: Chain, size: int, keep: int) -> Manifest:
        """``chain`` (whose files are durable) becomes the newest revision."""
        files.sync_folder(self.path)
        changed = manifest.extended(chain, size, keep, self._clock())
        self.save(changed)
        return changed

    # Housekeeping.

    def stray_files(self, manifest: Manifest, in_use: Set[Path]) -> list[Path]:
        """Files a killed or finished operation left: of our naming, not in the record, not in use."""
        ours = [path for path in self.path.iterdir() if is_layer_file(path.name) or path.name == MANIFEST + ".new"]
        return sorted(path for path in ours if path.name not in manifest.files and path not in in_use)

    def shared_files(self, manifest: Manifest) -> frozenset[str]:
        """Layers that other volumes have as well (hard links)."""
        return frozenset(name for name in manifest.files if (self.path / name).lstat().st_nlink > 1)

    def usage(self, manifest: Manifest) -> int:
        return sum(files.allocated(self.path / name) for name in manifest.files)


class PoolFolder:
    """The tree of volumes and the scratch folder."""

    def __init__(self, root: Path, clock: Clock = time.time) -> None:
        self.root = root
        self.scratch = root / SCRATCH
        self._clock = clock
        self._tree = threading.Lock()
        """Held while folders above volumes are made or removed, so that none vanishes under a new volume."""

    def prepare(self) -> None:
        """Make the folders. Mode 0700: no other user's process may see what a qube stores."""
        self.root.mkdir(mode=files.FOLDER_MODE, parents=True, exist_ok=True)
        self.scratch.mkdir(mode=files.FOLDER_MODE, exist_ok=True)

    def volume(self, vid: str) -> VolumeFolder:
        """:raise StorageError: malformed vid"""
        return VolumeFolder(self.root / check_vid(vid), vid, self._clock)

    def vids(self) -> list[str]:
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            if MANIFEST in names:
                found.append(Path(folder).relative_to(self.root).as_posix())
        return sorted(found)

    def scratch_file(self, vid: str, suffix: str) -> Path:
        """An unused name in the scratch folder that tells which volume it is for (see :meth:`scratch_owner`)."""
        return self.scratch / (vid.replace("/", "+") + "+" + files.unique_name(suffix))

    @staticmethod
    def scratch_owner(path: Path) -> str:
        """The vid given to :meth:`scratch_file`; "+" is in no vid."""
        return path.name.rpartition("+")[0].replace("+", "/")

    @contextmanager
    def new_volume(self, vid: str) -> Iterator[VolumeFolder]:
        """Fill a volume in the scratch folder; it appears under its name when the block ends.

        The block's last step is :meth:`VolumeFolder.populate`, which makes all names in it durable.

        :raise StorageError: it exists, or would lie inside another volume or around one.
        """
        place = self.volume(vid)
        self._check_free(place.path)
        staged = VolumeFolder(self.scratch_file(vid, ".new"), vid, self._clock)
        with ExitStack() as undo:
            undo.callback(files.remove_tree, staged.path)
            staged.path.mkdir(mode=files.FOLDER_MODE)
            yield staged
            with self._tree:
                self._check_free(place.path)
                files.make_folders(place.path.parent, self.root)
                staged.path.rename(place.path)
                undo.pop_all()
            files.sync_folder(place.path.parent)

    def _check_free(self, path: Path) -> None:
        above = path.parent
        while above != self.root:
            if (above / MANIFEST).exists():
                raise StorageError(f"a volume cannot lie inside the volume {above.relative_to(self.root)}")
            above = above.parent
        if path.is_dir() and any(path.iterdir()):
            raise StorageError(f"the volume {path.relative_to(self.root)} exists already")

    def remove_volume(self, volume: VolumeFolder) -> None:
        """The volume disappears in one step; its files follow."""
        gone = self.scratch_file(volume.vid, ".gone")
        with self._tree:
            volume.path.rename(gone)
            files.sync_folder(volume.path.parent)
            self._prune(volume.path.parent)
        files.remove_tree(gone)

    def clear_scratch(self, active: Set[str], in_use: Set[Path]) -> list[str]:
        """Remove what killed processes left, except what belongs to volumes in ``active``; one line for each."""
        lines = []
        for path in sorted(self.scratch.iterdir()):
            if path not in in_use and self.scratch_owner(path) not in active:
                files.remove_tree(path)
                lines.append(f"removed {path}: left by an operation that was interrupted")
        return lines

    def _prune(self, path: Path) -> None:
        while path != self.root and not any(path.iterdir()):
            path.rmdir()
            path = path.parent

    def remove_empty_folders(self) -> list[str]:
        """Folders left by a process killed between making them and renaming a volume into place."""
        removed = []
        with self._tree:
            for folder, _subfolders, _names in os.walk(self.root, topdown=False):
                path = Path(folder)
                hidden = path.relative_to(self.root).parts[:1] == (SCRATCH,)
                if path != self.root and not hidden and not any(path.iterdir()):
                    path.rmdir()
                    removed.append(path.relative_to(self.root).as_posix())
        return removed
