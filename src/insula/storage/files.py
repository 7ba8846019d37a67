"""Durable changes to files: what is written here is either wholly there after a power loss or not at all.

The rules every caller relies on: data is synced before a name for it is published, a rename is followed by a
sync of its folder, and nothing is unlinked before the record that no longer names it is on the disk. All
functions block; the pool calls them in threads.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from insula.model.block import MIB
from insula.storage.pool import NoSpace, StorageError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
BLOCK_SIZE = 64 * 1024
"""Unit in which runs of zeros become holes; qcow2's default cluster size, so nothing finer would survive."""
COPY_SIZE = 8 * MIB
"""Bytes asked of the kernel per copy call, so that a copy can be interrupted by an error between two."""
STAT_BLOCK = 512
"""Unit of ``st_blocks`` (stat(2)), whatever the file system's block size."""
RESERVE_MIN = 512 * MIB
"""Free space left alone on small disks: logs, the database and clean shutdowns still need room."""
RESERVE_FRACTION = 0.02
"""The same for large disks, where 512 MiB are gone within seconds."""
RECHECK_BYTES = 64 * MIB
"""While a stream is written, the free space is looked at again after so many bytes."""


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done, a full disk into NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{doing}: the disk is full; nothing was changed") from error
        raise StorageError(f"{doing}: {error.strerror or error}") from error


def unique_name(suffix: str = "") -> str:
    """A file name that was never used before: 64 random bits as hex digits, then ``suffix``."""
    return secrets.token_hex(8) + suffix


def create_file(path: Path) -> int:
    """Create a file that must not exist yet; returns a descriptor open for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of the pool; never follows a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """Create ``path`` and yield its descriptor; if the block fails, the file is gone again."""
    fd = create_file(path)
    try:
        with ExitStack() as undo:
            undo.callback(path.unlink, missing_ok=True)
            yield fd
            undo.pop_all()
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything at the current position."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_file(path: Path) -> None:
    fd = open_file(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Make creations, renames and removals in ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Give ``path`` new content in one step: afterwards, power loss or not, it has the old or the new, whole."""
    staged = path.with_name(path.name + ".new")
    staged.unlink(missing_ok=True)  # of a process that was killed here
    with new_file(staged) as fd:
        write_all(fd, data)
        os.fsync(fd)
        staged.rename(path)
    sync_folder(path.parent)


def make_folders(path: Path, root: Path) -> None:
    """Create ``path`` and what is missing between it and the existing ``root``, durably."""
    if path == root or path.is_dir():
        return
    make_folders(path.parent, root)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder of plain files and folders; absent is fine. Links are removed, not followed."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for child in list(path.iterdir()):
        remove_tree(child)
    path.rmdir()


def create_sparse(path: Path, size: int) -> None:
    """A new file of ``size`` zero bytes that takes no space."""
    with new_file(path) as fd:
        os.ftruncate(fd, size)
        os.fsync(fd)


def allocated(path: Path) -> int:
    """Bytes ``path`` takes on the disk; 0 if it is not there."""
    try:
        return path.lstat().st_blocks * STAT_BLOCK
    except FileNotFoundError:
        return 0


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """``(start, end)`` of the parts of a file that are not holes (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= size:
            return
        yield start, end


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, holes staying holes; the kernel shares blocks where the file system can."""
    source_fd = open_file(source)
    try:
        with new_file(target) as target_fd:
            size = os.fstat(source_fd).st_size
            os.ftruncate(target_fd, size)
            for start, end in data_extents(source_fd, size):
                position = start
                while position < end:
                    count = min(COPY_SIZE, end - position)
                    copied = _copy_range(source_fd, target_fd, count, position)
                    if copied == 0:
                        raise OSError(errno.EIO, "file became shorter while it was copied", str(source))
                    position += copied
            os.fsync(target_fd)
    finally:
        os.close(source_fd)


_NO_RANGE_COPY = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""copy_file_range(2): what kernels answer for two file systems, or one that cannot."""


def _copy_range(source: int, target: int, count: int, position: int) -> int:
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in _NO_RANGE_COPY:
            raise
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, count)


NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV})
"""link(2): what file systems without (further) hard links answer."""


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no (more) hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        copy_sparse(source, target)


class SparseWriter:
    """Writes a stream to the start of an empty file, leaving holes where the stream is zero."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.written = 0
        """Bytes taken so far, holes included."""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = min(BLOCK_SIZE - self.written % BLOCK_SIZE, len(view))
            block = view[:count]
            if block != memoryview(ZERO_BLOCK)[:count]:
                os.lseek(self._fd, self.written, os.SEEK_SET)
                write_all(self._fd, block)
            self.written += count
            view = view[count:]

    def finish(self) -> None:
        """Give the file its length and make it durable."""
        os.ftruncate(self._fd, self.written)
        os.fsync(self._fd)


ZERO_BLOCK = bytes(BLOCK_SIZE)


@dataclass(frozen=True)
class Space:
    """Free space of the file system a pool is on, and the part of it that stays free."""

    path: Path
    reserve: int | None = None
    """Bytes kept free; None: the larger of RESERVE_MIN and RESERVE_FRACTION of the file system."""

    def total(self) -> int:
        """Bytes an ordinary user could have here if nothing were stored."""
        stat = os.statvfs(self.path)
        return (stat.f_blocks - stat.f_bfree + stat.f_bavail) * stat.f_frsize

    def free(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def kept_free(self) -> int:
        return max(RESERVE_MIN, int(self.total() * RESERVE_FRACTION)) if self.reserve is None else self.reserve

    def check(self, needed: int, doing: str) -> None:
        """:raise NoSpace: with ``needed`` further bytes taken, less than the reserve would be left."""
        free, kept_free = self.free(), self.kept_free()
        if free - needed < kept_free:
            raise NoSpace(
                f"{doing}: needs {needed // MIB} MiB, but of {free // MIB} MiB free in {self.path} "
                f"{kept_free // MIB} MiB are kept as a reserve; free some space or lower reserve_mib of the pool"
            )
