"""The callers' side of a session: ``rpc.sock``, the allotment of data ports, and the relays of running calls.

A client says HELLO and sends one EXEC_CMDLINE or JUST_EXEC; it is answered with the port and a descriptor, its end of
the data channel, or refused with SERVICE_REFUSED and one of the reasons below. The connection stays open until the
call's port is free again (qrexec §3).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from insula.rpc.channel import Channel, StreamHandler
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
SMALL = 4096
"""Bytes from the guest up to which they wait for what else came with them: a caller is woken once."""
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


class _Relay(StreamHandler):
    """Moves bytes between a data stream and the socket whose other end the caller has; looks at none of them."""

    def __init__(self, channel: Channel, connection: socket.socket, table: CallTable, port: int) -> None:
        connection.setblocking(False)
        self._channel = channel
        self._connection = connection
        # The number, because asyncio words an error with the socket's addresses for each one it does not know yet.
        self._fd = connection.fileno()
        self._table = table
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        """From the guest, not taken by the caller yet; at most the stream's window, however small the pieces were."""
        self._guest_finished = False
        self._is_closed = False
        self.stream = channel.open(port, self)
        self._loop.add_reader(self._fd, self._readable)

    # caller to guest

    def _readable(self) -> None:
        room = self._channel.writable(self.stream)
        if not room:
            # Not read while the guest does not: the caller is paced by its socket buffer (MC-14).
            self._loop.remove_reader(self._fd)
            self._channel.notify_writable(self.stream)
            return
        try:
            data = self._connection.recv(min(room, READ_SIZE))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._channel.send(self.stream, data)
        else:
            self.caller_gone()

    def caller_gone(self) -> None:
        """A data channel has no half-close: a caller that closed it before the end wants the command ended."""
        if self._is_closed:
            return
        if self._guest_finished and not self._pending:
            self._channel.finish(self.stream)
        else:
            self._channel.reset(self.stream)
        self._close()

    def writable(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._fd, self._readable)

    # guest to caller

    def view(self, untrusted_view: memoryview) -> None:
        sent = 0
        if not self._pending and len(untrusted_view) <= SMALL:
            self._loop.call_soon(self._deliver)
        elif not self._pending:
            # What the caller takes at once, nearly always all, is not copied.
            sent = self._send(untrusted_view)
            if self._is_closed or sent == len(untrusted_view):
                return
            self._loop.add_writer(self._fd, self._deliver)
        self._pending += untrusted_view[sent:]

    def fin(self) -> None:
        self._guest_finished = True
        if not self._pending:
            self._end_of_output()

    def closed(self) -> None:
        self._deliver()
        self._close()

    def _send(self, untrusted_data: memoryview | bytearray) -> int:
        """Give the caller what it takes now, and as much credit to the guest; return how much that was."""
        try:
            sent = self._connection.send(untrusted_data)
        except BlockingIOError:
            return 0
        except OSError:
            self.caller_gone()
            return 0
        self._channel.consumed(self.stream, sent)
        return sent

    def _deliver(self) -> None:
        if self._is_closed or not self._pending:
            return
        del self._pending[: self._send(self._pending)]
        if self._is_closed:
            return
        if self._pending:
            self._loop.add_writer(self._fd, self._deliver)
            return
        self._loop.remove_writer(self._fd)
        if self._guest_finished:
            self._end_of_output()

    def _end_of_output(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.caller_gone()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._connection.close()
        self._pending.clear()
        self._table.relay_closed(self._port)


class _Call:
    """A port in use. Free again when the agent said so *and* the data stream is closed."""

    __slots__ = ("client", "is_relayed", "is_terminated", "relay")

    def __init__(self, client: _Client, relay: _Relay) -> None:
        self.client = client
        self.relay = relay
        self.is_relayed = True
        self.is_terminated = False


class CallTable:
    """Ports 513…768 and the calls on them. ``on_change`` is called whenever a counter changed."""

    def __init__(self, on_change: CallCounter) -> None:
        self._calls: dict[int, _Call] = {}
        self._on_change = on_change
        self.started = 0
        self.refused = 0

    @property
    def running(self) -> int:
        return len(self._calls)

    def free_port(self) -> int | None:
        """The lowest free port; None if the qube's quota is used up (MC-15)."""
        ports = range(limits.FIRST_DATA_PORT, limits.FIRST_DATA_PORT + limits.MAX_CALLS)
        return next((port for port in ports if port not in self._calls), None)

    def add(self, port: int, client: _Client, relay: _Relay) -> None:
        self._calls[port] = _Call(client, relay)
        self.started += 1
        self._on_change.calls_changed()

    def count_refused(self) -> None:
        self.refused += 1
        self._on_change.calls_changed()

    def terminated(self, domain: int, port: int) -> None:
        """The agent said that a call is over; only for the domain it was made for (qrexec §3)."""
        call = self._calls.get(port)
        if call is not None and domain == 0:
            call.is_terminated = True
            self._free(port, call)

    def relay_closed(self, port: int) -> None:
        call = self._calls.get(port)
        if call is not None:
            call.is_relayed = False
            self._free(port, call)

    def client_gone(self, client: _Client) -> None:
        """A client closed its connection, which it keeps as long as it wants its call.

        The relay would see the end of the data channel only behind everything the guest has not read.
        """
        for call in tuple(self._calls.values()):
            if call.client is client:
                call.relay.caller_gone()

    def clear(self) -> None:
        """The agent is lost, and every call with it; the relays were told by the channel."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.client.close()
        if calls:
            self._on_change.calls_changed()

    def _free(self, port: int, call: _Call) -> None:
        if call.is_terminated and not call.is_relayed:
            del self._calls[port]
            call.client.close()
            self._on_change.calls_changed()


class CallCounter(Protocol):
    def calls_changed(self) -> None: ...


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

    def _receive(self, untrusted_data: bytes) -> None:
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

    def answer(self, data: bytes, descriptor: socket.socket) -> bool:
        """Send the answer with the caller's end of the data channel; whether that worked."""
        try:
            return socket.send_fds(self._connection, [data], [descriptor.fileno()]) == len(data)
        except OSError:
            return False

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
        self._table.client_gone(client)

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
            if not client.answer(qrexec.encode(kind(self._domain, port)), theirs):
                ours.close()
                client.close()
                return
        # The stream before the request: the agent finds it there when it reads the port.
        self._table.add(port, client, _Relay(self._channel, ours, self._table, port))
        self._guest.execute(kind(0, port, command))
