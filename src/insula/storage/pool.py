"""The contract every storage pool driver implements (``tests/contract/test_pool.py`` holds them to it).

A *volume* has a content made of immutable revisions. A running machine writes to an overlay; a clean shutdown
commits the overlay as the newest revision (one atomic step), anything else leaves the volume as it was before
or, where asked, with the crash-consistent overlay kept. The host never parses what a guest wrote: pools move
whole blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.model.block import BlockSource, VolumeSpec


@dataclass(frozen=True)
class Revision:
    id: str
    """Alphabet ``[A-Za-z0-9:_.-]``; sorts oldest first."""
    created: float
    """Unix time."""


@dataclass(frozen=True)
class PoolUsage:
    size: int
    """Bytes the pool can hold."""
    used: int
    """Bytes in use on the underlying file system or device."""


class StorageError(Exception):
    """A pool operation failed; the volume is as it was before. The message is for the user."""


class NoSpace(StorageError):
    """Refused because the reserve of free space would be touched; nothing was changed."""


class VolumeBusy(StorageError):
    """The volume is active (its qube runs) and the operation needs it idle."""


class NoSuchVolume(StorageError): ...


class NoSuchRevision(StorageError): ...


Prepare = Callable[[Path], object]
"""Writes the first content of a volume: called in a thread, before the volume exists, with the path of a raw file or
device of the volume's size that is all zero, and keeps its size. What it raises the caller gets; nothing was made."""


class Pool(Protocol):
    """Methods take the :class:`VolumeSpec`; ``spec.vid`` names the volume. All raise StorageError on failure.

    After opening: :meth:`mark_active` for each volume of a machine still running, then :meth:`recover` once. Until
    then nothing is tidied up. At the end :meth:`aclose`.
    """

    @property
    def name(self) -> str: ...

    @property
    def driver(self) -> str: ...

    @property
    def config(self) -> Mapping[str, str]:
        """Configuration as shown by ``admin.pool.Info`` (without name and driver)."""

    async def create(self, spec: VolumeSpec, prepare: Prepare | None = None) -> None:
        """Make an empty volume (reads as zero). No-op on disk for volumes that keep nothing.

        :param prepare: writes what the volume holds from the start.

        If it raises, or is cancelled, it has made nothing; a volume of that vid that exists is somebody else's.

        :raise NoSpace: :raise StorageError: it exists already, bad vid or size
        """

    async def remove(self, spec: VolumeSpec) -> None:
        """Remove the volume and its revisions; absent is fine.

        :raise VolumeBusy: it is active, or a running machine has a snapshot of it.
        """

    async def clone(self, source: VolumeSpec, target: VolumeSpec) -> None:
        """Give ``target`` (new or existing) the newest committed content and the size of ``source``.

        The source may be active. An existing target keeps its older revisions.

        :raise NoSpace: :raise VolumeBusy: the target is active
        """

    async def activate(self, spec: VolumeSpec) -> BlockSource:
        """Prepare for a start: overlay, snapshot or volatile, as the flags say. If it raises, nothing is active.

        The first layer is fresh and this machine's alone, the others (none for a volatile volume) are the committed
        content that ``BlockSource.revision`` names; layers put between the two by the caller are no business of the
        pool. ``ephemeral``: the first layer is encrypted with ``BlockSource.key``, which exists nowhere else.

        :raise NoSpace: :raise VolumeBusy: it is active, or was when the daemon ended and nothing settled it yet
        :raise StorageError: it is ``ephemeral`` and kept, which contradict each other

        What must survive (``save_on_stop``) is recorded on disk: after a crash of the daemon the volume is
        still active, until :meth:`deactivate` says what becomes of it.
        """

    async def mark_active(self, spec: VolumeSpec, source: BlockSource) -> None:
        """A machine found running after a restart uses this volume; protects the layers of ``source``."""

    async def deactivate(self, spec: VolumeSpec, *, commit: bool) -> None:
        """The machine is gone. ``commit=True``: the overlay becomes the newest revision, atomically.

        ``commit=False``: a ``save_on_stop`` overlay is discarded. Idempotent; volumes that keep nothing ignore
        ``commit``.

        :raise StorageError: not committed, still active: try again; or (the message says so) the overlay is not
            acceptable, was put aside, and the volume is as before the start and not active.
        """

    async def is_outdated(self, spec: VolumeSpec) -> bool:
        """For an active snapshot: whether its source has a newer revision by now."""

    async def revision_key(self, spec: VolumeSpec) -> str:
        """Identity of the committed content that the next activation starts from (a snapshot's is its source's): 32 hex
        digits that change with the content and its size, and only then. Never used again, not even by a volume of the
        same name that is made later.

        :raise NoSuchVolume: there is none, or a volume that keeps nothing
        """

    async def revisions(self, spec: VolumeSpec) -> list[Revision]:
        """Older revisions that :meth:`revert` accepts, oldest first."""

    async def revert(self, spec: VolumeSpec, revision_id: str) -> None:
        """Make the content of an older revision the newest; what was newest becomes an older revision.

        :raise NoSuchRevision: :raise VolumeBusy:
        """

    async def resize(self, spec: VolumeSpec, size: int) -> None:
        """Grow to ``size`` bytes, also while active (the driver then tells the machine). Never shrinks."""

    async def usage(self, spec: VolumeSpec) -> int:
        """Bytes the volume takes in the pool."""

    async def size(self, spec: VolumeSpec) -> int:
        """Virtual size in bytes."""

    def export(self, spec: VolumeSpec) -> AsyncIterator[bytes]:
        """Newest committed content as a stream of exactly ``size`` bytes."""

    async def import_stream(self, spec: VolumeSpec, data: AsyncIterable[bytes], size: int) -> None:
        """Replace the content by exactly ``size`` bytes; wrong length: StorageError, old content kept.

        What it replaces becomes an older revision. :raise NoSpace: :raise VolumeBusy:
        """

    async def import_file(self, spec: VolumeSpec, path: Path) -> None:
        """As :meth:`import_stream` with the whole of a raw (sparse) file, whose length is a multiple of 512."""

    async def clear(self, spec: VolumeSpec) -> None:
        """Replace the content by zeros, same size. What it replaces becomes an older revision. :raise VolumeBusy:"""

    async def set_revisions_to_keep(self, spec: VolumeSpec, count: int) -> None:
        """Drop revisions beyond ``count`` (-1 counts as 0) now. Later operations go by the spec they are given."""

    async def volumes(self) -> list[str]:
        """vids of all volumes, sorted."""

    async def pool_usage(self) -> PoolUsage: ...

    async def recover(self, active: frozenset[str]) -> list[str]:
        """After a crash: remove what no record names, finish what was begun; ``active`` vids are left alone.

        Returns one line for each thing done (for the log).
        """

    async def settle(self) -> None:
        """Return when no background work is left (for tests and tools; nothing has to wait for it)."""

    async def aclose(self) -> None:
        """Stop background work cleanly; the pool is not used afterwards."""
