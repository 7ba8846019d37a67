"""A copy of what a service says on its error output, for the system's log (reference: qrexec, §5, "Users")."""

from __future__ import annotations

import _socket

SOCKET = "/dev/log"
PRIORITY = 13
"""user.notice (<syslog.h>), what logger(1) uses."""
MAX_LINE = 1024
MAX_COPIED = 65536
"""Bytes copied of one call: a service that floods its error output floods its caller, not the log."""


class SyslogCopy:
    """Lines under a tag. Without a log, or one that takes nothing now, they are lost: the caller has them anyway."""

    def __init__(self, tag: str, path: str = SOCKET) -> None:
        self._prefix = f"<{PRIORITY}>{tag}: ".encode("utf-8", "surrogateescape")
        self._path = path
        self._partial = b""
        self._left = MAX_COPIED
        self._socket: _socket.socket | None = None

    def write(self, data: bytes) -> None:
        if self._left <= 0:
            return
        data = data[: self._left]
        self._left -= len(data)
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        while len(self._partial) > MAX_LINE:
            lines.append(self._partial[:MAX_LINE])
            self._partial = self._partial[MAX_LINE:]
        if self._left <= 0:
            lines += [self._partial, b"(further error output is not copied)"]
            self._partial = b""
        for line in lines:
            self._send(line[:MAX_LINE])

    def close(self) -> None:
        self._send(self._partial)
        self._partial = b""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, line: bytes) -> None:
        if not line:
            return
        try:
            if self._socket is None:
                self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(self._prefix + line, self._path)
        except OSError:
            return
