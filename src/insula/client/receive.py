"""Writing what a qube sends into a folder of this machine: by open folders only, nothing followed, nothing replaced.

Everything is written into a new folder beside the target and moved to its name at the end, so that a copy that fails
leaves nothing under that name (MC-07, MC-08, MC-09). Each step goes from an open folder to the next one (``openat``
with ``O_NOFOLLOW``), so neither a link that was sent (MC-02) nor somebody who moves folders meanwhile (MC-03) leads it
elsewhere. Of the modes only "executable" is taken over (MC-04).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from insula.client.errors import CopyFailed, UnsafeStream
from insula.client.tar_stream import Data, Entry, Kind, Limits, TarDecoder

READ_SIZE = 65536

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_RECEIVED = b"received"


class Reception:
    """A context manager: what :meth:`read` made is moved to its name by :meth:`keep`, or removed at the end."""

    def __init__(self, target: Path, name: bytes) -> None:
        """``name`` is what the one thing in the stream must be called there.

        :raise FileExistsError: there is ``target`` already.
        """
        require_free(target)
        self._target = target
        self._name = name
        self._folder = Path(tempfile.mkdtemp(prefix=".insula-", dir=target.parent))  # for the user alone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder)

    def read(self, fd: int, limits: Limits) -> None:
        """Read a stream to its end. Blocks: for a thread. ``fd`` stays the caller's.

        :raise UnsafeStream, CopyTooLarge, CopyFailed: :raise OSError: this machine refused; its disk is full, say.
        """
        decoder = TarDecoder(limits)
        with contextlib.closing(_Writer(self._folder, self._name)) as writer:
            while untrusted_data := os.read(fd, READ_SIZE):
                for event in decoder.receive(untrusted_data):
                    writer.take(event)
        decoder.finish()

    def keep(self) -> None:
        """:raise UnsafeStream: nothing came. :raise FileExistsError: somebody made the target meanwhile."""
        received = self._folder / os.fsdecode(_RECEIVED)
        if not received.exists():
            raise UnsafeStream("the stream is empty")
        if received.is_dir():
            require_free(self._target)
            received.rename(self._target)  # the kernel refuses if there is a file, or a folder with something in it
        else:
            os.link(received, self._target)


def require_free(target: Path) -> None:
    """:raise FileExistsError: nothing is ever replaced."""
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; nothing is replaced")


class _Writer:
    """Makes what the decoder announces."""

    def __init__(self, folder: Path, name: bytes) -> None:
        self._name = name
        self._ends = ExitStack()
        self._root = os.open(folder, _FOLDER_FLAGS)
        self._ends.callback(os.close, self._root)
        self._file: int | None = None

    def close(self) -> None:
        self._end_file()
        self._ends.close()

    def take(self, event: Entry | Data) -> None:
        """:raise UnsafeStream, OSError:"""
        if isinstance(event, Data):
            assert self._file is not None, "data come after a file was announced"
            _write(self._file, event.data)
            return
        self._end_file()
        if event.path[0] != self._name:
            raise UnsafeStream(f"something that was not asked for: {event.path[0][:100]!a}")
        if len(event.path) == 1 and event.kind is Kind.LINK:
            raise CopyFailed("it is a symbolic link; copy what it leads to")
        path = (_RECEIVED, *event.path[1:])
        with self._folder_of(path) as folder:
            try:
                self._make(folder, path[-1], event)
            except FileExistsError:
                raise UnsafeStream(f"the same name twice: {path[-1][:100]!a}") from None

    def _make(self, folder: int, name: bytes, entry: Entry) -> None:
        """:raise FileExistsError: nothing is written to what is there, through a link or otherwise (MC-02)."""
        match entry.kind:
            case Kind.FOLDER:
                os.mkdir(name, 0o755, dir_fd=folder)
            case Kind.LINK:
                os.symlink(entry.target, name, dir_fd=folder)
            case Kind.FILE:
                self._file = os.open(name, _FILE_FLAGS, 0o755 if entry.executable else 0o644, dir_fd=folder)

    @contextlib.contextmanager
    def _folder_of(self, path: tuple[bytes, ...]) -> Iterator[int]:
        """The open folder that a path lies in. :raise UnsafeStream: it was not sent before, or is no folder."""
        folder = os.dup(self._root)
        try:
            for name in path[:-1]:
                try:
                    inner = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
                except OSError as error:
                    if error.errno not in _NO_FOLDER:
                        raise
                    raise UnsafeStream(f"something in a folder that was not sent: {path[-1][:100]!a}") from error
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _end_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
