"""Small files, read and written whole.

By system calls without Python's text layer: under software emulation what code a start passes through for the first
time costs most, and that layer is a lot of code for a host name.
"""

from __future__ import annotations

import os

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""To open a folder, and nothing else that has its name by now."""
MAX_SIZE = 1 << 20
"""Bytes read of a file; none that is read here is near it."""


def read(path: str) -> str:
    """A text file; empty if absent. Bytes that are no UTF-8 survive being written again."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        pieces = []
        while piece := os.read(fd, MAX_SIZE):
            pieces.append(piece)
            if len(piece) >= MAX_SIZE:
                break
    finally:
        os.close(fd)
    return b"".join(pieces).decode("utf-8", "surrogateescape")


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Make a file, or replace what is in it; for files of the kernel too."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        _write(fd, text)
    finally:
        os.close(fd)


def change(path: str, text: str) -> None:
    """Replace what is in a file, in place: it may be bound from /rw and could not be replaced itself.

    Not emptied first: what was emptied is brought to the disk when it is closed (ext4, ``auto_da_alloc``).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(fd, _write(fd, text))
    finally:
        os.close(fd)


def _write(fd: int, text: str) -> int:
    """Write all; the number of bytes."""
    data = text.encode("utf-8", "surrogateescape")
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
    return done


def touch(path: str) -> None:
    """Make an empty file, if it is absent."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
