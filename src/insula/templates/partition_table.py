"""Where the system is on a disk somebody else made: partition tables and file systems, read as far as needed.

Pure; the disk is untrusted. Layouts and constants: UEFI specification 2.10, section 5 (GPT) and 5.2.1 (MBR); Linux,
``Documentation/filesystems/ext4/super.rst`` (magic at 0x38 of the superblock, which begins at byte 1024).
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from insula.templates.errors import TemplateError

SECTOR = 512
TABLE_BYTES = 1 << 20
"""Of the disk that are looked at: where the first partition of any disk made today begins."""
MAX_ENTRIES = 128
"""Of a GPT: what every tool makes; more are refused."""
ENTRY_SIZE = 128
_MBR_ENTRY = struct.Struct("<B3sB3sII")
"""Status, first CHS, type, last CHS, first sector, sectors."""
_MBR_ENTRIES = 446
_MBR_MAGIC = b"\x55\xaa"
_MBR_LINUX = 0x83
_MBR_PROTECTIVE = 0xEE
_GPT = struct.Struct("<8sIIIIQQQQ16sQIII")
"""Signature, revision, header size, CRC, reserved, this LBA, other LBA, first and last usable LBA, GUID of the disk,
LBA of the entries, number and size of the entries, their CRC."""
_GPT_SIGNATURE = b"EFI PART"
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_LINUX_TYPES = frozenset(
    uuid.UUID(text).bytes_le
    for text in (
        "0fc63daf-8483-4772-8e79-3d69d8477de4",  # Linux file system data
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",  # root, x86-64 (Discoverable Partitions Specification)
    )
)
_EXT_MAGIC_OFFSET = 1024 + 0x38
_EXT_MAGIC = b"\x53\xef"


@dataclass(frozen=True)
class Extent:
    """Part of a disk, in bytes."""

    offset: int
    size: int


def find_root(untrusted_start: bytes, size: int) -> Extent:
    """The largest partition for Linux; of a disk without partitions, all of it.

    :param untrusted_start: the first :data:`TABLE_BYTES` of the disk, or all of a smaller one.
    :param size: of the disk, bytes.
    :raise TemplateError: there is none, or the table is none that a tool would make.
    """
    if untrusted_start[_EXT_MAGIC_OFFSET : _EXT_MAGIC_OFFSET + 2] == _EXT_MAGIC:
        return Extent(0, size)
    if len(untrusted_start) < 2 * SECTOR or untrusted_start[SECTOR - 2 : SECTOR] != _MBR_MAGIC:
        raise TemplateError("the disk has neither a partition table nor an ext4 file system")
    found = _mbr_partitions(untrusted_start)
    if found is None:
        found = _gpt_partitions(untrusted_start)
    fitting = [extent for extent in found if extent.size > 0 and extent.offset >= SECTOR]
    if not fitting:
        raise TemplateError("the disk has no partition for Linux")
    root = max(fitting, key=lambda extent: extent.size)
    if root.offset + root.size > size:
        raise TemplateError("a partition goes beyond the end of the disk")
    return root


def _mbr_partitions(untrusted_start: bytes) -> list[Extent] | None:
    """Linux partitions of an MBR; None: it only protects a GPT."""
    entries = [_MBR_ENTRY.unpack_from(untrusted_start, _MBR_ENTRIES + 16 * number) for number in range(4)]
    if any(kind == _MBR_PROTECTIVE for _, _, kind, _, _, _ in entries):
        return None
    return [Extent(first * SECTOR, count * SECTOR) for _, _, kind, _, first, count in entries if kind == _MBR_LINUX]


def _gpt_partitions(untrusted_start: bytes) -> list[Extent]:
    """:raise TemplateError: not a GPT as tools make it."""
    if len(untrusted_start) < SECTOR + _GPT.size:
        raise TemplateError("the disk ends within its partition table")
    signature, *_, entries_at, count, entry_size, _ = _GPT.unpack_from(untrusted_start, SECTOR)
    if signature != _GPT_SIGNATURE or entry_size != ENTRY_SIZE or not 0 < count <= MAX_ENTRIES:
        raise TemplateError("the disk's partition table is none that can be read")
    end = entries_at * SECTOR + count * ENTRY_SIZE
    if entries_at < 2 or end > len(untrusted_start):
        raise TemplateError("the disk's partition table lies elsewhere than at its start")
    found = []
    for number in range(count):
        kind, _, first, last, _, _ = _GPT_ENTRY.unpack_from(untrusted_start, entries_at * SECTOR + number * ENTRY_SIZE)
        if kind in _LINUX_TYPES and last >= first:
            found.append(Extent(first * SECTOR, (last - first + 1) * SECTOR))
    return found
