"""Unix socket paths of any length: beyond the 107 bytes an address holds, by way of the folder's descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_ADDRESS = 107
"""Bytes of a path in ``sockaddr_un`` (unix(7))."""


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield an address for ``path`` to bind or connect to; good while the context lasts.

    :raise OSError: its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
