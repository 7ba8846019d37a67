"""What a forked process is called in lists of processes: the bytes of its command line, written over.

The parent looks up where they are before it forks; nothing is needed of the sandbox later. A process that was not
forked from the parent keeps its command line.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

ROOM = 160
"""Bytes of command line that the parent is started with at least, so that there is something to write over."""

_ARG_START = 48
_ARG_END = 49
"""Fields of ``/proc/pid/stat``, counted from 1 (proc(5))."""


class _Place:
    def __init__(self) -> None:
        self.address = 0
        self.size = 0


_place = _Place()


def prepare() -> None:
    """Find the command line of this process and of those forked from it. :raise OSError: there is no /proc."""
    after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    # The first field after the name is the third.
    start, end = (int(after_name[field - 3]) for field in (_ARG_START, _ARG_END))
    _place.address, _place.size = start, end - start


def show(text: str) -> None:
    """Show ``text``, cut to the room there is, instead of the command line."""
    if _place.size < 2:
        return
    encoded = text.encode("ascii", "replace")[: _place.size - 2]
    # A last byte that is not NUL tells the kernel to end at the first NUL (fs/proc/base.c, get_mm_cmdline).
    ctypes.memmove(_place.address, encoded.ljust(_place.size - 1, b"\0") + b".", _place.size)
