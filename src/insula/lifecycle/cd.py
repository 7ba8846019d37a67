"""The image of a CD, as a machine is given it: looked at from outside; what is on it is for the machine to read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from insula.model.block import BlockLayer, BlockSource, LayerFormat
from insula.model.errors import QubesException

SECTOR = 512
"""Bytes; images are multiples of 2048."""


def cd_image(path: Path) -> BlockSource:
    """A file or a drive of this computer. :raise QubesException: it cannot be a CD."""
    if not path.is_absolute():
        raise QubesException(f"The path of a CD's image begins with a slash, not {str(path)[:64]!a}")
    try:
        # A FIFO in its place must not hang the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode, size = os.fstat(descriptor).st_mode, os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise QubesException(f"The CD cannot be read: {error}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise QubesException(f"{path} is neither a file nor a drive")
    if size <= 0 or size % SECTOR:
        raise QubesException(f"{path} is no image of a CD: its {size} bytes are no multiple of {SECTOR}")
    return BlockSource((BlockLayer(path, LayerFormat.RAW),), size, writable=False)
