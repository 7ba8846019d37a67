"""What a qube's daemon does, without I/O: events in, commands out (reference: qrexec, §2 and §3).

On one side the agent's control channel, written by the qube; on the other local clients, each asking for one thing. The
switchboard allots data ports, passes requests on to the agent, and has an *errand* run for every service the qube asks
for: a process that asks policy and answers, or fails, as a local client would.

::

    agent_connected   agent_received   agent_lost         SendToAgent   OpenSockets   RemoveSockets
    client_connected  client_received  client_closed  →   SendToClient  CloseClient
    errand_ended                                          StartErrand   Report

Nothing blocks and nothing fails but :meth:`Switchboard.agent_received`: an agent that breaks the protocol ends its
daemon. A client that does is closed, and the agent hears nothing of it.
"""

from __future__ import annotations

from insula.qrexec.places import ADMIN_DOMAIN
from insula_proto import limits, qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    Hello,
    JustExec,
    MalformedTrigger,
    Message,
    ServiceConnect,
)
from insula_proto.qrexec_channel import LAST_DATA_PORT, DaemonControl, LocalServer, ServiceRequested
from insula_proto.value import Value

MAX_ERRANDS = limits.MAX_CALLS
"""Services one qube may be asking for at once; a further request is refused at once (MC-15)."""
_DEFAULT_USER_PREFIX = b"DEFAULT:"


# --- commands ------------------------------------------------------------------------------------------------------


class Command(Value):
    """Base of what the switchboard wants done."""

    __slots__ = ()


class SendToAgent(Command):
    __slots__ = ("data",)
    data: bytes

    def __init__(self, data: bytes) -> None:
        self._fill(data=data)


class SendToClient(Command):
    __slots__ = ("client", "data")
    client: int
    data: bytes

    def __init__(self, client: int, data: bytes) -> None:
        self._fill(client=client, data=data)


class CloseClient(Command):
    """After what was sent to it. No event comes back."""

    __slots__ = ("client",)
    client: int

    def __init__(self, client: int) -> None:
        self._fill(client=client)


class OpenSockets(Command):
    """Clients may connect from now on."""

    __slots__ = ()


class RemoveSockets(Command):
    __slots__ = ()


class StartErrand(Command):
    """Have a process ask policy for ``request`` and act on the answer. ``has_source``: the version carries one."""

    __slots__ = ("errand", "has_source", "request")
    errand: int
    request: ServiceRequested
    has_source: bool

    def __init__(self, errand: int, request: ServiceRequested, *, has_source: bool) -> None:
        self._fill(errand=errand, request=request, has_source=has_source)


class Report(Command):
    """A line for the log."""

    __slots__ = ("text",)
    text: str

    def __init__(self, text: str) -> None:
        self._fill(text=text)


# --- ports ---------------------------------------------------------------------------------------------------------


class Ports:
    """Data ports 513…768 of one qube.

    A channel between two qubes has a daemon on both sides, and either may allot its port. So that they never choose the
    same, the one of the lower domain takes even ports, the other odd ones.
    """

    def __init__(self, own_domain: int) -> None:
        self._own = own_domain
        self._taken: dict[int, int] = {}
        """Port → the domain at its other end."""
        self._waiting: dict[int, int] = {}
        """Port → the client that is told of its end."""

    def take(self, domain: int, client: int) -> int | None:
        """The lowest free one; None if all are taken."""
        first, step = limits.FIRST_DATA_PORT, 1
        if domain != ADMIN_DOMAIN:
            step = 2
            if domain > self._own:
                first += 1
        for port in range(first, LAST_DATA_PORT + 1, step):
            if port not in self._taken:
                self._taken[port] = domain
                self._waiting[port] = client
                return port
        return None

    def release(self, port: int, domain: int) -> int | None:
        """Free a port if it leads to that domain; return the client that waits for this, if one does."""
        if self._taken.get(port) != domain:
            return None
        del self._taken[port]
        return self._waiting.pop(port, None)

    def forget_client(self, client: int) -> None:
        """It does not wait any more; its port is in use until the agent says otherwise."""
        for port, waiting in list(self._waiting.items()):
            if waiting == client:
                del self._waiting[port]


# --- the switchboard -----------------------------------------------------------------------------------------------


class _Client:
    __slots__ = ("channel", "is_served")

    def __init__(self) -> None:
        self.channel = LocalServer()
        self.is_served = False


class _Errand:
    __slots__ = ("ident", "is_answered")

    def __init__(self, ident: bytes) -> None:
        self.ident = ident
        self.is_answered = False
        """By SERVICE_CONNECT: whatever becomes of the errand, it is not refused then."""


