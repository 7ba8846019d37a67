"""The record of a volume: which files make which revision. Pure values; nothing here touches a disk.

A volume's content at one revision is a *chain* of layer files, base first. Layers are immutable, so a commit
adds one layer and a revision whose chain is the old one plus that layer; a revert adds a revision whose chain
is the older one's. Chains of one volume therefore form a tree over a common base.

Old revisions are dropped from the list; what remains of their layers is *folded*. Two neighbours can be merged
when every chain that has the lower one has the upper one right on top of it: then no view shows the lower one's
masked blocks, so overwriting them with the upper one's changes nothing for anybody, whether or not it is
interrupted. Layers shared with another volume (hard links) are never written; where sharing has made chains
long, the common start of all chains is copied into one new layer of its own.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Set
from itertools import pairwise
from typing import Final

import msgspec

from insula.model.block import LayerFormat
from insula.storage.pool import NoSuchRevision, Revision, StorageError

FORMAT_VERSION: Final = 1
MANIFEST_MAX: Final = 1024 * 1024
"""Bytes; 33 revisions of 64 layers take a quarter of it."""
REVISIONS_MAX: Final = 32
"""Older revisions kept at most: each costs a layer in the chain of the newest."""
LAYERS_WANTED: Final = 16
"""Above this the common start of all chains is flattened, and an activation waits for pending folding. Each
layer costs a running machine an open file and a table look-up per miss."""
LAYERS_MAX: Final = 64
"""Above this a volume is not activated: the monitor opens every layer recursively."""
SIZE_MAX: Final = 16 * 1024**4
"""Largest virtual size in bytes: the largest file of ext4 (and so of a raw base) with 4 KiB blocks."""
SECTOR: Final = 512
CONTENT_KEY_DIGITS: Final = 32
"""128 bits: two contents never share one by chance."""

VID_MAX: Final = 200
"""Characters; a vid becomes part of one file name (at most 255 bytes) in the scratch folder."""
_VID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_LAYER_FILE = re.compile(r"[0-9a-f]{16}\.(raw|qcow2)")
_REVISION_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9]{6,}")
_REVISION_TIME = "%Y%m%dT%H%M%S"


def check_vid(vid: str) -> str:
    """Names like ``qubes/work/private``; no part starts with a dot, so ``..`` and hidden folders are excluded.

    :raise StorageError: anything else
    """
    if len(vid) > VID_MAX or _VID.fullmatch(vid) is None:
        raise StorageError(f"not a volume identifier: {vid[:VID_MAX]!r}")
    return vid


def check_size(size: int) -> int:
    """:raise StorageError: not a positive multiple of 512 up to SIZE_MAX"""
    if not 0 < size <= SIZE_MAX or size % SECTOR:
        raise StorageError(f"not a volume size: {size} (a multiple of {SECTOR} up to {SIZE_MAX} is)")
    return size


def is_layer_file(name: str) -> bool:
    """Whether a pool could have made a file of this name; others in its folders are never touched."""
    return _LAYER_FILE.fullmatch(name) is not None


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    """Name within the volume's folder."""
    format: LayerFormat
    size: int
    """Virtual bytes. May be less than the revision's size: what is beyond reads as zero."""


Chain = tuple[Layer, ...]
"""Base first."""


class RevisionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    created: float
    """Unix time."""
    size: int
    """Virtual bytes of the volume at this revision."""
    chain: Chain


class Merge(msgspec.Struct, frozen=True):
    """Write the data of ``upper`` into ``lower``, in place; both belong to this volume alone."""

    below: Chain
    """What ``lower`` stands on."""
    lower: Layer
    upper: Layer


class Flatten(msgspec.Struct, frozen=True):
    """Copy the content of ``chain``, the start of all chains, into one new raw layer."""

    chain: Chain


