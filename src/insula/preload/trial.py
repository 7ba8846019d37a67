"""A program that does nothing, to find out whether this machine lets a process into its sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from insula.preload.forks import PreloadedParent
from insula.preload.messages import Fork

PROGRAM = "insula.preload.trial"
_FILES = 16
_ADDRESS_SPACE = 2**30
_STDERR = 2


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent."""
    return len(descriptors)


async def problem(uid: int | None) -> str:
    """Return why no process gets into its sandbox here, "" if one does. ``uid``: host user to become, None for ours."""
    try:
        async with PreloadedParent([PROGRAM]) as parent:
            process = await parent.fork(Fork(0, PROGRAM, uid, _FILES, _ADDRESS_SPACE), [_STDERR])
            code = await process.wait()
    except OSError as error:
        return str(error)
    return "" if code == 0 else f"it ended with exit code {code}"
