"""Invariant: any bytes are a disk of a size that is taken, with its root within it, or TemplateError."""

from __future__ import annotations

import struct

import harness

from insula.templates.errors import TemplateError
from insula.templates.foreign_disk import HEADER_BYTES, MAX_DISK, parse_disk
from insula.templates.partition_table import TABLE_BYTES, find_root

_MBR = bytes(446) + struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 4096, 40960).ljust(64, b"\0") + b"\x55\xaa"
_VMDK = struct.pack("<4sIIQQQQI", b"KDMV", 3, 0x30001, 43008, 128, 1, 20, 512).ljust(512, b"\0")
SEEDS = [
    struct.pack(">IIQIIQIIQQIIQ", 0x514649FB, 3, 0, 0, 16, 100 << 30, 0, 1, 0x30000, 0x10000, 1, 0, 0) + bytes(64),
    _VMDK + b'parentCID=ffffffff\ncreateType="streamOptimized"\nRW 43008 SPARSE "d.vmdk"\n',
    _MBR + bytes(512),
    _MBR.replace(b"\x83", b"\xee", 1)
    + struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 1, 92, 0, 0, 1, 9, 34, 9, b"", 2, 9, 128, 0),
]


def fuzz_one(data: bytes) -> None:
    try:
        disk = parse_disk(data[:HEADER_BYTES], len(data) << 12)
        assert 0 < disk.size <= MAX_DISK
        root = find_root(data[:TABLE_BYTES], disk.size)
    except TemplateError:
        return
    assert root.size > 0
    assert root.offset + root.size <= disk.size


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