Fold = Merge | Flatten


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    vid: str
    revisions: tuple[RevisionRecord, ...]
    """Oldest first, never empty; the last is the volume's content."""
    dirty: str | None = None
    """Overlay (qcow2 file name) over the newest revision that a machine writes, or wrote when all ended."""

    @property
    def newest(self) -> RevisionRecord:
        return self.revisions[-1]

    @property
    def size(self) -> int:
        return self.newest.size

    @property
    def files(self) -> frozenset[str]:
        """Every file this record needs."""
        named = {layer.file for revision in self.revisions for layer in revision.chain}
        return frozenset(named | {self.dirty} if self.dirty else named)

    def older(self) -> list[Revision]:
        return [Revision(revision.id, revision.created) for revision in self.revisions[:-1]]

    def find(self, revision_id: str) -> RevisionRecord:
        """:raise NoSuchRevision: not one of :meth:`older`"""
        for revision in self.revisions[:-1]:
            if revision.id == revision_id:
                return revision
        raise NoSuchRevision(f"volume {self.vid} has no older revision {revision_id!r}")

    @property
    def content_key(self) -> str:
        """Identity of the newest content (``Pool.revision_key``). Not of its layers: folding changes them alone.

        The time, to less than a microsecond, tells apart volumes of one name that were made in one second.
        """
        newest = self.newest
        identity = f"{self.vid} {newest.id} {newest.created!r} {newest.size}"
        return hashlib.sha256(identity.encode("ascii")).hexdigest()[:CONTENT_KEY_DIGITS]

    # Changes: each returns the manifest to be written next.

    def opened(self, overlay: str) -> Manifest:
        return msgspec.structs.replace(self, dirty=overlay)

    def discarded(self) -> Manifest:
        return msgspec.structs.replace(self, dirty=None)

    def resized(self, size: int) -> Manifest:
        """The newest content with zeros at its end."""
        newest = msgspec.structs.replace(self.newest, size=size)
        return msgspec.structs.replace(self, revisions=(*self.revisions[:-1], newest))

    def extended(self, chain: Chain, size: int, keep: int, now: float) -> Manifest:
        """``chain`` as the newest revision, and no machine writing."""
        revision_id = next_revision_id(self.newest.id, now)
        newest = RevisionRecord(id=revision_id, created=now, size=size, chain=chain)
        changed = msgspec.structs.replace(self, revisions=(*self.revisions, newest), dirty=None)
        return changed.trimmed(keep)

    def trimmed(self, keep: int) -> Manifest:
        """At most ``keep`` older revisions (-1 counts as 0)."""
        return msgspec.structs.replace(self, revisions=self.revisions[-(max(keep, 0) + 1) :])

    def merged(self, fold: Merge) -> Manifest:
        size = max(fold.lower.size, fold.upper.size)
        result = msgspec.structs.replace(fold.lower, size=size)
        return self._with_start((*fold.below, fold.lower, fold.upper), (*fold.below, result))

    def flattened(self, fold: Flatten, result: Layer) -> Manifest:
        return self._with_start(fold.chain, (result,))

    def _with_start(self, old: Chain, new: Chain) -> Manifest:
        revisions = tuple(
            msgspec.structs.replace(revision, chain=new + revision.chain[len(old) :])
            if revision.chain[: len(old)] == old
            else revision
            for revision in self.revisions
        )
        return msgspec.structs.replace(self, revisions=revisions)


def first_manifest(vid: str, chain: Chain, size: int, now: float) -> Manifest:
    """A volume whose only content is ``chain``."""
    revision = RevisionRecord(id=next_revision_id("", now), created=now, size=size, chain=chain)
    return Manifest(version=FORMAT_VERSION, vid=vid, revisions=(revision,))


def next_revision_id(last: str, now: float) -> str:
    """``20261123T101500-000001``: UTC second and a number within it; sorts after ``last`` as text.

    When the clock stands still or went back, the last second is used on, with the next number (MC-105).
    """
    second = time.strftime(_REVISION_TIME, time.gmtime(now))
    last_second, _, last_number = last.partition("-")
    if second > last_second:
        return f"{second}-000001"
    return f"{last_second}-{int(last_number) + 1:06}"


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


