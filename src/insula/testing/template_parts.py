"""Small stand-ins for what templates are made of: a kernel that unpacks, a distribution that builds in a second."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from insula.templates import namespace
from insula.templates.distribution import OsInfo, Progress, Workroom
from insula.templates.initramfs import ROOT_MODULES

KERNEL_VERSION = "6.1.0-1-test"


def pvh_elf(note_kind: int = 18) -> bytes:
    """A 64-bit ELF file with nothing but one Xen note (18: the PVH entry point)."""
    note = struct.pack("<III4sI", 4, 4, note_kind, b"Xen\0", 0x1000000)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program_header = struct.pack("<IIQQQQQQ", 4, 4, 64 + 56, 0, 0, len(note), len(note), 4)
    return header + program_header + note


def bzimage(payload: bytes) -> bytes:
    """A bzImage whose payload, xz-compressed, follows one setup sector and the boot sector."""
    packed = lzma.compress(payload) + struct.pack("<I", len(payload))
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020F)
    struct.pack_into("<II", setup, 0x248, 0, len(packed))
    return bytes(setup) + packed


def tiny_system() -> dict[str, bytes]:
    """Files of a system that has what a build looks for, and does nothing."""
    modules = f"usr/lib/modules/{KERNEL_VERSION}"
    files = {f"{modules}/kernel/{name}.ko": name.encode() for name in ROOT_MODULES}
    files[f"{modules}/modules.dep"] = "".join(f"kernel/{name}.ko:\n" for name in ROOT_MODULES).encode()
    files[f"boot/vmlinuz-{KERNEL_VERSION}"] = bzimage(pvh_elf())
    files["usr/bin/busybox"] = b"busybox"
    return files


@dataclass
class TinyDistribution:
    """Packs :func:`tiny_system` instead of installing packages; counts how often."""

    name: str = "tiny-1"
    os: OsInfo = field(default_factory=lambda: OsInfo("tiny", "", "1", "2099-12-31"))
    files: Mapping[str, bytes] = field(default_factory=tiny_system)
    script: str = 'test -s "$2"; echo adapted > "$1/adapted"; chown 1000:1000 "$1/adapted"'
    bootstraps: int = 0

    def bootstrap_inputs(self) -> Mapping[str, str]:
        return {"files": repr(sorted(self.files.items()))}

    async def bootstrap(self, room: Workroom, target: str, progress: Progress) -> None:
        self.bootstraps += 1
        progress(0.5, "packing")
        source = room.path / "tmp" / "source"
        for name, content in self.files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        await namespace.run(
            ["tar", "--create", "--file", f"{target}.part", "--owner=0", "--group=0", "--directory", "tmp/source", "."],
            work_dir=room.path,
            ids=room.ids,
        )
        Path(room.path / f"{target}.part").rename(room.path / target)

    def adapt_script(self) -> str:
        return self.script
