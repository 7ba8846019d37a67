"""One service that a qube asks for, in a process of its own (reference: qrexec, §3): policy is asked, the target found
or started, and both ends are told where to meet; a service of the host is run here.

The process speaks to its daemon as any local client does, over a connection it was born with. Its exit code says what
became of it; the daemon refuses the request if nothing was said before.
"""

from __future__ import annotations

import socket

from insula.qrexec import host_service, qubesd, question
from insula.qrexec.errors import DaemonAbsent, DaemonError, QrexecError
from insula.qrexec.log import say
from insula.qrexec.places import ADMIN_NAMES
from insula.qrexec.policy_protocol import Answer, Question
from insula.qrexec.relay import ServiceRelay
from insula.qrexec.sockets import DaemonClient, Deadline, connect_vchan, handshake
from insula_proto import qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, EXIT_REFUSED, ExecCmdline, JustExec
from insula_proto.qrexec_channel import ServiceEnd
from insula_proto.vchan import Place

DISPOSABLE = "@dispvm:"
CONNECT_LIMIT_S = 5.0
"""A qube that calls the host has this long to serve the data channel…"""
HELLO_LIMIT_S = 60.0
"""…and this long to say HELLO on it."""


class Caller:
    """Who asks: the qube of a daemon, and the request's ident."""

    def __init__(self, domain: int, name: str, ident: bytes, folder: str, place: Place) -> None:
        self.domain = domain
        self.name = name
        self.ident = ident
        self.folder = folder
        """Of the daemons' sockets."""
        self.place = place


def run(caller: Caller, asked: Question, program: str, connection: socket.socket) -> int:
    """Do the whole errand; return the process's exit code."""
    answer = question.ask(asked, program, connection)
    return EXIT_REFUSED if answer is None else carry_out(caller, asked, answer, DaemonClient(connection))


def carry_out(caller: Caller, asked: Question, answer: Answer, daemon: DaemonClient) -> int:
    """Do what policy answered; return the process's exit code."""
    service = answer.service or asked.service
    if "+" not in service:
        service += "+"
    source = answer.policy_source or caller.name
    try:
        if answer.target in ADMIN_NAMES:
            command = host_command(service, source, answer.requested_target)
            serve_here(daemon, caller, command.encode("ascii"), source, CONNECT_LIMIT_S)
            return 0
        command = f"{answer.user}:QUBESRPC {service} {source}"
        call_qube(daemon, caller, target_of(answer), command.encode("ascii"), answer)
    except (QrexecError, OSError, ValueError, LocalProtocolError, RemoteProtocolError) as error:
        say(f"{asked.service} for {caller.name}: {error}")
        return EXIT_PROBLEM
    return 0


def host_command(service: str, source: str, requested_target: str) -> str:
    """The command line of a service of the host."""
    if requested_target.startswith("@"):
        return f"QUBESRPC {service} {source} keyword {requested_target[1:]}"
    return f"QUBESRPC {service} {source} name {requested_target}"


def target_of(answer: Answer) -> str:
    return answer.target if answer.target_uuid is None else answer.target_uuid


# --- a service of another qube -------------------------------------------------------------------------------------


def call_qube(daemon: DaemonClient, caller: Caller, target: str, command: bytes, answer: Answer) -> None:
    """Join the caller and a qube, which is started if need be. :raise QrexecError:"""
    if not target.startswith(DISPOSABLE):
        other = open_qube(caller.folder, target, autostart=answer.autostart)
        join(daemon, other, caller, ExecCmdline(caller.domain, 0, command))
        return
    if not answer.autostart:
        raise DaemonError(f"{target} cannot be called without being started")
    base = target.removeprefix(DISPOSABLE)
    name = qubesd.create_disposable(base, by_uuid=answer.target_uuid is not None)
    try:
        qubesd.start(name)
        other = DaemonClient.connect(caller.folder, name)
        join(daemon, other, caller, ExecCmdline(caller.domain, 0, command))
        other.wait_for_end()
    finally:
        qubesd.kill(name)


def open_qube(folder: str, name: str, *, autostart: bool) -> DaemonClient:
    """Connect to a qube's daemon; have the qube started if there is none. :raise QrexecError:"""
    try:
        return DaemonClient.connect(folder, name)
    except DaemonAbsent:
        if not autostart:
            raise
    qubesd.start(name)
    return DaemonClient.connect(folder, name)


def join(daemon: DaemonClient, other: DaemonClient, caller: Caller, request: ExecCmdline | JustExec) -> None:
    """Have ``request`` run in the other qube, and tell the caller's daemon where. :raise DaemonError:"""
    domain, port = other.ask(request)
    daemon.connect_to(domain, port, caller.ident)


# --- a service of the host -----------------------------------------------------------------------------------------


def serve_here(daemon: DaemonClient, caller: Caller, command: bytes, source: str, limit_s: float | None) -> int:
    """Run a service for the caller; return its exit code. :raise QrexecError, OSError, RemoteProtocolError:"""
    domain, port = daemon.serve(caller.ident)
    started: host_service.Started | None = None
    code = 0
    try:
        started = host_service.start(command, source)
    except host_service.StartFailed as failed:
        say(f"{command!a}: {failed}")
        code = failed.code
    channel = connect_vchan(caller.place.served_by(domain, port), Deadline(limit_s))
    end = ServiceEnd(oldest=qrexec.OLDEST_VERSION)
    early = handshake(channel, end.hello(), end.receive, Deadline(HELLO_LIMIT_S))
    if started is None:
        channel.sendall(end.stderr_end() + end.finish(code))
        channel.close()
        return code
    settings = started.settings
    relay = ServiceRelay(
        channel,
        end,
        started.inlet,
        started.output,
        ends_with_client=settings.exit_on_client_eof,
        ends_with_service=settings.exit_on_service_eof,
    )
    if started.pid:
        relay.adopt(started.pid)
    return relay.run(early, started.before)
