"""The broker: decides about the calls of qubes and joins those it allows. The order of a call is :meth:`Broker._call`.

It sees names and decisions. A call's bytes go from one session process to the other through a socket pair made here;
once both have their end the broker only waits to hear that it is over. Each request is a task of its own, which ends
when the caller takes it back or loses its agent; whatever happens in it, the request is answered, and answered once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, contextmanager, suppress
from typing import NamedTuple, Protocol

from insula.model.errors import InsulaError
from insula.model.names import ADMIN_NAME
from insula.model.state import PowerState
from insula.policy.agent import Resolution
from insula.policy.current import CurrentPolicy
from insula.policy.decisions import Allow, Ask, Deny, Reason, Request
from insula.policy.engine import answer, evaluate
from insula.policy.snapshot import Snapshot
from insula.rpc import call_log
from insula.rpc.ask import NobodyToAsk, Prompts
from insula.rpc.call_end import CallEnd
from insula.rpc.call_log import CallLog, CallRecord
from insula.rpc.control import RequestDropped, ServiceRequested
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices, nothing
from insula.rpc.launcher import RunningSession
from insula.rpc.quota import Place, Quota, QuotaExceeded
from insula.rpc.route import NoRoute, Route, ToDisposable, ToHost, ToQube, route

SESSION_PATIENCE_S = 10.0
"""How long a target that runs may be without a session or an agent: one that ended is replaced within a second."""
BUFFER_BYTES = 262144
"""Of the socket between two sessions, each way: what one may be ahead of the other."""
STREAM_PATIENCE_S = 60.0
"""How long a caller that has begun a stream for the host may say nothing (MC-13)."""
STREAM_READ_SIZE = 65536
EXIT_NOT_FOUND = 127
EXIT_DEFECT = 125

log = logging.getLogger("insula.rpc")


class QubeNow(NamedTuple):
    """One qube at this moment."""

    uuid: str
    """``uuid:…``"""
    state: str
    """Its power state, as published."""


class Qubes(Protocol):
    """What the broker needs of the system."""

    def snapshot(self) -> Snapshot:
        """The qubes as they are now, for policy."""

    def find(self, name: str) -> QubeNow | None:
        """The qube of that name, if there is one."""

    async def start(self, name: str) -> None:
        """Start a qube, or wait for the start that is under way. :raise InsulaError:"""

    def disposable(self, base: str, opener: str) -> AbstractAsyncContextManager[str]:
        """A started disposable, gone at the end of the block. :raise InsulaError: entering"""


class Refused(Exception):
    """The call is not made. ``str()`` says why, for the log."""

    def __init__(self, reason: str, *, decision: str = call_log.REFUSED, notice: Resolution | None = None) -> None:
        """``notice``: as what the user is told of it; None: not at all."""
        super().__init__(reason)
        self.decision = decision
        self.notice = notice


class Broker:
    """Implements :class:`insula.rpc.launcher.Requests`."""

    def __init__(
        self, policy: CurrentPolicy, qubes: Qubes, services: HostServices, prompts: Prompts, records: CallLog
    ) -> None:
        self._policy = policy
        self._qubes = qubes
        self._services = services
        self._prompts = prompts
        self._sessions: dict[str, RunningSession] = {}
        prompts.sessions = self._sessions.get
        self._log = records
        self._quota = Quota()
        self._numbers = itertools.count(1)
        self._opened: list[asyncio.Future[None]] = []
        """Who waits for a session to be opened."""
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting: dict[tuple[RunningSession, int], asyncio.Task[None]] = {}
        """Requests that are not answered yet."""
        self._is_closed = False

    async def close(self) -> None:
        """Let go of every call. Sessions end with the daemon, and data channels with them."""
        self._is_closed = True
        for task in tuple(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._prompts.close()

    # --- from the sessions ---------------------------------------------------------------------------------------

    def session_opened(self, session: RunningSession) -> None:
        self._sessions[session.name] = session
        waiting, self._opened = self._opened, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def session_closed(self, session: RunningSession) -> None:
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
        self.agent_lost(session)
        self._prompts.forget(session.name)
        self._log.forget(session.name)

    def agent_lost(self, session: RunningSession) -> None:
        for (asking, _), task in tuple(self._waiting.items()):
            if asking is session:
                task.cancel()

    def requested(self, session: RunningSession, message: ServiceRequested) -> None:
        if self._is_closed:
            session.refuse(message.request)
            return
        task = asyncio.create_task(self._answer(session, message), name=f"request {message.request} of {session.name}")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        self._waiting[session, message.request] = task

    def cancelled(self, session: RunningSession, request: int) -> None:
        task = self._waiting.get((session, request))
        if task is not None:
            task.cancel()

    def dropped(self, session: RunningSession, message: RequestDropped) -> None:
        service, plus, argument = message.service.partition("+")
        record = CallRecord(next(self._numbers), session.name, service, plus + argument, "")
        record.decision, record.reason = call_log.REFUSED, message.reason
        self._log.ended(record)

    # --- one call ------------------------------------------------------------------------------------------------

    async def _answer(self, session: RunningSession, message: ServiceRequested) -> None:
        """Have a call judged and carried out; see to it that its request is answered and its record written."""
        service, _, argument = message.service.partition("+")
        request = Request(service, f"+{argument}", session.name, message.target, message.source)
        record = CallRecord(
            next(self._numbers), session.name, service, request.argument, message.target, message.source
        )
        call = _Call(session, message.request, request, record, self._answered)
        try:
            await self._call(call)
        except Refused as refusal:
            record.decision, record.reason = refusal.decision, str(refusal)
            if refusal.notice is not None:
                self._notify(refusal.notice, request, record.target)
        except asyncio.CancelledError:
            record.decision = record.decision or call_log.WITHDRAWN
            raise
        except Exception:  # the boundary: the caller is refused and others go on (MC-22)
            log.exception("call %d of %s failed unexpectedly", record.number, session.name)
            record.decision, record.reason = call_log.REFUSED, "internal error"
        finally:
            call.refuse_if_unanswered()
            record.ended_after_s = call.age()
            self._log.ended(record)

    async def _call(self, call: _Call) -> None:
        """A call, from its request to its end. :raise Refused:"""
        with _limits(), self._quota.making(call.request.source) as place:
            call.record.depth = place.depth
            allow = await self._decide(call)
            way = _route(allow)
            match way:
                case ToHost():
                    await self._to_host(call, way)
                case ToQube():
                    await self._to_qube(call, way, place)
                case ToDisposable():
                    await self._to_disposable(call, way, place)

    def _answered(self, call: _Call) -> None:
        self._waiting.pop((call.session, call.number), None)
        self._log.decided(call.record)

    # --- the decision --------------------------------------------------------------------------------------------

    async def _decide(self, call: _Call) -> Allow:
        """By one version of the policy, and by the user if that asks. :raise Refused:"""
        policy = await self._policy.get()
        decision = evaluate(call.request, policy, self._qubes.snapshot())
        call.record.rule = "" if decision.where is None else str(decision.where)
        if isinstance(decision, Ask):
            call.record.asked = True
            decision = await self._ask(decision)
            # What the user saw was made of that policy (MC-20, MC-30).
            if await self._policy.get() is not policy and isinstance(decision, Allow):
                decision = Deny(Reason.POLICY_CHANGED, notify=True, rule=decision.rule)
        if isinstance(decision, Deny):
            raise Refused(
                decision.reason.value, decision=call_log.DENIED, notice=Resolution.DENY if decision.notify else None
            )
        if decision.notify:
            self._notify(Resolution.ALLOW, call.request, decision.target)
        return decision

    def _notify(self, resolution: Resolution, request: Request, target: str) -> None:
        """The user is told where the caller's windows are; here, if they are nowhere."""
        facts = self._qubes.snapshot().find(request.requested_source or request.source)
        self._prompts.notify(resolution, request, target, (facts and facts.guivm) or ADMIN_NAME)

    async def _ask(self, question: Ask) -> Allow | Deny:
        try:
            choice = await self._prompts.ask(question)
        except NobodyToAsk as error:
            notice = Resolution.DENY if error.notify else None
            raise Refused(str(error), decision=call_log.DENIED, notice=notice) from error
        if choice is None:
            return Deny(Reason.USER, notify=False, rule=question.rule)
        return answer(question, choice, self._qubes.snapshot())

    # --- the ways ------------------------------------------------------------------------------------------------

    async def _to_disposable(self, call: _Call, way: ToDisposable, place: Place) -> None:
        self._confirm(way.base, way.uuid)
        with self._quota.disposable(place), _failures():
            async with self._qubes.disposable(way.base, call.request.source) as name:
                found = self._qubes.find(name)
                if found is None:
                    raise Refused(f"{name} ended before it could serve", notice=Resolution.FAIL)
                await self._to_qube(call, ToQube(name, found.uuid, way.user, way.command), place)

    async def _to_qube(self, call: _Call, way: ToQube, place: Place) -> None:
        """Have the target's session serve, then the caller's connect; wait until one of them has finished."""
        target = await self._session_of(way)
        call.record.server = way.qube
        with self._quota.serving(way.qube, call.request.source, place), ExitStack() as undo:
            caller_end, service_end = _socket_pair()
            undo.callback(caller_end.close)
            serving = target.serve(call.record.number, call.session.qid, way.user, way.command, service_end)
            if not await _in_time(serving.accepted):
                raise Refused(f"{way.qube} serves all it can, or has no agent", notice=Resolution.FAIL)
            undo.pop_all()
            calling = call.connect(target.qid, caller_end)
            await asyncio.wait((calling.ended, serving.ended), return_when=asyncio.FIRST_COMPLETED)
        ended = await calling.ended
        call.record.from_caller, call.record.to_caller = ended.from_qube, ended.to_qube

    async def _session_of(self, way: ToQube) -> RunningSession:
        """The session of the qube decided on, with its agent there; the qube is started for it. :raise Refused:"""
        state = self._confirm(way.qube, way.uuid)
        if state == PowerState.PAUSED:
            raise Refused(f"{way.qube} is paused", notice=Resolution.FAIL)
        if state != PowerState.RUNNING:
            with _failures():
                await self._qubes.start(way.qube)
        try:
            async with asyncio.timeout(SESSION_PATIENCE_S):
                session = await self._ready_session(way.qube)
        except TimeoutError:
            raise Refused(f"{way.qube} has no agent", notice=Resolution.FAIL) from None
        self._confirm(way.qube, way.uuid)
        return session

    async def _ready_session(self, name: str) -> RunningSession:
        while True:
            session = self._sessions.get(name)
            if session is None:
                opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._opened.append(opened)
                await opened
                continue
            if not session.is_ready:
                with suppress(ConnectionError):
                    await session.wait_ready()
            # It may have been replaced meanwhile.
            if session.is_ready and self._sessions.get(name) is session:
                return session
            await asyncio.sleep(0)

    def _confirm(self, name: str, uuid: str) -> str:
        """Power state of the qube, if it is still the one decided on (MC-20). :raise Refused:"""
        found = self._qubes.find(name)
        if found is None or found.uuid != uuid:
            raise Refused(Reason.CHANGED.value)
        return found.state

    # --- the host as target --------------------------------------------------------------------------------------

    async def _to_host(self, call: _Call, way: ToHost) -> None:
        """The caller's session is the service's end; here is what it says."""
        service = self._services.get(way.service)
        is_stream = service is not None and service.is_stream
        limit = 0 if service is None or is_stream else service.max_payload
        ours, theirs = _socket_pair()
        call.record.server = "dom0"
        with ours:
            end = call.host(limit, theirs, is_stream=is_stream)
            untrusted_payload = await end.payload if limit else b""
            if untrusted_payload is not None:
                caller = call.request.source
                host_call = HostCall(
                    caller,
                    way.service,
                    way.argument,
                    way.destination,
                    untrusted_payload,
                    call.session.written,
                    _stream(ours) if is_stream else nothing(),
                    ours if is_stream else None,
                )
                answering = asyncio.create_task(
                    _served(service, host_call, ours), name=f"service {way.service} for {caller}"
                )
                await _until_ended(answering, end)
                if answering.done() and not answering.cancelled():
                    reply = answering.result()
                    call.session.finish(call.record.number, reply.code, reply.stderr)
        ended = await end.ended
        call.record.from_caller, call.record.to_caller = ended.from_qube, ended.to_qube


