"""A connection to the session's bus: who we are, a name of ours, then messages."""

from __future__ import annotations

import os

from insula_agent import sockets
from insula_agent.notifications import wire
from insula_agent.notifications.wire import Decoder, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESSES = ("DBUS_STARTER_ADDRESS", "DBUS_SESSION_BUS_ADDRESS")
"""Variables with the bus's address: of the one that started us first."""
BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
MAX_LINE = 512
"""Bytes of a line before messages begin."""
READ_SIZE = 65536
TIMEOUT_S = 30.0
"""For what a bus does at once."""
PRIMARY_OWNER, ALREADY_OWNER = 1, 4
_DO_NOT_QUEUE = 4


class NoBus(Exception):
    """There is none, it will not have us, or somebody else has the name already."""


def socket_address(environment: Mapping[str, str]) -> str:
    """Where the bus listens; an abstract address begins with NUL. :raise NoBus:"""
    addresses = next((environment[name] for name in ADDRESSES if environment.get(name)), "")
    for address in addresses.split(";"):
        transport, _, rest = address.partition(":")
        values = dict([pair.partition("=")[::2] for pair in rest.split(",")])
        if transport == "unix" and values.get("path"):
            return values["path"]
        if transport == "unix" and values.get("abstract"):
            return "\0" + values["abstract"]
    raise NoBus(f"no address of a bus: {addresses!a}")


class Bus:
    """:raise NoBus:"""

    def __init__(self, address: str, name: str) -> None:
        self._decoder = Decoder()
        self._early: list[Message] = []
        """What came while the name was asked for."""
        self._connection = sockets.unix_socket()
        try:
            self._connection.settimeout(TIMEOUT_S)
            self._connection.connect(address)
            self._introduce()
            self._ask(1, "Hello")
            (owner,) = self._ask(2, "RequestName", "su", (name, _DO_NOT_QUEUE)).body or (0,)
            if owner not in (PRIMARY_OWNER, ALREADY_OWNER):
                raise NoBus(f"somebody else is {name} already")
        except OSError as error:
            self._connection.close()
            raise NoBus(str(error)) from error

    def fileno(self) -> int:
        return self._connection.fileno()

    def early(self) -> list[Message]:
        """What came before anybody waited for it; once."""
        early, self._early = self._early, []
        return early

    def receive(self) -> list[Message] | None:
        """What has come; None: the bus has ended. :raise RemoteProtocolError:"""
        data = self._connection.recv(READ_SIZE)
        return self._decoder.receive(data) if data else None

    def send(self, message: Message) -> None:
        """:raise OSError: the bus has ended, or does not listen."""
        self._connection.sendall(wire.encode(message))

    def _introduce(self) -> None:
        """By what the kernel says of us (``EXTERNAL``)."""
        self._connection.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        line = b""
        while not line.endswith(b"\r\n"):
            part = self._connection.recv(1)
            line += part
            if not part or len(line) > MAX_LINE:
                raise NoBus("the bus ended the connection")
        if not line.startswith(b"OK "):
            raise NoBus(f"the bus refuses us: {line[:MAX_LINE]!a}")
        self._connection.sendall(b"BEGIN\r\n")

    def _ask(self, serial: int, member: str, signature: str = "", body: tuple[object, ...] = ()) -> Message:
        call = Message(
            wire.CALL,
            # (Our answers count from 1 as well; nobody answers those.)
            serial,
            {"path": BUS_PATH, "interface": BUS, "member": member, "destination": BUS},
            signature,
            body,
        )
        self.send(call)
        while True:
            messages = self.receive()
            if messages is None:
                raise NoBus("the bus ended the connection")
            answers = [message for message in messages if message.answers == serial]
            self._early += [message for message in messages if message.answers != serial]
            if answers:
                if answers[0].kind == wire.ERROR:
                    raise NoBus(f"the bus refuses {member}: {answers[0].field('error_name')}")
                return answers[0]
