"""The ``linux-kernel`` pool: kernels of the host, ``DIR_PATH/VERSION/{vmlinuz,initrd}``, seen as read-only volumes.

Qubes have a ``kernel`` volume whose vid is a version. It is no disk: the hypervisor gets the two files. The pool
exists so that clients can list what there is; installing kernels is not its business.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NoReturn

from insula.model.block import BlockSource, VolumeSpec
from insula.storage import files
from insula.storage.pool import NoSuchVolume, PoolUsage, Prepare, Revision, StorageError
from insula.storage.transfer import blocking

IMAGE: Final = "vmlinuz"
"""A folder without this file is not a kernel."""
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


class KernelPool:
    """Implements :class:`insula.storage.pool.Pool`: everything that would change something is refused."""

    driver = "linux-kernel"

    def __init__(self, name: str, config: Mapping[str, str], dir_path: Path) -> None:
        """
        :param dir_path: absolute; need not exist yet.
        :raise StorageError: it is relative
        """
        if not dir_path.is_absolute():
            raise StorageError(f"dir_path of pool {name} must be an absolute path, not {str(dir_path)!r}")
        self.name = name
        self.config = dict(config)
        self._folder = dir_path

    async def volumes(self) -> list[str]:
        return await blocking(f"listing pool {self.name}", self._versions)

    def _versions(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if (path / IMAGE).is_file()]
        return sorted(name for name in names if _VERSION.fullmatch(name))

    async def create(self, spec: VolumeSpec, prepare: Prepare | None = None) -> None:
        """Nothing to make. :raise NoSuchVolume: there is no such kernel"""
        await self._require(spec)

    async def remove(self, spec: VolumeSpec) -> None:
        """A qube's kernel volume goes, the kernel stays."""

    async def usage(self, spec: VolumeSpec) -> int:
        folder = await self._require(spec)
        return sum(files.allocated(path) for path in folder.iterdir())

    async def size(self, spec: VolumeSpec) -> int:
        """0: not a disk."""
        await self._require(spec)
        return 0

    async def revisions(self, spec: VolumeSpec) -> list[Revision]:
        await self._require(spec)
        return []

    async def revision_key(self, spec: VolumeSpec) -> str:
        self._refuse(spec, "told apart by content")

    async def is_outdated(self, spec: VolumeSpec) -> bool:
        return False

    async def mark_active(self, spec: VolumeSpec, source: BlockSource) -> None:
        """Nothing to protect."""

    async def deactivate(self, spec: VolumeSpec, *, commit: bool) -> None:
        """Nothing to settle."""

    async def activate(self, spec: VolumeSpec) -> BlockSource:
        self._refuse(spec, "attached as a disk")

    async def clone(self, source: VolumeSpec, target: VolumeSpec) -> None:
        self._refuse(target, "replaced")

    async def revert(self, spec: VolumeSpec, revision_id: str) -> None:
        self._refuse(spec, "reverted")

    async def resize(self, spec: VolumeSpec, size: int) -> None:
        self._refuse(spec, "resized")

    async def export(self, spec: VolumeSpec) -> AsyncIterator[bytes]:
        self._refuse(spec, "exported")
        yield b""

    async def import_stream(self, spec: VolumeSpec, data: AsyncIterable[bytes], size: int) -> None:
        self._refuse(spec, "replaced")

    async def import_file(self, spec: VolumeSpec, path: Path) -> None:
        self._refuse(spec, "replaced")

    async def clear(self, spec: VolumeSpec) -> None:
        self._refuse(spec, "cleared")

    async def set_revisions_to_keep(self, spec: VolumeSpec, count: int) -> None:
        self._refuse(spec, "given revisions")

    async def pool_usage(self) -> PoolUsage:
        def measure() -> PoolUsage:
            existing = next(path for path in (self._folder, *self._folder.parents) if path.is_dir())
            space = files.Space(existing)
            total = space.total()
            return PoolUsage(size=total, used=total - space.free())

        return await blocking(f"measuring pool {self.name}", measure)

    async def recover(self, active: frozenset[str]) -> list[str]:
        return []

    async def settle(self) -> None:
        """There is no background work."""

    async def aclose(self) -> None:
        """There is no background work."""

    async def _require(self, spec: VolumeSpec) -> Path:
        versions = await blocking(f"looking for kernel {spec.vid}", self._versions)
        if spec.vid not in versions:
            raise NoSuchVolume(f"there is no kernel {spec.vid!r} in pool {self.name}")
        return self._folder / spec.vid

    def _refuse(self, spec: VolumeSpec, what: str) -> NoReturn:
        raise StorageError(f"kernel {spec.vid} cannot be {what}: pool {self.name} is read-only")
