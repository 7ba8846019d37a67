"""A unix socket of this qube's that programs connect to: made, taken from, removed."""

from __future__ import annotations

from insula_agent import sockets
from insula_agent.log import log
from insula_agent.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.loop import Loop
    from insula_agent.sockets import Socket

MAX_AT_ONCE = 16
"""Connections taken before others have their turn."""


class Listener:
    """``take`` is given each connection, and closes what it does not keep. Any user of the qube may connect."""

    def __init__(self, loop: Loop, path: str, take: Callable[[Socket], None], backlog: int) -> None:
        self._loop = loop
        self._path = path
        self._take = take
        self._backlog = backlog
        self._socket: Socket | None = None

    def open(self) -> None:
        """Let programs connect; done already is fine. :raise OSError: the socket cannot be made."""
        if self._socket is None:
            self._socket = sockets.listen(self._path, 0o666, self._backlog)
            self._socket.setblocking(False)
            self._loop.watch(self._socket.fileno(), READ, self._accept)

    def close(self) -> None:
        """Remove the socket; connections that were taken stay."""
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
            sockets.remove(self._path)

    def _accept(self, events: int) -> None:
        del events
        for _ in range(MAX_AT_ONCE):
            if self._socket is None:
                return
            try:
                connection = sockets.accept(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                log(f"a program cannot connect: {error}")
                return
            self._take(connection)
