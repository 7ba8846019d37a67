"""Takes the kernel out of a built system: an uncompressed image that starts at once, and the module index.

QEMU can start an ELF kernel that carries a PVH entry note directly (no boot loader, no self-extraction). A Debian
kernel's ``vmlinuz`` is that ELF file, xz-compressed behind a setup stub. Under software emulation unpacking it in the
guest takes longer than all the rest of the kernel's start, so it is unpacked here, once. What is lost is the
randomised load address (KASLR is done by the stub); inside one qube there is no boundary that it would guard.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from insula.templates.errors import BuildFailed

# The x86 boot protocol, https://docs.kernel.org/arch/x86/boot.html ("The Real-Mode Kernel Header").
_SETUP_SECTS = 0x1F1
_MAGIC = 0x202
_MAGIC_VALUE = b"HdrS"
_VERSION = 0x206
_VERSION_WITH_PAYLOAD = 0x0208
_PAYLOAD = 0x248
_SECTOR = 512

_ELF_MAGIC = b"\x7fELF"
_XEN_PHYS32_ENTRY = 18
"""Note type of the PVH entry point, Xen's public/elfnote.h (XEN_ELFNOTE_PHYS32_ENTRY)."""
MAX_KERNEL_SIZE = 512 << 20
"""Bytes of an uncompressed kernel we accept; Debian's has 63 MiB."""


@dataclass(frozen=True)
class KernelFiles:
    """Where a distribution put its kernel, relative to its root folder."""

    version: str
    image: PurePosixPath
    modules: PurePosixPath


def find_kernel(root: Path) -> KernelFiles:
    """The newest kernel of an unpacked system that has image and modules. :raise BuildFailed: there is none."""
    found = [
        path.name.removeprefix("vmlinuz-")
        for path in (root / "boot").glob("vmlinuz-*")
        if (root / "usr/lib/modules" / path.name.removeprefix("vmlinuz-") / "modules.dep").is_file()
    ]
    if not found:
        raise BuildFailed("the system has no kernel with modules")
    version = max(found, key=_version_key)
    return KernelFiles(version, PurePosixPath("boot", f"vmlinuz-{version}"), PurePosixPath("usr/lib/modules", version))


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.replace("-", ".").split(".") if part.isdecimal()]


def unpack_bzimage(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage. :raise BuildFailed: not a bzImage with an xz payload and a PVH entry."""
    if len(image) < _PAYLOAD + 8 or image[_MAGIC : _MAGIC + 4] != _MAGIC_VALUE:
        raise BuildFailed("the kernel image is no bzImage")
    (version,) = struct.unpack_from("<H", image, _VERSION)
    if version < _VERSION_WITH_PAYLOAD:
        raise BuildFailed(f"the kernel image has boot protocol {version:#x}, without a payload offset")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    # The payload ends with its uncompressed size (4 bytes), which the decoder leaves over.
    decoder = lzma.LZMADecompressor()
    try:
        elf = decoder.decompress(image[start : start + length], max_length=MAX_KERNEL_SIZE)
    except lzma.LZMAError as error:
        raise BuildFailed(f"the kernel's payload is not xz: {error}") from error
    if not decoder.eof or not elf.startswith(_ELF_MAGIC):
        raise BuildFailed("the kernel's payload is not an ELF file")
    if not has_pvh_entry(elf):
        raise BuildFailed("the kernel has no PVH entry (CONFIG_PVH)")
    return elf


def has_pvh_entry(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file has Xen's note with the 32-bit physical entry point."""
    program_headers, size, count = struct.unpack_from("<Q14xHH", elf, 0x20)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, program_headers + index * size)
        if kind == 4 and _has_note(elf[offset : offset + length], b"Xen\0", _XEN_PHYS32_ENTRY):  # PT_NOTE
            return True
    return False


def _has_note(notes: bytes, name: bytes, kind: int) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, data_size, note_kind = struct.unpack_from("<III", notes, position)
        position += 12
        if note_kind == kind and notes[position : position + name_size] == name:
            return True
        position += (name_size + 3 & ~3) + (data_size + 3 & ~3)
    return False


def parse_modules_dep(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep(5): path of each module → paths it needs, in the order depmod wrote them."""
    index = {}
    for line in text.splitlines():
        path, colon, needed = line.partition(":")
        if colon:
            index[path.strip()] = tuple(needed.split())
    return index


def load_order(index: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[str]:
    """Paths of the named modules and all they need, each after what it needs.

    :raise BuildFailed: a module is not in the index.
    """
    by_name = {module_name(path): path for path in index}
    order: list[str] = []

    def add(path: str) -> None:
        if path in order:
            return
        for needed in index[path]:
            add(needed)
        order.append(path)

    for name in names:
        path = by_name.get(module_name(name))
        if path is None:
            raise BuildFailed(f"the kernel has no module {name}")
        add(path)
    return order


def module_name(path: str) -> str:
    """``kernel/fs/ext4/ext4.ko.xz`` → ``ext4``; dashes and underscores are one."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")
