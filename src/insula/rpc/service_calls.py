"""The session's part in calls between qubes: requests of its qube, and the data channels of what the daemon allowed.

The qube's agent names each request by an *ident* of its own and is answered once for each; the daemon knows requests
by a number. Once a data channel is joined to the socket that the daemon gave, the daemon has no part in it any more.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

from insula.rpc.asked_end import AskedEnd
from insula.rpc.call_table import CallTable
from insula.rpc.channel import Channel
from insula.rpc.control import (
    Ask,
    CallAccepted,
    CallEnded,
    CallRejected,
    Connect,
    Finish,
    FromSession,
    Host,
    Refuse,
    RequestCancelled,
    RequestDropped,
    Serve,
    ServiceRequested,
    printable,
)
from insula.rpc.guest import GuestServices
from insula.rpc.host_end import HostEnd
from insula.rpc.pacing import RateLimit
from insula.rpc.relay import Relay
from insula_proto import limits, qrexec_channel
from insula_proto.qrexec import ExecCmdline, MalformedTrigger

HOST_DOMAIN = 0
MAX_REQUESTS = limits.MAX_CALLS
"""Requests without an answer; each that is allowed needs a port (MC-15)."""
REQUESTS_BURST = 512
REQUESTS_PER_SECOND = 250
"""How often the daemon is asked for one qube. Requests that come faster wait here for their turn, so a qube that calls
as fast as it can is slowed and not refused; a flood costs the daemon, and with it other qubes, no more than this
(MC-15, MC-23)."""
TURN = 0.01
"""Seconds between looks at the requests that wait for their turn."""
REPORTS_BURST = 20
REPORTS_PER_SECOND = 1
"""How often the daemon is told of requests refused here; the refusal itself is always sent."""

BUSY = "busy"
BAD_NAME = "name of the service"
_SERVICE = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,{limits.QREXEC_MAX_SERVICE_NAME - 1}}}(\+[A-Za-z0-9_.+-]*)?")


class _Joined:
    """A call whose data channel this session has; tells the daemon when it is over."""

    def __init__(self, call: int, tell: Callable[[FromSession], None], forget: Callable[[int], None]) -> None:
        self._call = call
        self._tell = tell
        self._forget = forget
        self.relay: Relay | HostEnd | AskedEnd | None = None

    def relay_closed(self) -> None:
        self._forget(self._call)
        assert self.relay is not None
        self._tell(CallEnded(self._call, self.relay.from_qube, self.relay.to_qube))

    def close(self) -> None:
        """The relay's end was told already."""


