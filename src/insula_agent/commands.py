"""The qrexec control channel, the qube's end: which command is to run for whom, and which of this qube's programs asked
for a service elsewhere (reference: qrexec, §3 and §5).

The host opens the data stream of a call (port 513…768) and then sends EXEC_CMDLINE, JUST_EXEC or SERVICE_CONNECT with
that port; all travel in the same pipe, so the stream is always there first.
"""

from __future__ import annotations

import os

from insula_agent import process, sockets
from insula_agent.calls import Call, StartFailed
from insula_agent.link import Link, StreamHandler, StreamWriter
from insula_agent.log import log
from insula_agent.loop import Loop
from insula_agent.relay import Relay
from insula_agent.requests import Requests
from insula_proto import limits, qrexec, services
from insula_proto.errors import RemoteProtocolError
from insula_proto.mux import RESET_FAILED
from insula_proto.qrexec import (
    EXIT_NOT_FOUND,
    EXIT_PROBLEM,
    ExecCmdline,
    Hello,
    JustExec,
    ServiceConnect,
    ServiceRefused,
    TriggerService,
)
from insula_proto.qrexec_channel import LAST_DATA_PORT, AgentControl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Configuration:
    """Where services are, where programs ask for those of other qubes, and whether commands change the user."""

    __slots__ = ("agent_socket", "config_path", "may_switch", "service_path")

    def __init__(self, service_path: str, config_path: str, agent_socket: str, *, may_switch: bool) -> None:
        self.service_path = service_path
        self.config_path = config_path
        self.agent_socket = agent_socket
        self.may_switch = may_switch


def plan(command_line: bytes, configuration: Configuration) -> process.Plan:
    """Decide what ``user:command`` executes. :raise StartFailed:"""
    user, colon, command = command_line.partition(b":")
    if not colon:
        raise StartFailed("a command line is user:command", EXIT_PROBLEM)
    try:
        call = services.parse_call(command)
        if call is None:
            account = process.find_account(user, may_switch=configuration.may_switch)
            return process.plan_command(account, command, may_switch=configuration.may_switch)
        path = services.find_service(call, configuration.service_path)
        settings = services.find_settings(call, configuration.config_path)
        if settings.force_user is not None:
            user = settings.force_user.encode("utf-8")
        account = process.find_account(user, may_switch=configuration.may_switch)
        variables = call.environment(os.getpid())
        if "QREXEC_SERVICE_PATH" in os.environ:
            variables["QREXEC_SERVICE_PATH"] = os.environ["QREXEC_SERVICE_PATH"]
        return process.plan_service(account, path, call.argument, variables, may_switch=configuration.may_switch)
    except services.ServiceNotFound as error:
        raise StartFailed(f"no service {error}", EXIT_NOT_FOUND) from error
    except (services.ServiceBroken, process.UserUnknown) as error:
        raise StartFailed(str(error), EXIT_PROBLEM) from error


class _Waiting(StreamHandler):
    """A data stream whose purpose has not been named yet; keeps what comes for it (at most the window)."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.call: Call | Relay | None = None
        self._early: list[bytes] = []
        self._is_closed = False

    def data(self, stream: int, data: bytes) -> None:
        if self.call is None:
            self._early.append(bytes(data))
        else:
            self.call.data(stream, data)

    def data_end(self, stream: int) -> None:
        if self.call is not None:
            self.call.data_end(stream)

    def fin(self, stream: int) -> None:
        if self.call is not None:
            self.call.fin(stream)
        else:
            self._is_closed = True

    def closed(self, stream: int, code: int) -> None:
        self._is_closed = True
        if self.call is not None:
            self.call.closed(stream, code)

    def writable(self, stream: int) -> None:
        if self.call is not None:
            self.call.writable(stream)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def hand_over(self, call: Call | Relay) -> None:
        """From now on the stream is the call's."""
        self.call = call
        if isinstance(call, Call):
            call.connect(self.stream)
        early, self._early = self._early, []
        for data in early:
            call.data(self.stream, data)
        call.data_end(self.stream)
        if self._is_closed:
            call.closed(self.stream, RESET_FAILED)


