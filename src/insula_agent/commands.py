"""The qrexec control channel, the qube's end: which command is to run for whom, and which of this qube's programs asked
for a service elsewhere (reference: qrexec, §3 and §5).

The host opens the data stream of a call (port 513…768) and then sends EXEC_CMDLINE, JUST_EXEC or SERVICE_CONNECT with
that port; all travel in the same pipe, so the stream is always there first.
"""

from __future__ import annotations

import time

from insula_agent import fork_server, plans
from insula_agent.calls import Call
from insula_agent.log import log
from insula_agent.loop import Loop
from insula_agent.plans import Configuration, Order, StartFailed
from insula_agent.relay import Ends, Relay
from insula_agent.requests import Requests
from insula_agent.session_wait import SessionWait, is_session_up
from insula_agent.single_socket import SingleSocketRequests
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams, StreamWriter
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import (
    OLDEST_VERSION,
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

    from insula_agent.plans import Plan


class _Waiting(StreamHandler):
    """A data stream whose purpose has not been named yet; keeps what comes for it (at most the window)."""

    def __init__(self, stream: int = 0) -> None:
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

    def __init__(
        self, loop: Loop, link: Streams, configuration: Configuration, on_ready: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._link = link
        self._configuration = configuration
        self._on_ready = on_ready
        self._channel = AgentControl(oldest=OLDEST_VERSION)
        self._stream = 0
        self._writer: StreamWriter | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._calls: set[Call] = set()
        self._session_wait = SessionWait(loop)
        self._single_sockets = SingleSocketRequests(loop, self._calls)
        self.requests = Requests(loop, configuration.agent_socket, self._trigger, self._withdraw)
        self.ended_at = 0.0
        """When the last call was over, on the monotonic clock; 0: there was none."""
        self.is_system_wanted = False
        """Whether a command was asked for that waits for the rest of the system to be up."""

    def start(self) -> None:
        """Open the control channel, over a new stream."""
        self._channel = AgentControl(oldest=OLDEST_VERSION)
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
                plans.plan(plans.read(command_line, self._configuration), self._configuration)
            except StartFailed as error:
                log(f"rehearsal: {error}")
        self._single_sockets.start()

    def kill_all(self) -> None:
        """End every command; for the agent's own end."""
        self._session_wait.cancel()
        for call in tuple(self._calls):
            call.kill()

    # --- control channel -----------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        try:
            messages = self._channel.receive(data)
        except RemoteProtocolError as error:
            # The host is trusted; what it says is wrong only if one of us is broken. Start over.
            log(f"control channel: {error}")
            self._start_over(stream)
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
        self._start_over(stream)

    def _start_over(self, stream: int) -> None:
        self.closed(stream, RESET_FAILED)
        self._link.reset(stream, RESET_FAILED)
        if not self._link.host_connects:
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
        if self._writer is not None and self._link.relays_programs:
            self._writer.write(self._channel.withdraw_service(ident))

    def _join(self, message: ServiceConnect) -> None:
        """A program's request was granted: give it the data stream, or tell it where to be the server of its own."""
        client = self.requests.take(message.ident or b"")
        epoch = self._link.epoch

        def end() -> None:
            if client is not None:
                client.close()
            self._terminated(message.domain, message.port, epoch)

        if not self._link.relays_programs:
            if client is None:
                end()
            else:
                client.answer_and_stay(message.domain, message.port, end)
            return
        waiting = self._waiting.pop(message.port, None)
        ends = None
        if waiting is None:
            log(f"no data stream for port {message.port}")
        elif client is not None and not waiting.is_closed:
            ends = self._make_ends(has_pipes=client.takes_pipes)
        if waiting is not None and client is not None and ends is not None:
            # A program that has gone meanwhile leaves a channel whose other end is closed: the relay ends the call.
            client.answer(message.domain, message.port, ends.theirs)
            ends.passed()
            relay = Relay(self._loop, self._link, waiting.stream, ends, end)
            if client.takes_pipes:
                client.stay_for_input(relay.take_input)
            else:
                client.close()
            waiting.hand_over(relay)
            return
        if waiting is not None:
            self._link.reset(waiting.stream, RESET_FAILED)
        if client is not None:
            client.close()
        end()

    def _make_ends(self, *, has_pipes: bool) -> Ends | None:
        """None: there are no more descriptors, and the call fails."""
        try:
            return Ends(has_pipes=has_pipes)
        except OSError as error:
            log(f"a program's data channel: {error}")
            return None

    # --- commands and services of this qube ----------------------------------------------------------------------

    def _execute(self, message: ExecCmdline | JustExec) -> None:
        waiting = self._take_stream(message)
        command_line = message.command
        if waiting is None or command_line is None:
            log(f"no data stream for port {message.port}")
            self._terminated(message.domain, message.port, self._link.epoch)
            return
        epoch = self._link.epoch
        order: Order | None = None
        failure: StartFailed | None = None
        try:
            order = plans.read(command_line, self._configuration)
        except StartFailed as error:
            failure = error

        def make_plan() -> Plan:
            if order is None:
                assert failure is not None
                raise failure
            return plans.plan(order, self._configuration)

        def end() -> None:
            self._calls.discard(call)
            self.ended_at = time.monotonic()
            self._terminated(message.domain, message.port, epoch)

        def begin() -> None:
            self._single_sockets.start()
            if waiting.is_closed:
                # Who called has gone while the call waited.
                end()
            else:
                self._begin(message, waiting, order, call, end)

        call = Call(
            self._loop, self._link, make_plan, end, self._single_sockets.look, is_detached=isinstance(message, JustExec)
        )
        self._calls.add(call)
        if order is not None and order.waits_for_system:
            self.is_system_wanted = True
        if order is not None and order.waits_for_session:
            self._wait_for_session(order, begin)
        else:
            begin()

    def _take_stream(self, message: ExecCmdline | JustExec) -> _Waiting | None:
        """The data stream that belongs to a command: the host has opened it, or it is ours to be opened."""
        if not self._link.host_connects:
            return self._waiting.pop(message.port, None)
        return _Waiting()

    def _wait_for_session(self, order: Order, begin: Callable[[], None]) -> None:
        if not self._session_wait.is_running:
            if is_session_up():
                begin()
                return
            wait = plans.plan_session_wait(order, self._configuration)
            if wait is None:
                log(f"{plans.SESSION_SERVICE} is not there: nothing to wait for")
                begin()
                return
            self._session_wait.start(wait, order.user)
        self._session_wait.add(begin)

    def _begin(
        self,
        message: ExecCmdline | JustExec,
        waiting: _Waiting,
        order: Order | None,
        call: Call,
        end: Callable[[], None],
    ) -> None:
        if self._link.host_connects:
            path = self._configuration.fork_server
            if order is not None and order.belongs_in_session and path:
                handed = fork_server.hand_over(self._loop, path, order.user, message, order.whole, end)
                if handed is not None:
                    return
            waiting.stream = self._link.connect(message.domain, message.port, waiting)
        waiting.hand_over(call)

    def _terminated(self, domain: int, port: int, epoch: int) -> None:
        """Tell the host that the port is free, unless that was another connection's port."""
        if self._writer is not None and epoch == self._link.epoch and self._channel.version is not None:
            self._writer.write(self._channel.connection_terminated(domain, port))