class _Call:
    """One request, and its answer."""

    def __init__(
        self,
        session: RunningSession,
        number: int,
        request: Request,
        record: CallRecord,
        on_answer: Callable[[_Call], None],
    ) -> None:
        self.session = session
        self.number = number
        """The session's, of the request."""
        self.request = request
        self.record = record
        self._on_answer = on_answer
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._is_answered = False

    def age(self) -> float:
        """Seconds since the request came."""
        return self._loop.time() - self._began

    def connect(self, domain: int, service: socket.socket) -> CallEnd:
        self._answered(call_log.ALLOWED)
        return self.session.connect(self.number, self.record.number, domain, service)

    def host(self, limit: int, output: socket.socket, *, is_stream: bool) -> CallEnd:
        self._answered(call_log.ALLOWED)
        return self.session.host(self.number, self.record.number, limit, output, is_stream=is_stream)

    def refuse_if_unanswered(self) -> None:
        if not self._is_answered:
            self._answered(self.record.decision)
            self.session.refuse(self.number)

    def _answered(self, decision: str) -> None:
        self._is_answered = True
        self.record.decision = decision
        self.record.answered_after_s = self.age()
        self._on_answer(self)


@contextmanager
def _limits() -> Iterator[None]:
    try:
        yield
    except QuotaExceeded as error:
        raise Refused(str(error)) from error