class Commands(StreamHandler):
    """``on_ready(version)`` is called when the host has answered our HELLO."""

    def __init__(self, loop: Loop, link: Link, configuration: Configuration, on_ready: Callable[[int], None]) -> None:
        self._loop = loop
        self._link = link
        self._configuration = configuration
        self._on_ready = on_ready
        self._channel = AgentControl()
        self._stream = 0
        self._writer: StreamWriter | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._calls: set[Call] = set()
        self.requests = Requests(loop, configuration.agent_socket, self._trigger, self._withdraw)
        self.ended = 0
        """Calls that are over."""

    def start(self) -> None:
        """Open the control channel, over a new stream."""
        self._channel = AgentControl()
        self._waiting.clear()
        self._stream = self._link.open(qrexec.CONTROL_PORT, self)
        self._writer = StreamWriter(self._link, self._stream)
        self._writer.write(self._channel.hello())

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        """A data stream was opened; its command follows. None refuses it."""
        if not limits.FIRST_DATA_PORT <= port <= LAST_DATA_PORT or port in self._waiting or self._writer is None:
            return None
        waiting = self._waiting[port] = _Waiting(stream)
        return waiting

    @property
    def is_busy(self) -> bool:
        """Whether a command runs."""
        return bool(self._calls)

    def rehearse(self) -> None:
        """Decide for nobody what a command would execute: libraries and files that takes are here then."""
        for command_line in (b"root:true", b"root:QUBESRPC qubes.VMExec+true dom0"):
            try:
                plan(command_line, self._configuration)
            except StartFailed as error:
                log(f"rehearsal: {error}")

    def kill_all(self) -> None:
        """End every command; for the agent's own end."""
        for call in self._calls:
            call.kill()

    # --- control channel -----------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        try:
            messages = self._channel.receive(data)
        except RemoteProtocolError as error:
            # The host is trusted; what it says is wrong only if one of us is broken. Start over.
            log(f"control channel: {error}")
            self._link.reset(stream, RESET_FAILED)
            self.closed(stream, RESET_FAILED)
            self.start()
            return
        self._link.consumed(stream, len(data))
        for message in messages:
            if isinstance(message, Hello):
                assert self._channel.version is not None
                self.requests.connected()
                self._on_ready(self._channel.version)
            elif isinstance(message, (ExecCmdline, JustExec)):
                self._execute(message)
            elif isinstance(message, ServiceConnect):
                self._join(message)
            elif isinstance(message, ServiceRefused):
                self.requests.refuse(message.ident)

    def fin(self, stream: int) -> None:
        self._link.reset(stream, RESET_FAILED)
        self.closed(stream, RESET_FAILED)
        self.start()

    def closed(self, stream: int, code: int) -> None:
        del stream, code
        self._writer = None
        self.requests.lost()

    def writable(self, stream: int) -> None:
        del stream
        if self._writer is not None:
            self._writer.flush()

    # --- services of other qubes ---------------------------------------------------------------------------------

    def _trigger(self, ident: bytes, request: TriggerService) -> None:
        """Ask the host. :raise LocalProtocolError: the version spoken cannot say that."""
        assert self._writer is not None
        message = self._channel.trigger_service(request.target, ident, request.service, request.source or b"")
        self._writer.write(message)

    def _withdraw(self, ident: bytes) -> None:
        """The program that asked has gone: nobody is to be asked for it any more (MC-24)."""
        if self._writer is not None:
            self._writer.write(self._channel.withdraw_service(ident))

    def _join(self, message: ServiceConnect) -> None:
        """A program's request was granted: give it the data stream."""
        waiting = self._waiting.pop(message.port, None)
        client = self.requests.take(message.ident or b"")
        epoch = self._link.epoch

        def end() -> None:
            self._terminated(message.domain, message.port, epoch)

        if waiting is None or waiting.is_closed or client is None:
            if waiting is None:
                log(f"no data stream for port {message.port}")
            else:
                self._link.reset(waiting.stream, RESET_FAILED)
            if client is not None:
                client.close()
            end()
            return
        ours, theirs = sockets.pair()
        # A program that has gone meanwhile leaves a channel whose other end is closed: the relay ends the call.
        client.answer(message.domain, message.port, theirs.fileno())
        theirs.close()
        client.close()
        waiting.hand_over(Relay(self._loop, self._link, waiting.stream, ours, end))

    def _execute(self, message: ExecCmdline | JustExec) -> None:
        waiting = self._waiting.pop(message.port, None)
        if waiting is None or message.command is None:
            log(f"no data stream for port {message.port}")
            self._terminated(message.domain, message.port, self._link.epoch)
            return
        command_line = message.command
        epoch = self._link.epoch

        def make_plan() -> process.Plan:
            return plan(command_line, self._configuration)

        def end() -> None:
            self._calls.discard(call)
            self.ended += 1
            self._terminated(message.domain, message.port, epoch)

        call = Call(self._loop, self._link, make_plan, end, is_detached=isinstance(message, JustExec))
        self._calls.add(call)
        waiting.hand_over(call)

    def _terminated(self, domain: int, port: int, epoch: int) -> None:
        """Tell the host that the port is free, unless that was another connection's port."""
        if self._writer is not None and epoch == self._link.epoch:
            self._writer.write(self._channel.connection_terminated(domain, port))
