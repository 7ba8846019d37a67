"""Where policy files come from: an interface, and files in memory (a change not yet saved, tests, the command)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Protocol

from insula.model.frozen import freeze


class FolderError(Exception):
    """A file or folder cannot be read. ``str()`` is the reason, without the path."""


class Folder(Protocol):
    """Policy files. Paths are relative to the folder; as published, ``..`` and absolute ones may lead out of it."""

    @property
    def name(self) -> str:
        """For people: the path on disk."""
        ...

    def label(self, path: str) -> str:
        """One name for each file, however it was written: relative to the folder if inside it."""
        ...

    def names(self, path: str = "") -> list[str]:
        """Names of the regular files directly in it, in any order. :raise FolderError: no such folder, unreadable."""
        ...

    def read(self, path: str) -> str:
        """:raise FolderError: missing, not a regular file, unreadable, too large, not UTF-8."""
        ...


class MemoryFolder:
    """Files given as a mapping of paths to texts. Nothing is outside."""

    def __init__(self, files: Mapping[str, str], name: str = "") -> None:
        self.name = name
        self._files = freeze(files)

    def label(self, path: str) -> str:
        return posixpath.normpath(path)

    def names(self, path: str = "") -> list[str]:
        prefix = "" if path == "" else self.label(path) + "/"
        found = [file.removeprefix(prefix) for file in self._files if file.startswith(prefix)]
        if prefix and not found:
            raise FolderError("there is no such folder")
        return [file for file in found if "/" not in file]

    def read(self, path: str) -> str:
        try:
            return self._files[self.label(path)]
        except KeyError:
            raise FolderError("there is no such file") from None
