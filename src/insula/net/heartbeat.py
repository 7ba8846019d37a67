"""How a process shows that it does not hang: now and then it writes the time into a small file.

A descriptor of that file is all it takes, and all a process without a file system has. The time is the one since boot
(CLOCK_MONOTONIC), the same for all processes of a host and standing still while the host sleeps.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

EVERY_S = 1.0
"""Between two beats."""
_DIGITS = 20
SIZE = _DIGITS + 1
"""Bytes of the file."""


def beat(fd: int) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, f"{time.monotonic_ns():0{_DIGITS}}\n".encode("ascii"))


def silence_s(path: Path) -> float | None:
    """Seconds since the last beat; None: the file is none of a process that ever had one."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if len(text) != SIZE or not text[:_DIGITS].isdigit():
        return None
    return (time.monotonic_ns() - int(text)) / 1e9
