"""Moving whole contents in and out of a pool: streams and files to a new raw layer, a chain to a stream."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypeVar

from insula.model.block import MIB, BlockLayer
from insula.storage import files, qemu_img
from insula.storage.manifest import check_size
from insula.storage.pool import StorageError
from insula.storage.threads import in_thread

T = TypeVar("T")
EXPORT_CHUNK = MIB
"""Bytes per piece of an export: large enough that hopping to a thread for each costs nothing noticeable."""
IMPORT_BATCH = MIB
"""Bytes of an import gathered before a thread writes them; clients send pieces of 4 to 64 KiB."""


async def blocking(doing: str, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """:func:`in_thread` with OSErrors as StorageErrors that say what was being done."""
    with files.storage_errors(doing):
        return await in_thread(work, undo)


async def write_stream(staged: Path, data: AsyncIterable[bytes], size: int, space: files.Space, doing: str) -> None:
    """Create the sparse file ``staged`` with exactly ``size`` bytes of ``data``, durably.

    :raise StorageError: the stream has another length. :raise NoSpace: Nothing is left behind in either case.
    """
    with files.new_file(staged) as fd:
        writer = files.SparseWriter(fd)
        checked = 0
        async with aclosing(_batches(data)) as batches:
            async for batch in batches:
                if writer.written + len(batch) > size:
                    raise StorageError(f"{doing}: more than the announced {size} bytes were sent")
                if writer.written >= checked:
                    await blocking(doing, partial(space.check, len(batch), doing))
                    checked = writer.written + files.RECHECK_BYTES
                await blocking(doing, partial(writer.write, batch))
        if writer.written != size:
            raise StorageError(f"{doing}: only {writer.written} of the announced {size} bytes were sent")
        await blocking(doing, writer.finish)


async def _batches(data: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in fewer pieces."""
    gathered: list[bytes] = []
    length = 0
    async for piece in data:
        gathered.append(piece)
        length += len(piece)
        if length >= IMPORT_BATCH:
            yield b"".join(gathered)
            gathered, length = [], 0
    if gathered:
        yield b"".join(gathered)


async def copy_file(staged: Path, source: Path, space: files.Space, doing: str) -> int:
    """Create the sparse file ``staged`` with the content of ``source``, durably; returns its size in bytes."""

    def copy() -> int:
        stat = source.stat()
        size = check_size(stat.st_size)
        space.check(stat.st_blocks * files.STAT_BLOCK, doing)
        files.copy_sparse(source, staged)
        if staged.stat().st_size != size:
            staged.unlink()
            raise StorageError(f"{doing}: {source} changed while it was copied")
        return size

    return await blocking(doing, copy, undo=lambda _size: staged.unlink())


async def open_raw(chain: tuple[BlockLayer, ...], size: int, staged: Path, space: files.Space, doing: str) -> int:
    """A descriptor of a raw file with the content of ``chain`` (base first).

    :param size: largest virtual size of a layer, in bytes.
    :param staged: name for a temporary file, needed if there are several layers; gone when this returns.
    """
    if len(chain) == 1:
        return await blocking(doing, partial(files.open_file, chain[0].path), undo=os.close)
    needed = sum(files.allocated(layer.path) for layer in chain)
    try:
        await blocking(doing, partial(space.check, needed, doing))
        await blocking(doing, partial(files.create_sparse, staged, size))
        await qemu_img.flatten(chain, staged, size)
        return await blocking(doing, partial(files.open_file, staged), undo=os.close)
    finally:
        await blocking(doing, partial(staged.unlink, missing_ok=True))


async def read_stream(fd: int, size: int, doing: str) -> AsyncGenerator[bytes, None]:
    """``size`` bytes of a file, zeros where it is shorter."""
    for position in range(0, size, EXPORT_CHUNK):
        count = min(EXPORT_CHUNK, size - position)
        data = await blocking(doing, partial(os.pread, fd, count, position))
        yield data.ljust(count, b"\0")
