"""The second half of a move: what has arrived in the other qube is removed here, and nothing else.

A file that was written to or replaced since it was sent is kept, and so is what was not sent (links that were ignored,
devices, files that came later) with the folders it lies in.
"""

from __future__ import annotations

import os
import stat

from insula_agent.filecopy.outgoing import identity
from insula_agent.files import FOLDER_FLAGS
from insula_proto.file_names import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from insula_agent.filecopy.tree import Root


def remove(roots: Sequence[Root], sent: Mapping[bytes, tuple[int, ...]]) -> list[str]:
    """Remove what was sent; what was kept, in words."""
    kept: list[str] = []
    for root in roots:
        folder = os.open(root.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove(folder, root.name, root.name, sent, kept)
        finally:
            os.close(folder)
    return kept


def _remove(folder: int, name: bytes, path: bytes, sent: Mapping[bytes, tuple[int, ...]], kept: list[str]) -> None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if path not in sent:
            kept.append(f"{shown(path)} was not sent")
        elif stat.S_ISDIR(status.st_mode):
            _remove_folder(folder, name, path, sent, kept)
        elif sent[path] != identity(status):
            kept.append(f"{shown(path)} has changed")
        else:
            os.unlink(name, dir_fd=folder)
    except OSError as error:
        kept.append(f"{shown(path)}: {error.strerror}")


def _remove_folder(
    folder: int, name: bytes, path: bytes, sent: Mapping[bytes, tuple[int, ...]], kept: list[str]
) -> None:
    before = len(kept)
    inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
    try:
        # All names first: what is removed meanwhile may make a folder skip others.
        for inner_name in [os.fsencode(item) for item in os.listdir(inner)]:
            _remove(inner, inner_name, path + b"/" + inner_name, sent, kept)
    finally:
        os.close(inner)
    if len(kept) == before:
        os.rmdir(name, dir_fd=folder)
