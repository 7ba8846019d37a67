"""A folder of policy files on disk. The only module here that opens files for reading.

A policy file is a regular file (a link to one will do) of bounded size. Others are not opened at all, so that a device
node or a FIFO in its place (MC-26) has no effect and nobody waits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from insula.policy.folders import FolderError

MAX_FILE_BYTES = 1 << 20
"""Of one policy file; ours. The largest published one has 15 KiB."""
MAX_NAMES = 10_000
"""Entries of one folder; ours."""


class DiskFolder:
    def __init__(self, path: Path, on_look: Callable[[Path], None] | None = None) -> None:
        """``on_look`` is told of every file and folder before it is read."""
        self.path = path
        self._on_look = on_look or _nobody

    @property
    def name(self) -> str:
        return str(self.path)

    def label(self, path: str) -> str:
        full = os.path.normpath(self.path / path)
        prefix = os.path.normpath(self.path) + os.sep
        return full.removeprefix(prefix)

    def names(self, path: str = "") -> list[str]:
        found: list[str] = []
        self._on_look(self.path / path)
        try:
            with os.scandir(self.path / path) as entries:
                for entry in entries:
                    if len(found) == MAX_NAMES:
                        raise FolderError(f"it has more than {MAX_NAMES} entries")
                    if not _is_folder(entry):
                        found.append(entry.name)
        except (OSError, ValueError) as error:
            raise FolderError(_reason(error)) from error
        return found

    def read(self, path: str) -> str:
        self._on_look(self.path / path)
        return read_text(self.path / path)


def _nobody(path: Path) -> None:
    """Nobody wants to know."""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle; reading it will say so


def read_bytes(path: Path) -> bytes:
    """:raise FolderError: missing, not a regular file, unreadable, over :data:`MAX_FILE_BYTES`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FolderError("it is not a regular file")
        # Non-blocking, and looked at again: between the two looks it may have become a FIFO.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FolderError("it is not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FolderError(_reason(error)) from error
    if len(data) > MAX_FILE_BYTES:
        raise FolderError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data


def read_text(path: Path) -> str:
    """:raise FolderError: as :func:`read_bytes`, or not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FolderError(f"it is not UTF-8 text (byte {error.start})") from error


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or "it cannot be read").lower()
