"""QubesDB for programs of this qube: the published socket, its messages answered from the keys the agent has.

Programs read what the host told this qube, and write the few keys a qube may write, which the host is told; whether it
takes them is the host's to say, later, and this qube does not learn it. Any user may: inside a qube users are no
boundary.

It is opened once the host has answered the agent for the first time, so no start waits for it.
"""

from __future__ import annotations

import os

from insula_agent.keys import Keys
from insula_agent.listeners import Listener
from insula_agent.log import log
from insula_agent.loop import READ, Loop, Timer
from insula_proto.errors import RemoteProtocolError
from insula_proto.qubesdb import KeyServer, KeyWritten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.sockets import Socket

DEFAULT_SOCKET = "/var/run/qubes/qubesdb.sock"
MAX_CLIENTS = 32
"""Programs at once; a further one is closed."""
IDLE_LIMIT = 30.0
"""Seconds a program may say nothing."""
READ_SIZE = 65536


class _Client:
    """A program's connection."""

    def __init__(self, owner: KeySocket, connection: Socket, loop: Loop) -> None:
        connection.setblocking(False)
        self._owner = owner
        self._connection = connection
        self._fd = connection.fileno()
        self._loop = loop
        self._server = KeyServer(owner.keys.known, owner.keys.may_tell)
        self._timer: Timer = loop.after(IDLE_LIMIT, self.close)
        loop.watch(self._fd, READ, self._ready)

    def _ready(self, events: int) -> None:
        del events
        try:
            untrusted_data = os.read(self._fd, READ_SIZE)
            if not untrusted_data:
                self.close()
                return
            for event in self._server.receive(untrusted_data):
                if isinstance(event, KeyWritten):
                    self._owner.keys.tell(event.path, event.value)
                else:
                    self._owner.keys.take_back(event.path)
            self._answer(self._server.take_output())
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError) as error:
            log(f"a program's keys: {error}")
            self.close()
            return
        self._timer.cancel()
        self._timer = self._loop.after(IDLE_LIMIT, self.close)

    def _answer(self, data: bytes) -> None:
        """:raise BlockingIOError: never. :raise OSError: it does not read what it asked for."""
        try:
            if self._connection.send(data) != len(data):
                raise OSError("it asks for more than it reads")
        except BlockingIOError as error:
            raise OSError("it asks for more than it reads") from error

    def close(self) -> None:
        self._timer.cancel()
        self._loop.forget(self._fd)
        self._connection.close()
        self._owner.closed(self)


class KeySocket:
    def __init__(self, loop: Loop, keys: Keys, path: str) -> None:
        self._loop = loop
        self.keys = keys
        self._listener = Listener(loop, path, self._take, MAX_CLIENTS)
        self._clients: set[_Client] = set()

    def listen(self) -> None:
        """Let programs connect; done already is fine. :raise OSError: the socket cannot be made."""
        self._listener.open()

    def close(self) -> None:
        """Close everything and remove the socket."""
        for client in tuple(self._clients):
            client.close()
        self._listener.close()

    def closed(self, client: _Client) -> None:
        self._clients.discard(client)

    def _take(self, connection: Socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
        else:
            self._clients.add(_Client(self, connection, self._loop))