class Switchboard:
    def __init__(self, domain: int, default_user: bytes = b"user") -> None:
        self._domain = domain
        self._default_user = default_user
        self._ports = Ports(domain)
        self._clients: dict[int, _Client] = {}
        self._errands: dict[int, _Errand] = {}
        self._next_errand = 1
        self._agent: DaemonControl | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the agent has said HELLO."""
        return self._agent is not None and self._agent.version is not None

    # the agent

    def agent_connected(self) -> list[Command]:
        self._agent = DaemonControl(oldest=qrexec.OLDEST_VERSION)
        return []

    def agent_received(self, untrusted_data: bytes) -> list[Command]:
        """:raise RemoteProtocolError: it broke the protocol; nothing that comes from it can be believed."""
        assert self._agent is not None
        commands: list[Command] = []
        for message in self._agent.receive(untrusted_data):
            if isinstance(message, Hello):
                commands += [SendToAgent(self._agent.answer()), OpenSockets()]
            elif isinstance(message, ConnectionTerminated):
                commands += self._terminated(message)
            elif isinstance(message, MalformedTrigger):
                commands.append(Report(f"malformed request refused: {message.reason}"))
                commands.append(SendToAgent(self._agent.refuse_service(message.raw_ident)))
            else:
                assert isinstance(message, ServiceRequested)
                commands += self._requested(message)
        return commands

    def agent_lost(self) -> list[Command]:
        """Calls may go on without it: their ports stay taken, since nobody will tell when they end."""
        self._agent = None
        self._errands.clear()
        clients, self._clients = list(self._clients), {}
        for client in clients:
            self._ports.forget_client(client)
        return [RemoveSockets(), *map(CloseClient, clients)]

    def _terminated(self, message: ConnectionTerminated) -> list[Command]:
        client = self._ports.release(message.port, message.domain)
        if client is None or client not in self._clients:
            return []
        del self._clients[client]
        return [CloseClient(client)]

    def _requested(self, request: ServiceRequested) -> list[Command]:
        assert self._agent is not None
        assert self._agent.version is not None
        if len(self._errands) >= MAX_ERRANDS:
            return [Report("too many requests at once"), SendToAgent(self._agent.refuse_service(request.ident))]
        errand = self._next_errand
        self._next_errand += 1
        self._errands[errand] = _Errand(request.ident)
        return [StartErrand(errand, request, has_source=self._agent.version >= qrexec.VERSION)]

    # errands

    def errand_ended(self, errand: int, code: int) -> list[Command]:
        """What it said as a client was received before this."""
        ended = self._errands.pop(errand, None)
        if ended is None or self._agent is None:
            # Forgotten: the agent that asked is not there any more.
            return []
        if ended.is_answered:
            return [] if code == 0 else [Report(f"a call that was allowed ended with {code}")]
        return [SendToAgent(self._agent.refuse_service(ended.ident))]

    # clients

    def client_connected(self, client: int) -> list[Command]:
        self._clients[client] = _Client()
        return [SendToClient(client, self._clients[client].channel.hello())]

    def client_received(self, client: int, data: bytes) -> list[Command]:
        state = self._clients.get(client)
        if state is None:
            return []
        if state.is_served:
            return self._drop(client, "data after its request")
        commands: list[Command] = []
        try:
            for message in state.channel.receive(data):
                if not isinstance(message, Hello):
                    state.is_served = True
                    commands += self._serve(client, state.channel, message)
        except (RemoteProtocolError, LocalProtocolError) as error:
            return self._drop(client, str(error))
        return commands

    def client_closed(self, client: int) -> list[Command]:
        self._clients.pop(client, None)
        self._ports.forget_client(client)
        return []

    def _drop(self, client: int, reason: str) -> list[Command]:
        self.client_closed(client)
        return [Report(f"client dropped: {reason}"), CloseClient(client)]

    def _serve(self, client: int, channel: LocalServer, message: Message) -> list[Command]:
        """:raise LocalProtocolError: with the default user it does not fit a message."""
        agent = self._agent
        if agent is None or agent.version is None:
            return self._drop(client, "there is no agent")
        errand = None
        if isinstance(message, ServiceConnect):
            errand = self._unanswered(message.ident)
            if errand is None:
                return self._drop(client, "a connection that nobody asked for, or that was made already")
        else:
            assert isinstance(message, (ExecCmdline, JustExec))
            message = self._with_user(message)
            agent.execute(message)  # whether it fits, before a port is taken for it
        if message.port:
            if not limits.FIRST_DATA_PORT <= message.port <= LAST_DATA_PORT:
                return self._drop(client, f"port {message.port} is no data port")
            port, answers = message.port, []
        else:
            free = self._ports.take(message.domain, client)
            if free is None:
                return self._drop(client, "all data ports are in use")
            port, answers = free, [SendToClient(client, channel.answer(self._domain, free))]
        if errand is not None:
            errand.is_answered = True
        if isinstance(message, ServiceConnect):
            forwarded = agent.forward_connect(ServiceConnect(message.domain, port, message.ident, message.ident_size))
        else:
            forwarded = agent.execute(type(message)(message.domain, port, message.command))
        return [*answers, SendToAgent(forwarded)]

    def _unanswered(self, ident: bytes | None) -> _Errand | None:
        for errand in self._errands.values():
            if errand.ident == ident and not errand.is_answered:
                return errand
        return None

    def _with_user(self, message: ExecCmdline | JustExec) -> ExecCmdline | JustExec:
        command = message.command
        if command is None or not command.startswith(_DEFAULT_USER_PREFIX):
            return message
        command = self._default_user + command[len(_DEFAULT_USER_PREFIX) - 1 :]
        return type(message)(message.domain, message.port, command)
