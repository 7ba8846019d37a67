"""Connections to services that listen: on a unix socket, or on a TCP port."""

from __future__ import annotations

import _socket
import errno
import os

from insula_agent import sockets
from insula_agent.loop import WRITE, Loop, Timer
from insula_proto.services import SocketService, TcpService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 120.0
"""Seconds until a service that does not answer is given up."""
RETRY_INTERVAL = 0.05
"""Seconds between tries at a socket whose queue is full."""


def _connect_unix(path: str) -> _socket.socket:
    """Connect to a path of any length. :raise BlockingIOError: its queue is full. :raise OSError:"""
    connection = sockets.unix_socket()
    connection.setblocking(False)
    # An address holds 107 bytes; /proc has a short name for whatever is open.
    node = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{node}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(node)
    return connection


def _begin_tcp(host: str, port: int) -> _socket.socket:
    """Begin to connect. :raise OSError: the host is no address, or cannot be reached."""
    found = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST)
    family, kind, protocol, _, address = found[0]
    connection = _socket.socket(family, kind, protocol)
    connection.setblocking(False)
    try:
        connection.connect(address)
    except BlockingIOError:
        return connection
    except OSError:
        connection.close()
        raise
    return connection


class Connector:
    """Calls ``on_connected`` with the descriptor, or ``on_failed`` with the reason; neither after :meth:`cancel`."""

    def __init__(
        self,
        loop: Loop,
        target: SocketService | TcpService,
        on_connected: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._target = target
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._connection: _socket.socket | None = None
        self._retry: Timer | None = None
        self._deadline = loop.after(TIMEOUT, lambda: self._fail("no answer"))

    def start(self) -> None:
        """Try; the result may be told before this returns."""
        try:
            if isinstance(self._target, SocketService):
                self._connection = _connect_unix(self._target.path)
                self._connected()
            else:
                self._connection = _begin_tcp(self._target.host, self._target.port)
                self._loop.watch(self._connection.fileno(), WRITE, self._tcp_ready)
        except BlockingIOError:
            self._retry = self._loop.after(RETRY_INTERVAL, self.start)
        except OSError as error:
            self._fail(str(error))

    def cancel(self) -> None:
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._connection is not None:
            self._loop.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _tcp_ready(self, events: int) -> None:
        del events
        assert self._connection is not None
        number = self._connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            self._fail(f"{errno.errorcode.get(number, number)}")
        else:
            self._loop.forget(self._connection.fileno())
            self._connected()

    def _connected(self) -> None:
        assert self._connection is not None
        connection, self._connection = self._connection, None
        self.cancel()
        self._on_connected(connection.detach())

    def _fail(self, reason: str) -> None:
        self.cancel()
        self._on_failed(reason)
