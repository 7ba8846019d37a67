"""Writing what another qube sends: by open folders only, nothing followed, replaced, or half under its name.

::

    ~/QubesIncoming/REMOTE/incomplete-1f2e3d4c/   everything, while it comes
    ~/QubesIncoming/REMOTE/NAME                   what is at the top of it, moved there when the transfer is complete

A folder is entered from its open parent (``openat`` with ``O_NOFOLLOW``) and held open while files go into it, so
neither a link that was sent (MC-02) nor a program that moves folders meanwhile (MC-03) leads anything elsewhere. A
file has no name before it is complete; one that is all there when it is made gets content and name at once. A transfer
that fails leaves what is complete in the folder that says it is not (MC-06, MC-07), or nothing if the disk is full
(MC-08). The move to its final name never replaces anything (MC-09).

Large files go to the disk directly (``O_DIRECT``), a block at a time: through the page cache each page of 4 KiB costs
the kernel more than everything else here, and all of it would be waited for at the end anyway.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from insula_agent import syscalls
from insula_agent.files import FOLDER_FLAGS
from insula_proto import limits
from insula_proto.qfile import Data, End

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_proto.qfile import Entry, Event

PREFIX = "incomplete-"
MAX_TOP = 65536
"""Names at the top of one transfer: they are held in memory."""
DIRECT_SIZE = 1 << 20
"""Bytes of a file from which on it is written directly, and of the blocks it is written in."""
_ALIGNMENT = 4096
"""What a direct write is a multiple of: the largest logical block of disks."""
SPACE_STEP = 1.0
"""Seconds between looks for room on the disk."""

_TEMPORARY_FLAGS = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TEMPORARY = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
"""What a file system says that knows no unnamed files."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RENAME_NOREPLACE = 1
"""<linux/fs.h>"""


class WriteFailed(Exception):
    """This qube could not write something; ``code`` is the errno of the answer."""

    def __init__(self, error: OSError) -> None:
        self.code = error.errno or errno.EIO
        super().__init__(os.strerror(self.code))
        self.is_full = self.code in _FULL


