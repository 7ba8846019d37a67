"""Bytes in pieces, for writev(2)."""

from __future__ import annotations

MAX_PIECES = 1024
"""Pieces writev(2) takes at once (IOV_MAX)."""


def drop(pieces: list[bytes | memoryview], count: int) -> None:
    """Take the first ``count`` bytes off a list of pieces."""
    done = 0
    for piece in pieces:
        if count < len(piece):
            break
        count -= len(piece)
        done += 1
    del pieces[:done]
    if count:
        pieces[0] = pieces[0][count:]
