"""Other ends of vchans over unix sockets, spoken by a test."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from insula_proto import qrexec
from insula_proto.qrexec import Decoder, Hello, Message, encode

PATIENCE_S = 120.0
ANY = {
    **qrexec.LENGTHS,
    qrexec.STDIN: (0, 65536),
    qrexec.STDOUT: (0, 65536),
    qrexec.STDERR: (0, 65536),
}


class Peer:
    """Speaks messages over a connected socket, and checks nothing."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connection = connection
        self._decoder = Decoder(ANY)
        self._messages: list[Message] = []

    def send(self, *messages: Message) -> None:
        self.connection.sendall(b"".join([encode(message) for message in messages]))

    def receive(self) -> Message | None:
        """The next message; None: the other end has gone."""
        while not self._messages:
            try:
                data = self.connection.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._messages += self._decoder.receive(data)
        return self._messages.pop(0)

    def receive_all(self) -> list[Message]:
        found = []
        while (message := self.receive()) is not None:
            found.append(message)
        return found

    def greet(self, version: int = 4) -> Hello:
        self.send(Hello(version))
        answer = self.receive()
        assert isinstance(answer, Hello)
        return answer

    def close(self) -> None:
        self.connection.close()


def connect(path: Path) -> Peer:
    """Connect as soon as somebody serves the path."""
    deadline = time.monotonic() + PATIENCE_S
    connection = socket.socket(socket.AF_UNIX)
    while True:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline, f"nobody serves {path}"
            time.sleep(0.002)
        else:
            return Peer(connection)


class Server:
    """Serves a path for one connection."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(PATIENCE_S)

    def accept(self) -> Peer:
        connection, _ = self._listener.accept()
        self._listener.close()
        return Peer(connection)