class ServiceCalls:
    """``tell`` hands a message to the daemon, ``can_tell`` says whether a guest may cause one more."""

    def __init__(
        self,
        guest: GuestServices,
        table: CallTable,
        tell: Callable[[FromSession], None],
        can_tell: Callable[[], bool],
    ) -> None:
        self._guest = guest
        self._table = table
        self._tell = tell
        self._can_tell = can_tell
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._default_user = ""
        self._idents: dict[int, bytes] = {}
        """Requests that wait for an answer."""
        self._waiting: dict[int, ServiceRequested] = {}
        """Those of them that the daemon was not told yet, oldest first."""
        self._turn: asyncio.TimerHandle | None = None
        self._last_request = 0
        self._hosted: dict[int, HostEnd] = {}
        self._requests = RateLimit(REQUESTS_BURST, REQUESTS_PER_SECOND)
        self._reports = RateLimit(REPORTS_BURST, REPORTS_PER_SECOND)

    def configure(self, channel: Channel, default_user: str) -> None:
        self._channel = channel
        self._default_user = default_user

    def agent_lost(self) -> None:
        """Nobody waits for answers any more; the daemon learns it with the loss of the agent."""
        self._idents.clear()
        self._waiting.clear()

    # --- from the qube -------------------------------------------------------------------------------------------

    def requested(self, request: qrexec_channel.ServiceRequested) -> None:
        """The agent asks for a service."""
        # An ident that comes again has been given to another client: the first one is gone.
        self.withdrawn(request.ident)
        if request.is_altered or not _SERVICE.fullmatch(request.service):
            self._drop(request.ident, request.service, BAD_NAME)
        elif len(self._idents) >= MAX_REQUESTS:
            self._table.count_refused()
            self._drop(request.ident, request.service, BUSY)
            self._guest.slow_down()
        else:
            self._last_request += 1
            number = self._last_request
            self._idents[number] = request.ident
            self._waiting[number] = ServiceRequested(number, request.service, request.target, request.claimed_source)
            if self._turn is None:
                self._tell_waiting()
            else:
                self._guest.slow_down()

    def _tell_waiting(self) -> None:
        """Pass on as many as may be; look again soon if some are left."""
        self._turn = None
        while self._waiting:
            if not self._can_tell() or not self._requests.take(self._loop.time()):
                self._turn = self._loop.call_later(TURN, self._tell_waiting)
                return
            self._tell(self._waiting.pop(next(iter(self._waiting))))

    def malformed(self, request: MalformedTrigger) -> None:
        """A trigger that is none."""
        self._report("", request.reason)
        self._guest.refuse_service(request.raw_ident)

    def withdrawn(self, ident: bytes) -> None:
        """Who asked under that ident has gone, so there is nobody to answer (MC-24)."""
        for number, other in self._idents.items():
            if other == ident:
                del self._idents[number]
                if self._waiting.pop(number, None) is None:
                    self._tell(RequestCancelled(number))
                return

    def _drop(self, ident: bytes, service: str, reason: str) -> None:
        self._guest.refuse_service(ident)
        self._report(service, reason)

    def _report(self, service: str, reason: str) -> None:
        if not self._reports.take(self._loop.time()):
            self._guest.slow_down()
        elif self._can_tell():
            self._tell(RequestDropped(printable(service), printable(reason)))

    # --- from the daemon -----------------------------------------------------------------------------------------

    def refuse(self, message: Refuse) -> None:
        ident = self._idents.pop(message.request, None)
        if ident is not None:
            self._guest.refuse_service(ident)

    def connect(self, message: Connect, connection: socket.socket) -> None:
        """Join the qube, as the caller, to the service behind ``connection``."""

        def relay(channel: Channel, port: int) -> Relay:
            return Relay(channel, connection, self._table, port, peer_serves=True)

        self._answer(message, message.domain, connection, relay)

    def host(self, message: Host, connection: socket.socket) -> None:
        """Serve the qube's call in place of the host."""

        def end(channel: Channel, port: int) -> HostEnd:
            self._hosted[message.call] = HostEnd(channel, connection, self._table, port, message, self._tell)
            return self._hosted[message.call]

        self._answer(message, 0, connection, end)

    def finish(self, message: Finish) -> None:
        """A service of the host has ended; the caller may have gone before."""
        hosted = self._hosted.get(message.call)
        if hosted is not None:
            hosted.finish(message)

    def serve(self, message: Serve, connection: socket.socket) -> None:
        """Have the qube serve the call of who is behind ``connection``."""
        port = self._free_port()
        if port is None or self._channel is None:
            self._table.count_refused()
            connection.close()
            self._tell(CallRejected(message.call))
            return
        joined = self._joined(message.call)
        joined.relay = Relay(self._channel, connection, self._table, port)
        self._serve(message, port, message.domain, joined)

    def ask(self, message: Ask, connection: socket.socket) -> None:
        """Have the qube serve a call of the host's, whose end is kept here."""
        port = self._free_port()
        if port is None or self._channel is None:
            self._table.count_refused()
            connection.close()
            self._tell(CallRejected(message.call))
            return
        joined = self._joined(message.call)
        joined.relay = AskedEnd(self._channel, connection, self._table, port, message, self._tell)
        self._serve(message, port, HOST_DOMAIN, joined)

    def _serve(self, message: Serve | Ask, port: int, domain: int, joined: _Joined) -> None:
        """The stream is there; have the agent run what comes through it."""
        assert joined.relay is not None
        self._table.add(port, domain, joined, joined.relay)
        user = message.user or self._default_user
        self._guest.execute(ExecCmdline(domain, port, user.encode() + b":" + message.command))
        self._tell(CallAccepted(message.call))

    def _answer(
        self,
        message: Connect | Host,
        domain: int,
        connection: socket.socket,
        make: Callable[[Channel, int], Relay | HostEnd],
    ) -> None:
        ident = self._idents.pop(message.request, None)
        port = self._free_port()
        if ident is None or port is None or self._channel is None:
            # Taken back while the answer was on its way, or other calls were quicker.
            if ident is not None:
                self._table.count_refused()
                self._guest.refuse_service(ident)
            connection.close()
            self._tell(CallEnded(message.call, 0, 0))
            return
        joined = self._joined(message.call)
        joined.relay = make(self._channel, port)
        self._table.add(port, domain, joined, joined.relay)
        # The stream before the answer: the agent finds it there when it reads the port.
        self._guest.connect_service(domain, port, ident)

    def _joined(self, call: int) -> _Joined:
        return _Joined(call, self._tell, self._forget)

    def _forget(self, call: int) -> None:
        self._hosted.pop(call, None)

    def _free_port(self) -> int | None:
        return self._table.free_port() if self._guest.is_ready and self._guest.has_room() else None
