"""The qcow2 image header: making an empty overlay and checking one that came back from a machine.

A start must not wait for a tool per disk, so empty overlays are made here: header, one refcount table, one
refcount block, an empty L1 table; 256 KiB long, of which 12 KiB are allocated. An encrypted one has a LUKS header as
well, with the key slot in use 144 KiB more. The header never names a backing file: chains come from the pool's
manifests only (MC-65).

An overlay that a machine has written is untrusted: its monitor may have been taken over by the guest.
:func:`parse_header` reads the fixed header alone and accepts only what this module writes, except that the
tables may have moved and grown.

Source of layout and constants: QEMU, ``docs/interop/qcow2.txt``, sections "Header", "Header extensions", "Full disk
encryption header pointer", "Host cluster management" and "Cluster mapping"; all integers are big-endian.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from insula.storage import files, luks
from insula.storage.pool import StorageError

MAGIC = 0x514649FB
"""``QFI\\xfb``, bytes 0 to 3."""
VERSION = 3
CLUSTER_BITS = 16
CLUSTER_SIZE = 1 << CLUSTER_BITS
"""64 KiB: QEMU's default; one L2 table then covers 512 MiB."""
REFCOUNT_ORDER = 4
"""Refcounts are 1 << 4 = 16 bits wide (the default)."""
HEADER_LENGTH = 104
"""Version 3 without the optional compression type field."""
MAX_HEADER_LENGTH = 4096
"""A header of a later QEMU has more fields; far more than any known one has."""
ENTRY_SIZE = 8
"""Bytes per entry of the L1, L2 and refcount tables."""
BYTES_PER_L1_ENTRY = CLUSTER_SIZE // ENTRY_SIZE * CLUSTER_SIZE
CRYPT_NONE, CRYPT_LUKS = 0, 2
"""Encryption methods."""
_EXTENSION = struct.Struct(">II")
"""Type and length of a header extension; the data follow, padded to 8 bytes. Type 0 ends the list."""
_ENCRYPTION_HEADER = 0x0537BE77
"""Extension: offset (a multiple of the cluster size) and length of the LUKS header, 8 bytes each."""

_FIXED = struct.Struct(">IIQIIQIIQQIIQQQQII")
"""Bytes 0 to 103: magic, version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method,
l1_size, l1_table_offset, refcount_table_offset, refcount_table_clusters, nb_snapshots, snapshots_offset,
incompatible_features, compatible_features, autoclear_features, refcount_order, header_length."""
assert _FIXED.size == HEADER_LENGTH


class BadImage(StorageError):
    """The image is not one that a correct monitor could have made of the overlay it was given."""


@dataclass(frozen=True)
class Header:
    """What a checked header says."""

    size: int
    """Virtual size in bytes."""


@dataclass(frozen=True)
class Image:
    """An image file that is zero but for some pieces."""

    length: int
    """Bytes."""
    pieces: tuple[tuple[int, bytes], ...]
    """Offset and data; the header is the last one."""


def write_overlay(path: Path, size: int) -> None:
    """Make the file ``path``, a qcow2 image of ``size`` virtual bytes without any data. Does not sync.

    :raise OSError: it exists, or cannot be made; nothing is left.
    """
    _write(path, overlay_image(size))


def write_encrypted_overlay(path: Path, size: int, encryption: luks.Header) -> None:
    """As :func:`write_overlay`, with what is written to it encrypted (LUKS); the header is of no other image."""
    _write(path, overlay_image(size, encryption))


def _write(path: Path, image: Image) -> None:
    with files.new_file(path) as fd:
        os.ftruncate(fd, image.length)
        for offset, data in image.pieces:
            os.pwrite(fd, data, offset)


def _clusters(size: int) -> int:
    return -(-size // CLUSTER_SIZE)


def overlay_image(size: int, encryption: luks.Header | None = None) -> Image:
    """An image of ``size`` virtual bytes without any data."""
    l1_size = -(-size // BYTES_PER_L1_ENTRY)
    # cluster 0 header, 1 refcount table, 2 refcount block, from 3 on the L1 table, then the LUKS header
    used = 3 + _clusters(l1_size * ENTRY_SIZE)
    pieces = []
    extensions = b""
    if encryption is not None:
        offset = used * CLUSTER_SIZE
        used += _clusters(encryption.length)
        extensions = _EXTENSION.pack(_ENCRYPTION_HEADER, 16) + struct.pack(">QQ", offset, encryption.length)
        pieces += [(offset, encryption.header), (offset + luks.MATERIAL_OFFSET, encryption.key_material)]
    header = _FIXED.pack(
        MAGIC, VERSION, 0, 0, CLUSTER_BITS, size, CRYPT_NONE if encryption is None else CRYPT_LUKS, l1_size,
        3 * CLUSTER_SIZE, CLUSTER_SIZE, 1, 0, 0, 0, 0, 0, REFCOUNT_ORDER, HEADER_LENGTH,
    )  # fmt: skip
    pieces += [
        (2 * CLUSTER_SIZE, struct.pack(">H", 1) * used),
        (CLUSTER_SIZE, struct.pack(">Q", 2 * CLUSTER_SIZE)),
        (0, header + extensions + _EXTENSION.pack(0, 0)),
    ]
    return Image(used * CLUSTER_SIZE, tuple(pieces))


def parse_header(untrusted_header: bytes) -> Header:
    """Check the first bytes (at least HEADER_LENGTH of them, if the file has so many) of an image.

    :raise BadImage: it is not qcow2, names another file, or uses a feature that our overlays never have.
    """
    if len(untrusted_header) < HEADER_LENGTH:
        raise BadImage("the overlay is too short to be a qcow2 image")
    (
        magic, version, backing_offset, backing_size, cluster_bits, size, crypt_method, _l1_size, _l1_offset,
        _refcount_offset, _refcount_clusters, snapshots, _snapshots_offset, incompatible, _compatible,
        _autoclear, refcount_order, header_length,
    ) = _FIXED.unpack_from(untrusted_header)  # fmt: skip
    del untrusted_header
    if magic != MAGIC or version != VERSION:
        raise BadImage("the overlay is no longer a qcow2 image of version 3")
    if backing_offset or backing_size:
        raise BadImage("the overlay's header names a backing file")
    if incompatible:
        # dirty and corrupt: unusable; external data file: names another file; the rest is never switched on
        raise BadImage(f"the overlay's header has the incompatible features {incompatible:#x}")
    if cluster_bits != CLUSTER_BITS or refcount_order != REFCOUNT_ORDER or crypt_method != CRYPT_NONE or snapshots:
        raise BadImage("the overlay's header was changed")
    if not HEADER_LENGTH <= header_length <= MAX_HEADER_LENGTH:
        raise BadImage("the overlay's header has an impossible length")
    if size == 0 or size % 512:
        raise BadImage("the overlay's header has an impossible size")
    return Header(size)


def read_header(fd: int) -> Header:
    """:raise BadImage: as :func:`parse_header`"""
    return parse_header(os.pread(fd, HEADER_LENGTH, 0))
