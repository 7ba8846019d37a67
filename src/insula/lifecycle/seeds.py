"""Seeds on disk: frozen, booted systems that app qubes are forked from.

One folder a seed, named by what it was made of (:class:`SeedKey`), so that a seed can only be found by a start that it
fits::

    SEEDS/NAME/seed.json     what it is; written last: a folder without it is a leftover
               root.qcow2    what the system wrote to its root while booting
               machine/      memory and devices (insula.hal.driver.Machine.freeze)

Nothing in a seed belongs to a user: the machine was never given a private volume, a name, or a command of a person.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from insula.model.block import BlockLayer, BlockSource, LayerFormat

RECORD = "seed.json"
ROOT_LAYER = "root.qcow2"
MACHINE = "machine"
STAGING_PREFIX = ".new-"
MAX_RECORD = 64 * 1024
"""Bytes of a record; a kernel command line is its largest part."""
CLOCK_TOLERANCE_S = 60.0
"""By which a time of use may be ahead: the clock of a file system is not read where ours is."""
DISK_LIMIT = 4 << 30
"""Bytes that all seeds together may take; one of a 400 MiB qube takes about 250 MiB."""


class SeedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides what a booted, nameless system looks like. Equal keys: the same seed fits."""

    template: str
    """Qube that owns the root."""
    root: str
    """Revision of that root (:meth:`insula.storage.pool.Pool.revision_key`); the agent is part of it."""
    kernel: str
    """Version and build of kernel and initrd."""
    cmdline: str
    memory_mib: int
    vcpus: int
    disks: tuple[str, ...]
    hypervisor: str
    nic: str = ""
    """Address of the interface; empty: there is none."""
    links: int = 0

    @property
    def name(self) -> str:
        """Folder name, and short enough for people: 16 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class SeedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: SeedKey
    created_at: float
    """Unix time."""
    root_sha256: str
    """Of the root's layer, hex; machine/ has a manifest of its own."""


class Seed(msgspec.Struct, frozen=True):
    """A complete seed."""

    folder: Path
    key: SeedKey
    created_at: float
    used_at: float
    """Unix time of the last start from it."""
    size: int
    """Bytes it takes on the disk."""
    root_sha256: str
    """What its root's layer was when it was written."""

    @property
    def machine(self) -> Path:
        return self.folder / MACHINE

    @property
    def root_layer(self) -> Path:
        return self.folder / ROOT_LAYER

    def under(self, source: BlockSource) -> BlockSource:
        """The template's layers as the seed's system left them, under a fork's own overlay."""
        frozen = BlockLayer(self.root_layer, LayerFormat.QCOW2)
        return replace(source, layers=(source.layers[0], frozen, *source.layers[1:]))


class SeedStore:
    """The folder of seeds; the daemon is its only user. Methods block, for milliseconds (``drop``: longer)."""

    def __init__(self, folder: Path, limit: int = DISK_LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    def find(self, key: SeedKey) -> Seed | None:
        """The seed with exactly this key."""
        seed = self._read(self.folder / key.name)
        return seed if seed is not None and seed.key == key else None

    def all(self) -> list[Seed]:
        """Every complete seed, the one used last first."""
        folders = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        seeds = [seed for path in folders if (seed := self._read(path)) is not None]
        return sorted(seeds, key=lambda seed: seed.used_at, reverse=True)

    def _read(self, folder: Path) -> Seed | None:
        record_file = folder / RECORD
        try:
            used_at = record_file.stat().st_mtime
            with record_file.open("rb") as file:
                record = msgspec.json.decode(file.read(MAX_RECORD), type=SeedRecord)
        except (OSError, msgspec.DecodeError):
            return None
        if folder.name != record.key.name:
            return None
        if used_at > time.time() + CLOCK_TOLERANCE_S:
            # The clock was set back since. A time to come says nothing, and must not keep this one for ever.
            used_at = 0.0
        return Seed(folder, record.key, record.created_at, used_at, _size(folder), record.root_sha256)

    def is_root_whole(self, seed: Seed) -> bool:
        """Whether the root's layer is what was written. Blocking: reads some MB."""
        try:
            return _sha256(seed.root_layer) == seed.root_sha256
        except OSError:
            return False

    def touch(self, seed: Seed) -> None:
        """Note that it was used now."""
        with suppress(FileNotFoundError):
            os.utime(seed.folder / RECORD)

    @contextmanager
    def staging(self, key: SeedKey) -> Iterator[Path]:
        """A folder to make a seed in; it becomes the seed when the context ends well, else it is removed.

        :raise OSError: the disk is full; nothing was kept.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.folder))
        try:
            (folder / MACHINE).mkdir(mode=0o700)
            yield folder
            record = msgspec.json.encode(SeedRecord(key, time.time(), _sha256(folder / ROOT_LAYER)))
            with (folder / RECORD).open("xb") as file:
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
            self.drop(key.name)
            folder.rename(self.folder / key.name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def drop(self, name: str) -> bool:
        """Remove a seed; forks that run keep the files they have open. Whether there was one."""
        folder = self.folder / name
        if not folder.is_dir():
            return False
        # First what makes it a seed: a removal that is broken off leaves a leftover, not a damaged seed.
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def tidy(self) -> list[str]:
        """Remove what an interrupted daemon left; returns the names of the folders."""
        complete = {seed.folder.name for seed in self.all()}
        left = [path for path in self.folder.iterdir() if path.name not in complete] if self.folder.is_dir() else []
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return sorted(path.name for path in left)


def plan_eviction(seeds: Iterable[Seed], limit: int, keep: frozenset[str] = frozenset()) -> list[str]:
    """Names of the seeds to remove so that the rest fits ``limit`` bytes: those unused longest first. Pure.

    ``keep``: names that stay whatever they take.
    """
    newest_first = sorted(seeds, key=lambda seed: seed.used_at, reverse=True)
    left = sum(seed.size for seed in newest_first)
    gone: list[str] = []
    for seed in reversed(newest_first):
        if left <= limit:
            break
        if seed.folder.name not in keep:
            gone.append(seed.folder.name)
            left -= seed.size
    return gone


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    """Bytes allocated; holes do not count (``st_blocks`` are of 512 bytes, stat(2))."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
