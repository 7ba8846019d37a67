"""Unix sockets. The public module ``socket`` is not used: it costs an import of enum and selectors."""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Socket = _socket.socket
SHUT_RD, SHUT_WR = 0, 1
MSG_DONTWAIT = 0x40
_SO_SNDBUFFORCE = 32
"""<asm-generic/socket.h>"""


def unix_socket() -> _socket.socket:
    """An unconnected stream socket."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)


def listen(path: str, mode: int, backlog: int) -> _socket.socket:
    """Serve a path, whoever served it before. :raise OSError: impossible."""
    remove(path)
    listener = unix_socket()
    try:
        listener.bind(path)
        os.chmod(path, mode)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def remove(path: str) -> None:
    """Make sure that nothing is at a path."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def accept(listener: _socket.socket) -> _socket.socket:
    """The next connection. :raise BlockingIOError: nobody waits. :raise OSError:"""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return _socket.socket(fileno=fd)


def pair(size: int = 0) -> tuple[_socket.socket, _socket.socket]:
    """Two stream sockets connected to each other, with room for about ``size`` bytes each way where that is allowed."""
    first, second = _socket.socketpair()
    if size:
        for end in (first, second):
            # Beyond the system's limit for root, up to it for others.
            try:
                end.setsockopt(_socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            except PermissionError:
                end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, size)
    return first, second


def shut(fd: int, how: int) -> None:
    """Half-close; a connection whose other side has gone altogether is as closed as it can be."""
    connection = _socket.socket(fileno=os.dup(fd))
    try:
        connection.shutdown(how)
    except OSError:
        return
    finally:
        connection.close()


def send_with_descriptors(connection: _socket.socket, data: bytes, descriptors: Sequence[int]) -> int:
    """Send ``data`` and descriptors; the number of bytes sent. :raise OSError:"""
    ancillary = []
    if descriptors:
        numbers = b"".join([fd.to_bytes(4, "little") for fd in descriptors])
        ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers))
    return connection.sendmsg([data], ancillary)


def receive_with_descriptors(connection: _socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive bytes and the descriptors that came with them, at most so many; the rest is dropped. :raise OSError:"""
    # CMSG_LEN, not CMSG_SPACE: that leaves room for one more than asked for, which nobody would close.
    data, ancillary, _, _ = connection.recvmsg(size, _socket.CMSG_LEN(4 * most), _socket.MSG_CMSG_CLOEXEC)
    found = []
    for level, kind, value in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            found += [int.from_bytes(value[start : start + 4], "little") for start in range(0, len(value) - 3, 4)]
    return data, found
