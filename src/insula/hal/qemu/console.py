"""The serial console's log: guest bytes, kept within a size, harmless to look at.

The VMM's serial port is a listening socket; the daemon is connected to it (before the VMM even starts, so no byte is
lost) and copies what comes into ``console.log``. Decision 003 tells what else was considered. In short:

* *Size*: two files of at most :data:`PART_LIMIT` bytes; when one is full it becomes ``console.log.1``.
* *Rate*: at most :data:`READ_SIZE` bytes each :data:`PAUSE_S`. A guest that writes more waits for its own serial
  port; the daemon does not.
* *Content*: everything but printable ASCII, tab and newline becomes ``?``, so a terminal that shows the file does
  nothing else (MC-103).
* *Restart*: without a daemon the guest writes to nobody and goes on; the next daemon connects again and appends.
* *End*: when the VMM is gone, what it left in the socket is still read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

LOG_NAME = "console.log"
OLD_LOG_NAME = "console.log.1"

PART_LIMIT = 512 * 1024
"""Bytes of each of the two files. A verbose boot of Debian prints about 60 KiB."""
READ_SIZE = 32 * 1024
PAUSE_S = 0.05
"""With READ_SIZE: 640 KiB/s a guest at most."""
MAX_REST = 1 << 20
"""Bytes read after the VMM's end; a unix socket holds about 208 KiB (net.core.wmem_default)."""

_KEPT = frozenset(b"\t\n") | frozenset(range(0x20, 0x7F))
_TABLE = bytes(byte if byte in _KEPT else ord("?") for byte in range(256))

_log = logging.getLogger(__name__)


def printable(untrusted_output: bytes) -> bytes:
    """Console output as a terminal may see it: carriage returns dropped, other controls and non-ASCII ``?``."""
    return untrusted_output.translate(_TABLE, b"\r")


class ConsoleLog:
    """Two files in a folder that together keep the newest part of what was written."""

    def __init__(self, folder: Path, *, part_limit: int = PART_LIMIT) -> None:
        self.path = folder / LOG_NAME
        self._old = folder / OLD_LOG_NAME
        self._limit = part_limit
        self._fd: int | None = None
        self._size = 0

    def moved(self, folder: Path) -> None:
        """The folder has another name now."""
        self.path, self._old = folder / LOG_NAME, folder / OLD_LOG_NAME

    def open(self, *, fresh: bool) -> None:
        """Start writing. ``fresh``: what is there from an earlier machine becomes the old part."""
        if fresh and self.path.exists():
            self.path.replace(self._old)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append. :raise OSError: the disk is full."""
        while data:
            if self._size >= self._limit:
                self.close()
                self.open(fresh=True)
            part, data = data[: self._limit - self._size], data[self._limit - self._size :]
            if self._fd is None:
                return
            self._size += os.write(self._fd, part)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class ConsoleReader:
    """Copies from a connected socket to a log. Owns both from :meth:`start` on."""

    def __init__(self, log: ConsoleLog, client: socket.socket) -> None:
        self._log = log
        self._socket = client
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = True

    @property
    def is_closed(self) -> bool:
        """Whether the other side has ended, or :meth:`close` was called."""
        return not self._is_open

    def start(self) -> None:
        self._timer = None
        self._loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        if self._copy() == 0:
            self.close()
            return
        # Rest after each read, whatever its size: many small reads cost as much as large ones.
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(PAUSE_S, self.start)

    def _copy(self) -> int | None:
        """Move one portion; its size, 0 at the end, None if nothing is there now."""
        try:
            untrusted_output = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        try:
            self._log.write(printable(untrusted_output))
        except OSError as error:
            _log.warning("console log %s: %s", self._log.path, error)
        return len(untrusted_output)

    def finish(self) -> None:
        """The VMM is gone: read what it left, then close."""
        taken = 0
        while self._is_open and taken < MAX_REST:
            count = self._copy()
            if not count:
                break
            taken += count
        self.close()

    def close(self) -> None:
        """Let go; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket)
        with suppress(OSError):
            self._socket.close()
        self._log.close()
