"""Services of other qubes, asked for by programs of this one (reference: qrexec, §3, "VM asks for a service").

::

    program ── TRIGGER_SERVICE4 ──► its connection to us ── ident SOCKET<n> ──► host
            ◄── domain, port, descriptors ───────────────── SERVICE_CONNECT ──    asks policy, maybe the user
            ◄── end of file ─────────────────────────────── SERVICE_REFUSED ──

A request that comes with a descriptor, of whatever, is from a program that takes two pipes for its data channel; others
get a socket. Such a program may keep its connection, and give us its input over it when that has proved large::

    program ── GIVEN, descriptor ──► its connection to us     from now on we read the pipe and make the messages
            ◄── TAKEN ──────────────                          (closed instead: the program goes on as before)

Any user may ask. A program that connects and says nothing is closed after :data:`REQUEST_TIMEOUT`; when there are more
programs than :data:`MAX_CLIENTS`, those that have not finished their request go first, so they cost nobody else.

A request is passed on when the host is there *and* this machine is somebody (:meth:`Requests.allow`); until then it
waits. What was asked over a control channel that is lost is refused: its answer cannot come any more.
"""

from __future__ import annotations

import os
import struct

from insula_agent import sockets
from insula_agent.listeners import Listener
from insula_agent.log import log
from insula_agent.loop import READ, Loop, Timer
from insula_proto import qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import TRIGGER_SERVICE4, Decoder, TriggerService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula_agent.sockets import Socket

DEFAULT_SOCKET = "/var/run/qubes/qrexec-agent"
MAX_CLIENTS = 256
"""Programs that ask at once: as many as there can be calls. Further ones are refused."""
REQUEST_TIMEOUT = 10.0
"""Seconds a program has from connecting to its complete request (MC-13)."""
READ_SIZE = 65536
ANSWER = struct.Struct("<II")
"""Domain and port, without a header."""
GIVEN, TAKEN = b"I", b"T"
"""Of a program's input, after the answer."""


