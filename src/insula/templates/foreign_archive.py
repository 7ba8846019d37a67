"""A disk image inside an archive: ``.ova`` (a tar), ``.libvirt.xz`` (a tar, compressed), or any other tar.

Read from front to back, once, by Python's own code; of the archive's names one is used, to choose, and none to write.
Holes stay holes: a disk of 100 GiB takes what is in it.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from insula.model.block import GIB
from insula.templates.errors import TemplateError

DISK_SUFFIXES = (".qcow2", ".vmdk", ".raw", ".img")
MAX_MEMBERS = 100
"""Whonix' archives have about ten."""
MAX_IMAGE = 64 * GIB
"""Bytes of the image as a file; Whonix' have four."""
PIECE = 1 << 20
_COMPRESSED = (b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh")
_TAR_MAGIC_AT = 257
HEAD_BYTES = 512


def is_archive(untrusted_head: bytes) -> bool:
    """Whether a file that begins so is to be looked into. :param untrusted_head: its first :data:`HEAD_BYTES`."""
    return untrusted_head[_TAR_MAGIC_AT:].startswith(b"ustar") or untrusted_head.startswith(_COMPRESSED)


def unpack_disk(archive: Path, word: str, target: Path, progress: Callable[[int, int], None]) -> str:
    """Copy the disk image out of an archive to the new file ``target``; its name there.

    :param word: the image is the first one whose name has this in it; empty: the only one.
    :param progress: called with bytes done and bytes in all.
    :raise TemplateError: not an archive, no such image in it, or more than one; nothing is left.
    """
    try:
        with tarfile.open(archive, "r|*") as members:
            found = _unpack(members, word, target, progress)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise TemplateError(f"the archive cannot be read: {error}") from error
    except TemplateError:
        target.unlink(missing_ok=True)
        raise
    if not found:
        raise TemplateError(f"the archive has no disk{f' with {word!a} in its name' if word else ''}")
    return found


def _unpack(members: tarfile.TarFile, word: str, target: Path, progress: Callable[[int, int], None]) -> str:
    """Name of the disk that was copied; empty: there is none."""
    found = ""
    for number, member in enumerate(members):
        if number >= MAX_MEMBERS:
            raise TemplateError(f"the archive has more than {MAX_MEMBERS} members")
        if not member.isreg() or not member.name.endswith(DISK_SUFFIXES) or word not in member.name:
            continue
        if found:
            names = f"{found!a}, {member.name[:200]!a}"
            raise TemplateError(f"the archive has several disks: {names}; say which by a part of its name")
        found = member.name[:200]
        content = members.extractfile(member)
        if content is None or member.size > MAX_IMAGE:
            raise TemplateError(f"the disk in the archive is larger than {MAX_IMAGE >> 30} GiB")
        _copy(content, target, member.size, progress)
        if word:
            break
    return found


def _copy(content: IO[bytes], target: Path, size: int, progress: Callable[[int, int], None]) -> None:
    done = 0
    with target.open("xb") as file:
        while piece := content.read(PIECE):
            if piece.count(0) == len(piece):
                file.seek(len(piece), 1)
            else:
                file.write(piece)
            done += len(piece)
            progress(done, size)
        file.truncate(done)
    if done != size:
        raise TemplateError("the archive ends within the disk")
