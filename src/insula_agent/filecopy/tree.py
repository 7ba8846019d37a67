"""What is to be sent, looked at beforehand: how much it is, whether it has odd names, whether it can be sent at all.

What the receiver would refuse is said before anything is sent, and with the name that it has here.
"""

from __future__ import annotations

import os
import stat

from insula_agent.files import FOLDER_FLAGS
from insula_proto import limits
from insula_proto.file_names import NameRefused, check_target, is_displayable, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 200
"""Folders below each other; each is held open, and receivers take fewer."""


class SendFailed(Exception):
    """Not everything can be sent, or has arrived, with the reason for people."""


class Root:
    """One thing to send: its folder here and its name, which is its name there."""

    __slots__ = ("folder", "name", "path")

    def __init__(self, path: bytes) -> None:
        """:raise SendFailed: it has no name of its own."""
        self.path = path.rstrip(b"/")
        folder, _, self.name = self.path.rpartition(b"/")
        self.folder = folder if folder else (b"/" if path.startswith(b"/") else b".")
        if self.name in (b"", b".", b".."):
            raise SendFailed(f'"{shown(path)}" is a folder without a name; copy it from outside')


class Survey:
    """What :func:`survey` found."""

    __slots__ = ("has_odd_names", "roots", "total")

    def __init__(self, roots: Sequence[Root]) -> None:
        self.roots = roots
        self.total = 0
        """Bytes of content."""
        self.has_odd_names = False
        """Needs ``qubes.Filecopy+allow-all-names``."""


def survey(paths: Sequence[bytes], *, ignore_symlinks: bool) -> Survey:
    """Look at everything. :raise SendFailed: something cannot be sent."""
    found = Survey([Root(path) for path in paths])
    names = [root.name for root in found.roots]
    if len(set(names)) != len(names):
        raise SendFailed("two of these have the same name; copy them one after the other")
    try:
        for root in found.roots:
            folder = os.open(root.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _look(found, folder, root.name, root.name, 1, ignore_symlinks)
            finally:
                os.close(folder)
    except OSError as error:
        raise SendFailed(f"{shown(os.fsencode(error.filename or b''))}: {error.strerror}") from error
    return found


def _look(found: Survey, folder: int, name: bytes, path: bytes, depth: int, ignore_symlinks: bool) -> None:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) or (kind == stat.S_IFLNK and ignore_symlinks):
        return
    if not is_displayable(name):
        found.has_odd_names = True
    if len(path) >= limits.QFILE_MAX_PATH or depth > MAX_DEPTH:
        raise SendFailed(f"{shown(path)[:80]}… lies too deep")
    if kind == stat.S_IFREG:
        found.total += status.st_size
    elif kind == stat.S_IFLNK:
        target = os.readlink(name, dir_fd=folder)
        try:
            check_target(depth, target, all_names=True)
        except NameRefused as error:
            raise SendFailed(
                f'"{shown(path)}" is a symbolic link to "{shown(target)}": {error}; copy what it leads to,'
                " or give --ignore-symlinks"
            ) from error
        if not is_displayable(target):
            found.has_odd_names = True
    else:
        inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        try:
            with os.scandir(inner) as items:
                for item in items:
                    item_name = os.fsencode(item.name)
                    _look(found, inner, item_name, path + b"/" + item_name, depth + 1, ignore_symlinks)
        finally:
            os.close(inner)