@contextmanager
def _failures() -> Iterator[None]:
    """What was allowed and does not come about."""
    try:
        yield
    except InsulaError as error:
        raise Refused(str(error), notice=Resolution.FAIL) from error


def _route(allow: Allow) -> Route:
    try:
        return route(allow)
    except NoRoute as error:
        raise Refused(str(error), decision=call_log.DENIED, notice=Resolution.DENY) from error


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        end.setblocking(False)
    return pair


async def _in_time(accepted: asyncio.Future[bool]) -> bool:
    """What the target's session says; no, if it says nothing."""
    try:
        async with asyncio.timeout(SESSION_PATIENCE_S):
            return await asyncio.shield(accepted)
    except TimeoutError:
        return False


async def _stream(connection: socket.socket) -> AsyncIterator[bytes]:
    """What a caller says, passed on by its session as it comes. :raise TimeoutError: it says nothing for too long."""
    loop = asyncio.get_running_loop()
    while True:
        async with asyncio.timeout(STREAM_PATIENCE_S):
            untrusted_data = await loop.sock_recv(connection, STREAM_READ_SIZE)
        if not untrusted_data:
            return
        yield untrusted_data


async def _until_ended(answering: asyncio.Task[HostReply], end: CallEnd) -> None:
    """Wait for a service's answer, at most until its caller has gone."""
    try:
        await asyncio.wait((answering, end.ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not answering.done():
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


async def _served(service: HostService | None, call: HostCall, output: socket.socket) -> HostReply:
    """Run a service's handler and send what it says. Never raises, but for cancellation (MC-22)."""
    if service is None:
        return HostReply(code=EXIT_NOT_FOUND, last_words=f"There is no service {call.service[:64]}\n")
    loop = asyncio.get_running_loop()
    try:
        reply = await service.answer(call)
        if isinstance(reply.output, bytes):
            await loop.sock_sendall(output, reply.output)
        else:
            async with aclosing(reply.output) as pieces:
                async for piece in pieces:
                    await loop.sock_sendall(output, piece)
        output.shutdown(socket.SHUT_WR)
    except OSError:
        return HostReply(code=EXIT_DEFECT)  # the caller has gone; nobody reads this
    except Exception:  # the boundary
        log.exception("service %s for %s failed unexpectedly", call.service, call.caller)
        return HostReply(code=EXIT_DEFECT, last_words="internal error\n")
    return reply