class Incoming:
    """Takes what the decoder finds. ``folder`` is the destination, open, the caller's; so is ``descriptors``: an open
    ``/proc/self/fd``. ``margin``: bytes that must stay free on the disk, waited for; None: no waiting.
    """

    def __init__(self, folder: int, descriptors: int, margin: int | None = None) -> None:
        """:raise OSError: nothing can be written there."""
        self._destination = folder
        self._descriptors = descriptors
        self._margin = margin
        self.name = PREFIX + os.urandom(4).hex()
        os.mkdir(self.name, 0o700, dir_fd=folder)
        self._root = os.open(self.name, FOLDER_FLAGS, dir_fd=folder)
        self._open: list[tuple[bytes, int]] = []
        """The folders down to where the last file went, each with its name."""
        self._top: dict[bytes, Entry | None] = {}
        """Names at the top, in order; for a folder what it is to become at the end: it could not be moved if we had
        taken our own right to write to it."""
        self._current: tuple[bytes, ...] = ()
        """Their names alone."""
        self._file = -1
        self._pending: Entry | None = None
        """The file whose content comes…"""
        self._left = 0
        """…and how much of it is to come."""
        self._has_temporaries = True
        self._is_named = False
        """The file had to be made under its name."""
        self._block: mmap.mmap | None = None
        """What is collected for a direct write; it must begin at a page."""
        self._filled = 0
        """Bytes in it…"""
        self._is_direct = False
        """…where the file is written so."""

    def take(self, event: Event) -> None:
        """:raise WriteFailed:"""
        try:
            if isinstance(event, Data):
                self._take_data(event.data)
            elif isinstance(event, End):
                self._commit()
            elif stat.S_ISREG(event.mode):
                self._begin_file(event)
            elif stat.S_ISDIR(event.mode):
                self._take_folder(event)
            else:
                self._note_top(event, None)
                os.symlink(event.target, event.path[-1], dir_fd=self._enter(event.path[:-1]))
        except OSError as error:
            raise WriteFailed(error) from error

    def close(self, *, is_full: bool) -> None:
        """The transfer is over. What is left of one that failed is called incomplete, or gone if the disk is full."""
        if self._file >= 0:
            if self._is_named and self._pending is not None:
                os.unlink(self._pending.path[-1], dir_fd=self._enter(self._pending.path[:-1]))
            os.close(self._file)
            self._file = -1
        self._leave(0)
        try:
            if is_full:
                _remove_content(self._root, limits.QFILE_MAX_DEPTH + 1)
            os.rmdir(self.name, dir_fd=self._destination)
        except OSError as error:
            # With something in it: the partial result, which is called incomplete. Or somebody moved it: theirs now.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                raise
        finally:
            os.close(self._root)

    # --- folders -------------------------------------------------------------------------------------------------

    def _enter(self, path: tuple[bytes, ...]) -> int:
        """The open folder of a path. :raise OSError: it was not sent before, or is none any more."""
        if path == self._current:
            return self._open[-1][1] if self._open else self._root
        depth = 0
        for (name, _), wanted in zip(self._open, path):  # noqa: B905 - as far as both go; "strict" is 3.10's
            if name != wanted:
                break
            depth += 1
        self._leave(depth)
        folder = self._open[-1][1] if self._open else self._root
        for name in path[depth:]:
            folder = os.open(name, FOLDER_FLAGS, dir_fd=folder)
            self._open.append((name, folder))
        self._current = path
        return folder

    def _leave(self, depth: int) -> None:
        """Close the folders below that depth."""
        while len(self._open) > depth:
            os.close(self._open.pop()[1])
        self._current = self._current[:depth]

    def _note_top(self, entry: Entry, final: Entry | None) -> None:
        """Remember what is at the top. :raise OSError: the destination has it already, or there are too many."""
        if len(entry.path) > 1:
            return
        name = entry.path[0]
        if name not in self._top:
            if len(self._top) >= MAX_TOP:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            if self._exists(name):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._top[name] = final

    def _exists(self, name: bytes) -> bool:
        try:
            os.stat(name, dir_fd=self._destination, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _take_folder(self, entry: Entry) -> None:
        """Make it; the second time it is what it is to be. :raise OSError:"""
        is_top = len(entry.path) == 1
        self._note_top(entry, entry if is_top else None)
        name = entry.path[-1]
        parent = self._enter(entry.path[:-1])
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not is_top:
                folder = os.open(name, FOLDER_FLAGS, dir_fd=parent)
                try:
                    _finish(folder, entry)
                finally:
                    os.close(folder)

    # --- files ---------------------------------------------------------------------------------------------------

    def _begin_file(self, entry: Entry) -> None:
        """It is made when content comes: then it shows whether that is all of it."""
        self._note_top(entry, None)
        folder = self._enter(entry.path[:-1])
        if self._margin is not None:
            self._wait_for_space(folder, entry.size + self._margin)
        self._pending = entry
        self._left = entry.size
        if entry.size == 0:
            self._make_whole(entry, b"")

    def _take_data(self, data: bytes | memoryview) -> None:
        entry = self._pending
        assert entry is not None, "content comes after a file began"
        self._left -= len(data)
        if self._file < 0:
            if self._left == 0:
                self._make_whole(entry, data)
                return
            self._open_file(entry)
        if self._is_direct or self._filled:
            self._collect(data)
        else:
            _write_all(self._file, data)
        if self._left == 0:
            self._end_file(entry)

    def _make_whole(self, entry: Entry, data: bytes | memoryview) -> None:
        """A file that is all there: few system calls, for there may be very many of these."""
        folder = self._enter(entry.path[:-1])
        file = os.open(entry.path[-1], _NEW_FLAGS, 0o600, dir_fd=folder)
        try:
            try:
                _write_all(file, data)
            except OSError:
                os.unlink(entry.path[-1], dir_fd=folder)
                raise
            _finish(file, entry)
        finally:
            os.close(file)
        self._pending = None

    def _open_file(self, entry: Entry) -> None:
        """Without a name, where the file system knows such files."""
        folder = self._enter(entry.path[:-1])
        self._is_named = False
        self._is_direct = False
        self._filled = 0
        if self._has_temporaries:
            try:
                self._file = os.open(".", _TEMPORARY_FLAGS, 0o600, dir_fd=folder)
            except OSError as error:
                if error.errno not in _NO_TEMPORARY:
                    raise
                self._has_temporaries = False
        if not self._has_temporaries:
            self._file = os.open(entry.path[-1], _NEW_FLAGS, 0, dir_fd=folder)
            self._is_named = True
        if entry.size >= DIRECT_SIZE:
            self._is_direct = self._set_direct(os.O_DIRECT)
            if self._block is None:
                self._block = mmap.mmap(-1, DIRECT_SIZE)

    def _set_direct(self, flag: int) -> bool:
        """Switch direct writing on or off (0); whether it could be done."""
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_WRONLY | flag)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file system in memory, say.
            return False
        return True

    def _collect(self, data: bytes | memoryview) -> None:
        """Write in whole blocks; the rest of the file, which is none, goes through the cache."""
        assert self._block is not None
        position = 0
        while position < len(data):
            count = min(len(data) - position, DIRECT_SIZE - self._filled)
            self._block[self._filled : self._filled + count] = data[position : position + count]
            self._filled += count
            position += count
            if self._filled == DIRECT_SIZE:
                self._write_block(DIRECT_SIZE)

    def _write_block(self, size: int) -> None:
        """:raise OSError: not for being direct: a file system may find at any write that it cannot do that."""
        assert self._block is not None
        done = 0
        with memoryview(self._block) as block:
            while done < size:
                try:
                    with block[done:size] as data:
                        done += os.write(self._file, data)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._is_direct:
                        raise
                    self._is_direct = not self._set_direct(0)
        self._filled = 0

    def _end_file(self, entry: Entry) -> None:
        """Give a complete file its name. :raise OSError: something has that name."""
        if self._filled:
            if self._filled % _ALIGNMENT:
                self._is_direct = not self._set_direct(0)
            self._write_block(self._filled)
        _finish(self._file, entry)
        if not self._is_named:
            os.link(
                str(self._file), entry.path[-1],
                src_dir_fd=self._descriptors, dst_dir_fd=self._enter(entry.path[:-1]), follow_symlinks=True,
            )  # fmt: skip
        self._pending = None
        os.close(self._file)
        self._file = -1

    def _wait_for_space(self, folder: int, wanted: int) -> None:
        """Published option: no end to this wait, for somebody else makes room; who does not want to wait hangs up."""
        import time  # noqa: PLC0415 - rarely needed

        while True:
            found = os.fstatvfs(folder)
            if found.f_frsize * found.f_bavail >= wanted:
                return
            time.sleep(SPACE_STEP)

    # --- the end -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """All is there: on the disk first, then under its names. :raise OSError: a name was taken meanwhile."""
        self._leave(0)
        syscalls.call("syncfs", self._root)
        for name, entry in self._top.items():
            if entry is None:
                self._move(name)
            else:
                folder = os.open(name, FOLDER_FLAGS, dir_fd=self._root)
                try:
                    self._move(name)
                    _finish(folder, entry)
                finally:
                    os.close(folder)
        os.fsync(self._destination)

    def _move(self, name: bytes) -> None:
        """:raise FileExistsError: as always (MC-09)."""
        try:
            syscalls.call("renameat2", self._root, name, self._destination, name, _RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file system that cannot promise it (NFS): the look and the move are two steps.
            if self._exists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            os.rename(name, name, src_dir_fd=self._root, dst_dir_fd=self._destination)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _finish(fd: int, entry: Entry) -> None:
    """Mode and times, last. :raise OSError:"""
    os.fchmod(fd, stat.S_IMODE(entry.mode))
    os.utime(fd, ns=(entry.atime, entry.mtime))


def _remove_content(folder: int, depth: int) -> None:
    """Remove everything in an open folder. :raise OSError:"""
    if depth < 0:
        raise OSError(errno.ELOOP, "deeper than we made it")
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
            try:
                os.fchmod(inner, 0o700)
                _remove_content(inner, depth - 1)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
