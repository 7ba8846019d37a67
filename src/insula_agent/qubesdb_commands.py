"""``qubesdb-read``, ``-write``, ``-list``, ``-multiread``, ``-rm``: the keys of this qube, on a command line.

One message to the agent's socket each (:mod:`insula_agent.key_socket`); what is printed is what was answered.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from insula_agent import sockets
from insula_agent.key_socket import DEFAULT_SOCKET
from insula_proto import qubesdb
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qubesdb import KeyMessage

SOCKET_VARIABLE = "QUBESDB_SOCKET"
"""Another place of the socket, for tests."""
EXIT_USAGE = 2
EXIT_FAILED = 1
READ_SIZE = 65536

USAGE = """usage: qubesdb-read [-d DEFAULT] PATH…     print values
       qubesdb-write PATH VALUE…           set keys a qube may set; several pairs
       qubesdb-list [-f] PATH              print names below a path, -f: in full
       qubesdb-multiread PATH              print names and values below a path
       qubesdb-rm PATH…                    remove keys
"""


class KeyFailed(Exception):
    """The agent refused, or there is no such key."""


class Connection:
    """Asks one thing after another."""

    def __init__(self, path: str) -> None:
        """:raise OSError: nobody listens."""
        self._socket = sockets.unix_socket()
        self._socket.connect(path)
        self._decoder = qubesdb.Decoder()
        self._answers: list[KeyMessage] = []

    def ask(self, kind: int, path: str, value: bytes = b"") -> KeyMessage:
        """The next answer. :raise LocalProtocolError: no such key can be. :raise RemoteProtocolError, OSError:"""
        self._socket.sendall(qubesdb.encode(KeyMessage(kind, path, value)))
        return self.next()

    def next(self) -> KeyMessage:
        while not self._answers:
            data = self._socket.recv(READ_SIZE)
            if not data:
                raise KeyFailed("the agent does not answer that")
            self._answers += self._decoder.receive(data)
        return self._answers.pop(0)


def _wanted(answer: KeyMessage, kind: int, path: str) -> KeyMessage:
    if answer.kind == qubesdb.RESP_ERROR_NOENT:
        raise KeyFailed(f"no key {path}")
    if answer.kind != kind:
        raise KeyFailed(f"{path}: refused")
    return answer


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data + b"\n")


def read(connection: Connection, arguments: list[str]) -> None:
    default: str | None = None
    if len(arguments) > 2 and arguments[0] == "-d":
        default, arguments = arguments[1], arguments[2:]
    for path in arguments:
        answer = connection.ask(qubesdb.READ, path)
        if answer.kind == qubesdb.RESP_ERROR_NOENT and default is not None:
            _print(default.encode("utf-8", "surrogateescape"))
        else:
            _print(_wanted(answer, qubesdb.RESP_READ, path).value)


def write(connection: Connection, arguments: list[str]) -> None:
    for path, value in zip(arguments[::2], arguments[1::2]):  # noqa: B905 - checked to be pairs
        answer = connection.ask(qubesdb.WRITE, path, value.encode("utf-8", "surrogateescape"))
        _wanted(answer, qubesdb.RESP_OK, path)


def remove(connection: Connection, arguments: list[str]) -> None:
    for path in arguments:
        _wanted(connection.ask(qubesdb.RM, path), qubesdb.RESP_OK, path)


def list_keys(connection: Connection, arguments: list[str]) -> None:
    is_full = arguments[0] == "-f"
    path = arguments[-1]
    answer = connection.ask(qubesdb.MULTIREAD, path)
    while answer.path:
        _print(answer.path[0 if is_full else len(path) :].encode("ascii"))
        answer = connection.next()


def multiread(connection: Connection, arguments: list[str]) -> None:
    answer = connection.ask(qubesdb.MULTIREAD, arguments[0])
    while answer.path:
        _print(answer.path.encode("ascii") + b" = " + answer.value)
        answer = connection.next()


COMMANDS = {
    "read": read, "write": write, "list": list_keys, "multiread": multiread, "rm": remove,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    name, *rest = arguments or [""]
    command = COMMANDS.get(name)
    if command is None or not rest or (command is write and len(rest) % 2):
        sys.stderr.write(USAGE)
        return EXIT_USAGE
    try:
        command(Connection(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET), rest)
    except (KeyFailed, LocalProtocolError, RemoteProtocolError, OSError) as error:
        sys.stderr.write(f"qubesdb-{name}: {error}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