class Client:
    """A program's connection: asks, waits, is answered."""

    def __init__(self, owner: Requests, connection: Socket, loop: Loop) -> None:
        connection.setblocking(False)
        self._owner = owner
        self._connection = connection
        self._fd = connection.fileno()
        self._loop = loop
        self._decoder = Decoder(qrexec.lengths(TRIGGER_SERVICE4))
        self.request: TriggerService | None = None
        """What it asks for, once that has come in full."""
        self.takes_pipes = False
        self.ident = b""
        """Under what the host was asked; empty before that."""
        self._on_close: Callable[[], None] | None = None
        self._on_input: Callable[[int], bool] | None = None
        self._is_closed = False
        self._timer: Timer = loop.after(REQUEST_TIMEOUT, self._give_up)
        loop.watch(self._fd, READ, self._ready)

    def _give_up(self) -> None:
        log("a program connected and did not finish its request")
        self.close()

    def _ready(self, events: int) -> None:
        del events
        try:
            untrusted_data, descriptors = sockets.receive_with_descriptors(self._connection, READ_SIZE, 1)
        except BlockingIOError:
            return
        except OSError:
            untrusted_data, descriptors = b"", []
        if self._on_input is not None:
            self._input_given(self._on_input, untrusted_data, descriptors)
            return
        for fd in descriptors:
            os.close(fd)
            self.takes_pipes = True
        if not untrusted_data:
            self.close()
            return
        try:
            self._receive(untrusted_data)
        except RemoteProtocolError as error:
            log(f"a program's request: {error}")
            self.close()

    def _receive(self, untrusted_data: bytes) -> None:
        for message in self._decoder.receive(untrusted_data):
            if self.request is not None or not isinstance(message, TriggerService):
                raise RemoteProtocolError("more than a request, or one that names no service")
            self._timer.cancel()
            self.request = message
        if self.request is not None and not self._decoder.is_between_messages:
            raise RemoteProtocolError("bytes after the request")
        if self.request is not None:
            self._owner.complete(self)

    def answer(self, domain: int, port: int, channel: Sequence[int] = ()) -> None:
        """Tell it where its data channel is, if it is still there to be told."""
        try:
            sockets.send_with_descriptors(self._connection, ANSWER.pack(domain, port), channel)
        except OSError as error:
            log(f"a program that asked does not listen: {error}")

    def answer_and_stay(self, domain: int, port: int, on_close: Callable[[], None]) -> None:
        """Tell it where to have its data channel; ``on_close`` is called when it says that its call is over."""
        self._on_close = on_close
        self.answer(domain, port)

    def stay_for_input(self, on_input: Callable[[int], bool]) -> None:
        """It was answered, and may give its input: ``on_input`` is called once with a descriptor and says whether that
        is read now, by one of our own."""
        self._on_input = on_input
        self._owner.closed(self)

    def _input_given(self, on_input: Callable[[int], bool], untrusted_data: bytes, descriptors: list[int]) -> None:
        is_taken = untrusted_data == GIVEN and len(descriptors) == 1 and on_input(descriptors[0])
        for fd in descriptors:
            os.close(fd)
        if is_taken:
            try:
                self._connection.send(TAKEN)
            except OSError as error:
                # It has gone, and its call with it.
                log(f"a program that gave its input: {error}")
        self.close()

    def close(self) -> None:
        """To a program that waits this means: refused."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        self._loop.forget(self._fd)
        self._connection.close()
        self._owner.closed(self)
        if self._on_close is not None:
            self._on_close()


class Requests:
    """``trigger(ident, request)`` passes a request on to the host, ``withdraw(ident)`` takes it back."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        trigger: Callable[[bytes, TriggerService], None],
        withdraw: Callable[[bytes], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._trigger = trigger
        self._withdraw = withdraw
        self._listener = Listener(loop, path, self._take, MAX_CLIENTS)
        self._clients: dict[Client, None] = {}
        """In the order they came."""
        self._pending: dict[bytes, Client] = {}
        """Those the host was asked for, by ident."""
        self._count = 0
        self._is_allowed = False
        self._is_connected = False

    def listen(self) -> None:
        """Let programs connect. :raise OSError: the socket cannot be made."""
        os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
        self._listener.open()

    def close(self) -> None:
        """Refuse everybody and remove the socket."""
        for client in tuple(self._clients):
            client.close()
        self._listener.close()

    # --- the host ------------------------------------------------------------------------------------------------

    def allow(self) -> None:
        """This machine is somebody from now on: who asks is answered as that."""
        self._is_allowed = True
        self._forward()

    def connected(self) -> None:
        """The host listens."""
        self._is_connected = True
        self._forward()

    def lost(self) -> None:
        """It does not any more."""
        self._is_connected = False
        for client in tuple(self._pending.values()):
            client.close()

    def take(self, ident: bytes) -> Client | None:
        """The program whose request the host has answered; None if it has gone, or never asked."""
        client = self._pending.pop(ident, None)
        if client is None:
            log("not pending: an answer of the host")
        return client

    def refuse(self, ident: bytes) -> None:
        client = self.take(ident)
        if client is not None:
            client.close()

    # --- programs ------------------------------------------------------------------------------------------------

    def _take(self, connection: Socket) -> None:
        if len(self._clients) >= MAX_CLIENTS and not self._make_room():
            connection.close()
        else:
            self._clients[Client(self, connection, self._loop)] = None

    def _make_room(self) -> bool:
        """Close who has been silent for longest; False: everybody has asked and waits for an answer."""
        for client in self._clients:
            if client.request is None:
                client.close()
                return True
        return False

    def complete(self, client: Client) -> None:
        """A request has come in full."""
        if self._is_allowed and self._is_connected:
            self._ask(client)

    def closed(self, client: Client) -> None:
        self._clients.pop(client, None)
        if client.ident and self._pending.pop(client.ident, None) is not None and self._is_connected:
            self._withdraw(client.ident)

    def _forward(self) -> None:
        if self._is_allowed and self._is_connected:
            for client in tuple(self._clients):
                if client.request is not None and not client.ident:
                    self._ask(client)

    def _ask(self, client: Client) -> None:
        assert client.request is not None
        self._count += 1
        client.ident = b"SOCKET%d" % self._count
        self._pending[client.ident] = client
        try:
            self._trigger(client.ident, client.request)
        except LocalProtocolError as error:
            log(f"a program's request: {error}")
            del self._pending[client.ident]
            client.close()
