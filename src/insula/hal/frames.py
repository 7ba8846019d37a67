"""Frame memory: where a guest puts the pixels of its windows, and what the host's processes map read-only.

A memory file of its own for each machine, never part of the guest's memory: who maps it sees nothing else. It is sealed
against shrinking and growing, so that reading it is never the end of the reader (MC-36).
"""

from __future__ import annotations

import fcntl
import os

NAME = "insula-frames"
"""Of the memory file, as ``/proc/PID/fd`` shows it."""
MIN_SIZE = 1 << 20
MAX_SIZE = 1 << 30
SIZE = 128 << 20
"""Bytes of a machine's: sixteen pictures of 1920 × 1080 pixels, four of 3840 × 2160. Only what was ever written takes
room on the host; a guest that fills it has that much more memory than it was given."""

BULK_NAME = "insula-bulk"
"""Of the other memory that a running machine can be given, the one it shares with its session."""

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def make(size: int = SIZE, name: str = NAME) -> int:
    """Return the descriptor of new frame memory, sealed; the caller owns it. :raise OSError, ValueError:"""
    if not MIN_SIZE <= size <= MAX_SIZE or size & (size - 1):
        raise ValueError(f"frame memory has {MIN_SIZE} to {MAX_SIZE} bytes, a power of two, not {size}")
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
