"""Disk images that somebody else made, as files: which format, how large, and whether they name any other file.

Only headers are read here, and only what is needed to hand the image to ``qemu-img`` in its sandbox
(:mod:`insula.storage.qemu_img`): a format by name and a size that was checked. An image that leads to another file (a
backing file, an external data file, a parent, several extents) is refused, though the sandbox would not show it one.

Layouts: QEMU, ``docs/interop/qcow2.txt`` (big-endian); VMware, "Virtual Disk Format 5.0", section "Hosted Sparse
Extents" (little-endian).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from insula.model.block import GIB
from insula.templates.errors import TemplateError

MAX_DISK = 1024 * GIB
"""Bytes a machine would see of it; Whonix' disks have 100 GiB."""
MIN_DISK = 1 << 20
SECTOR = 512
HEADER_BYTES = 64 << 10
"""Of a file that are looked at."""

_QCOW2 = struct.Struct(">IIQIIQIIQQIIQ")
"""Magic, version, backing file's offset and size, cluster_bits, size, encryption, then tables and snapshots."""
_QCOW2_MAGIC = 0x514649FB
_QCOW2_INCOMPATIBLE = 72
"""Where version 3 has its incompatible features, 8 bytes."""
_QCOW2_COMPRESSION = 1 << 3
"""The one incompatible feature that changes nothing but how clusters are packed."""
_QCOW2_CLUSTER_BITS = range(9, 22)

_VMDK = struct.Struct("<4sIIQQQQI")
"""Magic, version, flags, capacity, grain size, descriptor's offset and size (sectors), entries of a grain table."""
_VMDK_MAGIC = b"KDMV"
MAX_DESCRIPTOR = 64
"""Sectors; 20 are usual."""
_EXTENT = re.compile(r'RW (\d{1,12}) SPARSE "([^"/\\]{1,255})"')


class DiskFormat(StrEnum):
    """Names as ``qemu-img`` knows them."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"


@dataclass(frozen=True)
class Disk:
    format: DiskFormat
    size: int
    """Bytes a machine would see."""


def read_disk(untrusted_file: BinaryIO, length: int) -> Disk:
    """What an image is. :param length: of the file. :raise TemplateError: none that is taken."""
    untrusted_file.seek(0)
    return parse_disk(untrusted_file.read(HEADER_BYTES), length)


def parse_disk(untrusted_start: bytes, length: int) -> Disk:
    """The same from the first :data:`HEADER_BYTES` of a file."""
    if untrusted_start[:4] == struct.pack(">I", _QCOW2_MAGIC):
        disk = Disk(DiskFormat.QCOW2, _qcow2_size(untrusted_start))
    elif untrusted_start[:4] == _VMDK_MAGIC:
        disk = Disk(DiskFormat.VMDK, _vmdk_size(untrusted_start))
    elif untrusted_start.startswith(
        (b"# Disk DescriptorFile", b"QFI", b"conectix", b"<<< ", b"QED\0", b"LUKS\xba\xbe")
    ):
        raise TemplateError("the disk image is of a format that is not taken: raw, qcow2 and vmdk are")
    else:
        disk = Disk(DiskFormat.RAW, length)
    if disk.size % SECTOR or not MIN_DISK <= disk.size <= MAX_DISK:
        raise TemplateError(f"the disk has {disk.size} bytes; from {MIN_DISK} to {MAX_DISK} are taken, whole sectors")
    return disk


def _qcow2_size(untrusted_start: bytes) -> int:
    if len(untrusted_start) < _QCOW2_INCOMPATIBLE + 8:
        raise TemplateError("the qcow2 image ends within its header")
    _, version, backing, backing_size, cluster_bits, size, encryption, *_ = _QCOW2.unpack_from(untrusted_start)
    snapshots = struct.unpack_from(">I", untrusted_start, 60)[0]
    if version not in (2, 3) or cluster_bits not in _QCOW2_CLUSTER_BITS:
        raise TemplateError("the qcow2 image is of a version that is not taken")
    if backing or backing_size:
        raise TemplateError("the qcow2 image names a backing file: it is not whole")
    incompatible = struct.unpack_from(">Q", untrusted_start, _QCOW2_INCOMPATIBLE)[0] if version == 3 else 0
    if incompatible & ~_QCOW2_COMPRESSION or encryption or snapshots:
        # Dirty, corrupt, an external data file, extended entries; none belongs into what is published.
        raise TemplateError("the qcow2 image names another file, is encrypted, damaged, or holds snapshots")
    assert isinstance(size, int)
    return size


def _vmdk_size(untrusted_start: bytes) -> int:
    if len(untrusted_start) < SECTOR:
        raise TemplateError("the vmdk image ends within its header")
    _, version, _, capacity, _, at, sectors, _ = _VMDK.unpack_from(untrusted_start)
    if version not in (1, 2, 3) or not capacity or not 0 < sectors <= MAX_DESCRIPTOR or at < 1:
        raise TemplateError("the vmdk image is of a kind that is not taken: one sparse file with its description is")
    untrusted_text = untrusted_start[at * SECTOR : (at + sectors) * SECTOR].partition(b"\0")[0].decode("latin-1")
    settings = {
        key.strip().lower(): value.strip().strip('"')
        for key, equals, value in (line.partition("=") for line in untrusted_text.splitlines())
        if equals
    }
    if settings.get("createtype") not in ("streamOptimized", "monolithicSparse"):
        raise TemplateError("the vmdk image is made of several files")
    if settings.get("parentcid", "").lower() != "ffffffff" or "parentfilenamehint" in settings:
        raise TemplateError("the vmdk image names a parent: it is not whole")
    extents = [line for line in untrusted_text.splitlines() if line.startswith(("RW ", "RDONLY ", "NOACCESS "))]
    if len(extents) != 1 or not _EXTENT.fullmatch(extents[0].strip()):
        raise TemplateError("the vmdk image is made of several files")
    assert isinstance(capacity, int)
    return capacity * SECTOR
