"""The callers' side of a session: ``rpc.sock``, where programs of the host have commands run.

A client says HELLO and sends one EXEC_CMDLINE or JUST_EXEC; it is answered with the port and a descriptor, its end of
the data channel, or refused with SERVICE_REFUSED and one of the reasons below. The connection stays open until the
call's port is free again (qrexec §3); meanwhile it can be lent memory over it (:mod:`insula.rpc.lending`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from insula.rpc.call_table import CallTable
from insula.rpc.channel import Channel
from insula.rpc.lending import Borrower, Lender
from insula.rpc.relay import Relay
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import (
    EXEC_CMDLINE,
    HELLO,
    JUST_EXEC,
    Decoder,
    ExecCmdline,
    Hello,
    JustExec,
    Message,
    ServiceRefused,
)

MAX_CLIENTS = limits.MAX_CALLS + 128
"""Connections at once: one for each call, and some that are about to be refused."""
REQUEST_TIMEOUT = 10.0
"""Seconds a client has from connecting to its complete request (MC-13)."""
READ_SIZE = 65536
LISTEN_BACKLOG = 512

REFUSED_BUSY = b"busy"
REFUSED_NOT_READY = b"not-ready"
REFUSED_BAD_REQUEST = b"bad-request"

_DEFAULT_USER_PREFIX = b"DEFAULT:"


class Guest(Protocol):
    """What callers need of the guest."""

    @property
    def is_ready(self) -> bool: ...

    def has_room(self) -> bool: ...

    def execute(self, message: ExecCmdline | JustExec) -> None: ...


class _Client:
    """One connection to ``rpc.sock``."""

    def __init__(self, server: CallServer, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._server = server
        self._connection = connection
        self._fd = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(qrexec.lengths(HELLO))
        self._is_closed = False
        self._is_greeted = False
        self._has_asked = False
        self.borrower: Borrower | None = None
        """Once it has a call."""
        self._timer = self._loop.call_later(REQUEST_TIMEOUT, self.close)
        self._loop.add_reader(self._fd, self._readable)
        self._send(qrexec.encode(Hello(qrexec.LOCAL_VERSION)))

    def _send(self, data: bytes) -> None:
        """Answers are so few and small that they fit the buffer of a new socket; who blocks it is dropped."""
        try:
            if self._connection.send(data) == len(data):
                return
        except OSError:
            pass
        self.close()

    def _readable(self) -> None:
        try:
            untrusted_data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            untrusted_data = b""
        if not untrusted_data:
            self.close()
            self._server.client_gone(self)
            return
        try:
            self._receive(untrusted_data)
        except RemoteProtocolError:
            self.refuse(REFUSED_BAD_REQUEST)
            self._server.client_gone(self)

    def _receive(self, untrusted_data: bytes) -> None:
        if self.borrower is not None:
            self.borrower.receive(untrusted_data)
            return
        while untrusted_data:
            # HELLO alone first: what may follow is known only then.
            size = len(untrusted_data) if self._is_greeted else self._decoder.missing
            for message in self._decoder.receive(untrusted_data[:size]):
                self._handle(message)
            untrusted_data = untrusted_data[size:]

    def _handle(self, message: Message) -> None:
        if isinstance(message, Hello):
            qrexec.negotiate(message.version, qrexec.LOCAL_VERSION)
            self._is_greeted = True
            self._decoder.allowed = qrexec.lengths(EXEC_CMDLINE, JUST_EXEC)
        elif isinstance(message, (ExecCmdline, JustExec)) and not self._has_asked:
            self._has_asked = True
            self._timer.cancel()
            self._server.request(self, message)
        else:
            raise RemoteProtocolError("a second request")

    def refuse(self, reason: bytes) -> None:
        self._send(qrexec.encode(ServiceRefused(reason)))
        self.close()

    def answer(self, data: bytes, descriptor: socket.socket, lender: Lender) -> Borrower | None:
        """Send the answer with the caller's end of the data channel; None: that did not work."""
        try:
            if socket.send_fds(self._connection, [data], [descriptor.fileno()]) != len(data):
                return None
        except OSError:
            return None
        self.borrower = Borrower(self._connection, lender)
        return self.borrower

    # CallOwner

    def relay_closed(self) -> None:
        """The connection stays until the port is free."""

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._timer.cancel()
            self._loop.remove_reader(self._fd)
            self._connection.close()
            self._server.client_closed(self)


class CallServer:
    """Serves ``rpc.sock``."""

    def __init__(self, listener: socket.socket, guest: Guest, table: CallTable) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._guest = guest
        self._table = table
        self._channel: Channel | None = None
        self._domain = 0
        self._default_user = b"user"
        self._clients: set[_Client] = set()
        self._lender = Lender()
        self._loop = asyncio.get_running_loop()

    def configure(self, channel: Channel, domain: int, default_user: str) -> None:
        """Set what answers and requests are made with, and begin to accept."""
        self._channel = channel
        self._domain = domain
        self._default_user = default_user.encode()
        self._listener.listen(LISTEN_BACKLOG)
        self._accept_more()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for client in tuple(self._clients):
            client.close()
        self._lender.close()

    def share(self, descriptor: int) -> None:
        """Callers may be lent this memory, in which the qube writes. Takes it over; once."""
        self._lender.descriptor = descriptor

    def _accept_more(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            # Further ones wait in the backlog until one has gone.
            self._loop.remove_reader(self._listener)
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._clients.add(_Client(self, connection))

    def client_closed(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.discard(client)
            if len(self._clients) == MAX_CLIENTS - 1 and self._listener.fileno() >= 0:
                self._accept_more()

    def client_gone(self, client: _Client) -> None:
        self._table.owner_gone(client)

    def request(self, client: _Client, message: ExecCmdline | JustExec) -> None:
        """Decide about a complete request, and start the call or refuse it."""
        command = message.command or b""
        if b":" not in command:
            client.refuse(REFUSED_BAD_REQUEST)
            return
        if command.startswith(_DEFAULT_USER_PREFIX):
            command = self._default_user + command[len(_DEFAULT_USER_PREFIX) - 1 :]
        if len(command) > limits.QREXEC_MAX_BODY - 9:
            client.refuse(REFUSED_BAD_REQUEST)
            return
        if self._channel is None or not self._guest.is_ready:
            client.refuse(REFUSED_NOT_READY)
            return
        port = self._table.free_port()
        if port is None or not self._guest.has_room():
            self._table.count_refused()
            client.refuse(REFUSED_BUSY)
            return
        self._start(client, type(message), port, command)

    def _start(self, client: _Client, kind: type[ExecCmdline | JustExec], port: int, command: bytes) -> None:
        assert self._channel is not None
        ours, theirs = socket.socketpair()
        with theirs:
            borrower = client.answer(qrexec.encode(kind(self._domain, port)), theirs, self._lender)
        if borrower is None:
            ours.close()
            client.close()
            return
        # The stream before the request: the agent finds it there when it reads the port.
        self._table.add(port, 0, client, Relay(self._channel, ours, self._table, port, borrower=borrower))
        self._guest.execute(kind(0, port, command))
