"""Block storage as values: what a volume is, and what a machine gets of it when it starts."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class LayerFormat(StrEnum):
    """On-disk format of one layer; always stated, never probed (MC-65)."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True)
class BlockLayer:
    """One file of a chain."""

    path: Path
    format: LayerFormat


@dataclass(frozen=True)
class BlockSource:
    """What a hypervisor opens as one disk. The chain comes from host records only, never from file headers."""

    layers: tuple[BlockLayer, ...]
    """Top (the only one written) first, base last; never empty."""
    size: int
    """Virtual size in bytes, a multiple of 512."""
    writable: bool
    unlink_top: bool = False
    """The top layer is thrown away: the driver unlinks it as soon as the machine has it open, so that
    nothing is left on the disk whatever ends the machine."""
    key: bytes | None = field(default=None, repr=False, compare=False)
    """Passphrase (:func:`new_key`) of a top layer encrypted with LUKS inside qcow2, to be given to QEMU's ``secret``
    object byte for byte; None: not encrypted. Exists only in memory: records of running machines leave it out
    (:meth:`without_key`), since the monitor has it by then."""
    revision: str = field(default="", compare=False)
    """Identity of the committed content below the top layer (:meth:`insula.storage.pool.Pool.revision_key`); empty if
    there is none or it is not known any more."""

    def without_key(self) -> BlockSource:
        """What may be written down."""
        return replace(self, key=None)


KEY_SIZE = 32
"""Bytes of a key."""


def new_key() -> bytes:
    """A fresh passphrase: 192 random bits as 32 characters of base64, because QEMU takes only UTF-8 for LUKS.

    More than the 128 bits of the cipher it unlocks, so that nobody finds it by trying.
    """
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_SIZE * 6 // 8))


@dataclass(frozen=True)
class VolumeSpec:
    """A volume of a qube as configured (admin-api §5). What it holds is the pool's business."""

    name: str
    """``root``, ``private``, ``volatile`` or ``kernel``."""
    pool: str
    vid: str
    """Identifier within the pool, ``qubes/QUBE/NAME``; for ``kernel`` the kernel's version."""
    size: int
    """Bytes."""
    rw: bool = True
    snap_on_start: bool = False
    """Start from a snapshot of :attr:`source` and throw the changes away."""
    save_on_stop: bool = False
    """Keep what was written (commit on clean shutdown)."""
    source: str | None = None
    """vid of the volume snapshotted at start, in the same pool; set exactly if :attr:`snap_on_start`."""
    revisions_to_keep: int = 1
    """Older revisions kept for revert; -1: none, no snapshots."""
    ephemeral: bool = False
    """Encrypted with a key that exists only in memory."""
