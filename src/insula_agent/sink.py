"""Where a program's output goes, without ever blocking on it.

Descriptors that others share with us (a terminal, the pipe of a shell) stay blocking, so they are written so that they
do not block: sockets by a flag, pipes by a description of their own, files and /dev/null because they never do,
anything else in small pieces after poll(2) said that one goes.
"""

from __future__ import annotations

import _socket
import os
import select
import stat

from insula_agent import sockets
from insula_agent.pieces import MAX_PIECES, drop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Buffer = Union[bytes, memoryview]

SAFE_PIECE = select.PIPE_BUF
"""Bytes a pipe that polls as writable takes without blocking."""
_NULL = os.makedev(1, 3)
"""/dev/null (Linux, Documentation/admin-guide/devices.txt)."""
_PRINTABLE = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r\b\a")
HARMLESS = bytes([byte if byte in _PRINTABLE else ord("_") for byte in range(256)])
"""What may go to a terminal; every other byte becomes ``_`` (reference: qrexec, §4, option -t)."""


class Sink:
    """Takes data, keeps what does not go yet; broken, it swallows the rest: that is not the call's failure."""

    def __init__(self, fd: int, *, is_filtered: bool) -> None:
        self.fd = fd
        self.is_open = True
        self._is_filtered = is_filtered
        self._is_ending = False
        self._pending: list[Buffer] = []
        status = os.fstat(fd)
        mode = status.st_mode
        self._socket = _socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._own_pipe = _open_anew(fd) if stat.S_ISFIFO(mode) else -1
        is_null = stat.S_ISCHR(mode) and status.st_rdev == _NULL
        self._may_block = self._socket is None and self._own_pipe < 0 and not (stat.S_ISREG(mode) or is_null)

    @property
    def pipe(self) -> int:
        """A pipe into which pages may be moved past us while we are not busy; -1: none, or output is changed here."""
        return -1 if self._is_filtered or not self.is_open or self._is_ending else self._own_pipe

    @property
    def is_busy(self) -> bool:
        """Whether something waits; :meth:`writable` is to be called when ``fd`` is."""
        return bool(self._pending)

    def write(self, *pieces: Buffer) -> None:
        """Take data; a view must stay valid until the sink is not busy."""
        if pieces and self.is_open and not self._is_ending:
            self._pending += [bytes(piece).translate(HARMLESS) for piece in pieces] if self._is_filtered else pieces
            if not self._may_block:
                self.writable()

    def end(self) -> None:
        """Nothing more comes; close when all is written."""
        self._is_ending = True
        if not self._pending:
            self.close()

    def writable(self) -> None:
        """Write what goes without blocking."""
        try:
            while self._pending:
                drop(self._pending, self._write())
                if self._may_block:
                    break
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._is_ending and not self._pending:
            self.close()

    def _write(self) -> int:
        """Write some of what waits; how much. :raise OSError:"""
        if self._may_block:
            return os.write(self.fd, self._pending[0][:SAFE_PIECE])
        pieces = self._pending[:MAX_PIECES]
        if self._socket is not None:
            return self._socket.sendmsg(pieces, (), _socket.MSG_DONTWAIT)
        return os.writev(self._own_pipe if self._own_pipe >= 0 else self.fd, pieces)

    def close(self) -> None:
        """Half-close a socket, which may be read by us too; close anything else. What waits is dropped."""
        if not self.is_open:
            return
        self.is_open = False
        self._pending.clear()
        if self._socket is not None:
            self._socket.close()
            sockets.shut(self.fd, sockets.SHUT_WR)
            return
        if self._own_pipe >= 0:
            os.close(self._own_pipe)
        release(self.fd)


def _open_anew(pipe: int) -> int:
    """The same pipe by a description of our own, which may be non-blocking without others noticing; -1: impossible."""
    try:
        return os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # Somebody else's pipe, or no /proc: small pieces do as well, slower.
        return -1


def release(fd: int) -> None:
    """Close a descriptor; a standard one stays taken, so that nothing opened later gets its number."""
    if fd > 2:
        os.close(fd)
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)
