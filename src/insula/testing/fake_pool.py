"""A storage pool in memory: what a volume holds is the bytes it was given, the rest of its size is zero."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from insula.model.block import GIB, BlockLayer, BlockSource, LayerFormat, VolumeSpec
from insula.storage.pool import NoSuchRevision, NoSuchVolume, PoolUsage, Prepare, Revision, StorageError, VolumeBusy

POOL_SIZE = 1000 * GIB
"""Bytes; never runs out."""


@dataclass
class _Content:
    size: int
    data: bytes = b""
    older: dict[str, bytes] = field(default_factory=dict)
    """Revision → content, oldest first."""
    made: int = 0
    active: bool = False


class FakePool:
    """Implements :class:`insula.storage.pool.Pool`. Snapshots and volatile volumes hold nothing of their own."""

    def __init__(self, name: str, driver: str = "fake", config: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._driver = driver
        self._config = dict(config or {})
        self._volumes: dict[str, _Content] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def driver(self) -> str:
        return self._driver

    @property
    def config(self) -> Mapping[str, str]:
        return self._config

    def content(self, vid: str) -> bytes:
        """Newest content without the zeros after it, for tests."""
        return self._volumes[vid].data

    async def create(self, spec: VolumeSpec, prepare: Prepare | None = None) -> None:
        # What would be prepared is a file; here there is none.
        if spec.vid in self._volumes:
            raise StorageError(f"Volume {spec.vid} exists already")
        if spec.save_on_stop:
            self._volumes[spec.vid] = _Content(spec.size)

    async def revision_key(self, spec: VolumeSpec) -> str:
        return f"{spec.source or spec.vid}@{self._volumes[spec.source or spec.vid].made}"

    async def remove(self, spec: VolumeSpec) -> None:
        if spec.vid in self._volumes:
            self._idle(spec)
            del self._volumes[spec.vid]

    async def clone(self, source: VolumeSpec, target: VolumeSpec) -> None:
        origin = self._kept(source)
        self._volumes.setdefault(target.vid, _Content(target.size))
        self._replace(target, origin.data, origin.size)

    async def activate(self, spec: VolumeSpec) -> BlockSource:
        if spec.save_on_stop:
            self._idle(spec).active = True
        layer = BlockLayer(Path("/nonexistent") / spec.vid, LayerFormat.RAW)
        return BlockSource((layer,), spec.size, writable=spec.rw, unlink_top=not spec.save_on_stop)

    async def mark_active(self, spec: VolumeSpec, source: BlockSource) -> None:
        if spec.save_on_stop:
            self._kept(spec).active = True

    async def deactivate(self, spec: VolumeSpec, *, commit: bool) -> None:
        if spec.save_on_stop:
            self._kept(spec).active = False

    async def is_outdated(self, spec: VolumeSpec) -> bool:
        return False

    async def revisions(self, spec: VolumeSpec) -> list[Revision]:
        content = self._volumes.get(spec.vid)
        return [Revision(id, float(number)) for number, id in enumerate(content.older)] if content else []

    async def revert(self, spec: VolumeSpec, revision_id: str) -> None:
        content = self._idle(spec)
        if revision_id not in content.older:
            raise NoSuchRevision(f"Volume {spec.vid} has no revision {revision_id}")
        self._replace(spec, content.older[revision_id], content.size)

    async def resize(self, spec: VolumeSpec, size: int) -> None:
        if spec.save_on_stop:
            self._kept(spec).size = size

    async def usage(self, spec: VolumeSpec) -> int:
        content = self._volumes.get(spec.vid)
        return len(content.data) if content else 0

    async def size(self, spec: VolumeSpec) -> int:
        return self._kept(spec).size

    async def export(self, spec: VolumeSpec) -> AsyncIterator[bytes]:
        content = self._kept(spec)
        yield content.data + bytes(content.size - len(content.data))

    async def import_stream(self, spec: VolumeSpec, data: AsyncIterable[bytes], size: int) -> None:
        self._idle(spec)
        received = b"".join([chunk async for chunk in data])
        if len(received) != size:
            raise StorageError(f"{len(received)} bytes instead of {size}")
        self._replace(spec, received.rstrip(b"\0"), size)

    async def import_file(self, spec: VolumeSpec, path: Path) -> None:
        self._idle(spec)
        received = path.read_bytes()
        self._replace(spec, received.rstrip(b"\0"), len(received))

    async def clear(self, spec: VolumeSpec) -> None:
        self._replace(spec, b"", self._idle(spec).size)

    async def set_revisions_to_keep(self, spec: VolumeSpec, count: int) -> None:
        _trim(self._kept(spec), count)

    async def volumes(self) -> list[str]:
        return sorted(self._volumes)

    async def pool_usage(self) -> PoolUsage:
        return PoolUsage(POOL_SIZE, sum(len(content.data) for content in self._volumes.values()))

    async def recover(self, active: frozenset[str]) -> list[str]:
        return []

    async def settle(self) -> None:
        """Nothing is done in the background."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def _kept(self, spec: VolumeSpec) -> _Content:
        if spec.vid not in self._volumes:
            raise NoSuchVolume(f"No volume {spec.vid} in pool {self._name}")
        return self._volumes[spec.vid]

    def _idle(self, spec: VolumeSpec) -> _Content:
        content = self._kept(spec)
        if content.active:
            raise VolumeBusy(f"Volume {spec.vid} is in use")
        return content

    def _replace(self, spec: VolumeSpec, data: bytes, size: int) -> None:
        """Make ``data`` the newest content; what was newest becomes a revision."""
        content = self._idle(spec)
        content.made += 1
        content.older[f"{content.made}-back"] = content.data
        content.data, content.size = data, size
        _trim(content, spec.revisions_to_keep)


def _trim(content: _Content, count: int) -> None:
    for revision in list(content.older)[: max(0, len(content.older) - max(0, count))]:
        del content.older[revision]