class _VersionOnly(msgspec.Struct):
    version: int


def decode(data: bytes, vid: str) -> Manifest:
    """Read a manifest strictly: nothing is guessed, a record that is not understood is never overwritten.

    :raise StorageError: unreadable, newer than this program, or contradicting itself (MC-63)
    """
    where = f"record of volume {vid}"
    if len(data) > MANIFEST_MAX:
        raise StorageError(f"{where} is larger than {MANIFEST_MAX} bytes")
    try:
        version = msgspec.json.decode(data, type=_VersionOnly).version
        if version != FORMAT_VERSION:
            raise StorageError(f"{where} has version {version}; this program knows version {FORMAT_VERSION}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StorageError(f"{where} cannot be read: {error}") from error
    problem = _contradiction(manifest, vid)
    if problem:
        raise StorageError(f"{where} contradicts itself: {problem}")
    return manifest


def _contradiction(manifest: Manifest, vid: str) -> str | None:
    if manifest.vid != vid:
        return "it belongs to another volume"
    if not manifest.revisions:
        return "it has no revision"
    ids = [revision.id for revision in manifest.revisions]
    if not all(_REVISION_ID.fullmatch(revision_id) for revision_id in ids):
        return "a revision's id is malformed"
    if ids != sorted(set(ids)):
        return "revisions are not in order"
    if manifest.dirty is not None and not is_layer_file(manifest.dirty):
        return "a file name is malformed"
    for revision in manifest.revisions:
        sizes = [revision.size, *(layer.size for layer in revision.chain)]
        if any(not 0 < size <= SIZE_MAX or size % SECTOR for size in sizes):
            return "a size is impossible"
        files = [layer.file for layer in revision.chain]
        if not files or len(set(files)) != len(files) or manifest.dirty in files:
            return "a chain is empty or names a file twice"
        if not all(is_layer_file(file) for file in files):
            return "a file name is malformed"
        formats = [layer.format for layer in revision.chain]
        if formats[0] is not LayerFormat.RAW or any(format_ is not LayerFormat.QCOW2 for format_ in formats[1:]):
            return "a chain is not a raw base with qcow2 layers"
    return None


def plan_fold(manifest: Manifest, in_use: Set[str], shared: Set[str]) -> Fold | None:
    """What to do next to make chains shorter, or None.

    :param in_use: files that a machine or an export reads; they keep their content and their place.
    :param shared: files that other volumes have as well; they keep their content.
    """
    if manifest.dirty is not None:
        return None
    chains = [revision.chain for revision in manifest.revisions]
    for chain in chains:
        for position in range(len(chain) - 1):
            lower, upper = chain[position], chain[position + 1]
            if {lower.file, upper.file} & (in_use | shared):
                continue
            if all(_on_top_of(other, lower) in (upper, None) for other in chains) and not _tops(chains, lower):
                return Merge(below=chain[:position], lower=lower, upper=upper)
    if len(chains[-1]) > LAYERS_WANTED:
        start = _common_start(chains)
        if len(start) > 1 and not {layer.file for layer in start} & in_use:
            return Flatten(chain=start)
    return None


def _on_top_of(chain: Chain, layer: Layer) -> Layer | None:
    """The layer of ``chain`` that stands on ``layer``; None if there is none."""
    return next((upper for lower, upper in pairwise(chain) if lower == layer), None)


def _tops(chains: list[Chain], layer: Layer) -> bool:
    """Whether ``layer`` is the top of one of the chains: a revision that shows it unmasked."""
    return any(chain[-1] == layer for chain in chains)


def _common_start(chains: list[Chain]) -> Chain:
    start = chains[0]
    for chain in chains[1:]:
        length = 0
        for mine, other in zip(start, chain, strict=False):
            if mine != other:
                break
            length += 1
        start = start[:length]
    return start
