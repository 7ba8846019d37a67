"""The I/O around a :class:`~insula.qrexec.switchboard.Switchboard`: sockets, and a process for each errand.

It connects to the qube's control channel as vchan client, serves local clients on ``qrexec.DOMID`` (with links for name
and UUID), and forks an errand for every service the qube asks for. An errand holds one end of a connection whose other
end is a client here, so what it says and its end are received in order. When the agent goes away the sockets go with
it, and it is waited for.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from insula.qrexec import errand
from insula.qrexec.log import say
from insula.qrexec.policy_protocol import Question
from insula.qrexec.sockets import Deadline, retry_after, try_vchan, wait_readable
from insula.qrexec.switchboard import (
    CloseClient,
    Command,
    OpenSockets,
    RemoveSockets,
    Report,
    SendToAgent,
    SendToClient,
    StartErrand,
    Switchboard,
)
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import CONTROL_PORT, EXIT_PROBLEM
from insula_proto.value import Value
from insula_proto.vchan import Place

READ_SIZE = 65536
MAX_CLIENTS = 1024
"""Connections at once: a call of each of the qube's ports, its errands, and some about to be refused."""
MAX_QUEUED = 65536
"""Bytes waiting for the agent above which nothing else is done: an agent that does not read holds up its own calls."""
BACKLOG = 128
SOCKET_UMASK, LATER_UMASK = 0o000, 0o077
"""Whoever may enter the folder may connect; what services of the host create is nobody else's. As published."""

LINGER_S = 0.2
LINGER_BYTES = 1048576
"""What is still taken from an agent that broke the protocol, so that it can read what was said to it before."""

EXIT_FAILED = 1
EXIT_NO_AGENT = 3
CONNECTED, TIMED_OUT = b"\0", b"\1"
"""What is announced of a start."""


class Qube(Value):
    """Whose calls are exchanged."""

    __slots__ = ("default_user", "domain", "name", "uuid")
    domain: int
    name: str
    uuid: str
    default_user: str

    def __init__(self, domain: int, name: str, uuid: str, default_user: str = "user") -> None:
        self._fill(domain=domain, name=name, uuid=uuid, default_user=default_user)


class Exchange:
    def __init__(
        self, qube: Qube, place: Place, policy_program: str, limit_s: float | None, announce: Callable[[bytes], None]
    ) -> None:
        """
        :param limit_s: how long the agent is waited for at the start; None: as long as it takes.
        :param announce: told once what became of the start.
        """
        self._qube = qube
        self._place = place
        self._policy_program = policy_program
        self._limit_s = limit_s
        self._announce: Callable[[bytes], None] | None = announce
        self._switchboard = Switchboard(qube.domain, qube.default_user.encode("utf-8", "surrogateescape"))
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], object]] = {}
        """May be called without anything to do, when a number is used again while its last event is under way."""
        self._agent: socket.socket | None = None
        self._to_agent = bytearray()
        self._lost_at = time.monotonic()
        self._listener: socket.socket | None = None
        self._clients: dict[int, socket.socket] = {}
        self._next_client = 1
        self._wake, self._wake_end = socket.socketpair()
        self._exit_code: int | None = None

    def run(self) -> int:
        """Serve until SIGTERM or a fault; return the exit code. The current folder is that of the sockets."""
        self._catch_signals()
        deadline = Deadline(self._limit_s)
        try:
            while self._exit_code is None:
                if self._agent is None:
                    self._connect_agent(deadline)
                for fd, _ in self._epoll.poll(self._patience()):
                    handler = self._handlers.get(fd)
                    if handler is not None and self._exit_code is None:
                        handler()
        finally:
            self._remove_sockets()
        return self._exit_code

    def _catch_signals(self) -> None:
        self._wake.setblocking(False)
        self._wake_end.setblocking(False)
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._watch(self._wake.fileno(), self._stop)

    def _stop(self) -> None:
        self._exit_code = 0

    def _watch(self, fd: int, handler: Callable[[], object]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def _forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # the agent

    def _patience(self) -> float:
        """Seconds to wait for an event; -1: any time."""
        return -1 if self._agent is not None else retry_after(time.monotonic() - self._lost_at)

    def _connect_agent(self, deadline: Deadline) -> None:
        try:
            agent = try_vchan(self._place.served_by(self._qube.domain, CONTROL_PORT))
        except (OSError, ValueError) as error:
            say(f"control channel: {error}")
            self._exit_code = EXIT_NO_AGENT
            return
        if agent is not None:
            agent.setblocking(False)
            self._agent = agent
            self._watch(agent.fileno(), self._agent_ready)
            self._carry_out(self._switchboard.agent_connected())
        elif self._announce is not None and deadline.is_over:
            say(f"no agent in {self._qube.name} for {self._limit_s} seconds")
            self._announce(TIMED_OUT)
            self._exit_code = EXIT_NO_AGENT

    def _agent_ready(self) -> None:
        assert self._agent is not None
        try:
            untrusted_data = self._agent.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            untrusted_data = b""
        if not untrusted_data:
            self._agent_lost()
            return
        try:
            commands = self._switchboard.agent_received(untrusted_data)
        except RemoteProtocolError as error:
            say(f"the agent broke the protocol: {error}")
            linger(self._agent)
            self._exit_code = EXIT_FAILED
            return
        self._carry_out(commands)

    def _agent_lost(self) -> None:
        assert self._agent is not None
        self._forget(self._agent.fileno())
        self._agent.close()
        self._agent = None
        self._to_agent.clear()
        self._lost_at = time.monotonic()
        if self._announce is not None:
            say("the agent hung up before it said HELLO")
            self._exit_code = EXIT_FAILED
            return
        say("the agent has disconnected")
        self._carry_out(self._switchboard.agent_lost())

    def _send_to_agent(self, data: bytes) -> None:
        if self._agent is None:
            return
        self._to_agent += data
        self._flush_agent(wait_above=MAX_QUEUED)
        if self._to_agent:
            self._epoll.modify(self._agent.fileno(), select.EPOLLIN | select.EPOLLOUT)
            self._handlers[self._agent.fileno()] = self._agent_ready_or_writable

    def _agent_ready_or_writable(self) -> None:
        self._flush_agent(wait_above=MAX_QUEUED)
        assert self._agent is not None
        if not self._to_agent:
            self._epoll.modify(self._agent.fileno(), select.EPOLLIN)
            self._handlers[self._agent.fileno()] = self._agent_ready
        self._agent_ready()

    def _flush_agent(self, wait_above: int) -> None:
        """Send what the agent takes; wait for it only while more than that is left, or until we are to stop."""
        assert self._agent is not None
        poll = select.poll()
        poll.register(self._agent.fileno(), select.POLLOUT)
        poll.register(self._wake.fileno(), select.POLLIN)
        while self._to_agent:
            try:
                del self._to_agent[: self._agent.send(self._to_agent)]
            except BlockingIOError:
                if len(self._to_agent) <= wait_above or self._wake.fileno() in dict(poll.poll()):
                    return
            except OSError:
                # It is gone, which the next read will tell.
                self._to_agent.clear()

    # commands

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case SendToAgent():
                    self._send_to_agent(command.data)
                case SendToClient():
                    self._send_to_client(command.client, command.data)
                case CloseClient():
                    self._close_client(command.client)
                case OpenSockets():
                    self._open_sockets()
                case RemoveSockets():
                    self._remove_sockets()
                case StartErrand():
                    self._start_errand(command)
                case Report():
                    say(command.text)

    # sockets of the daemon

    @property
    def _socket_name(self) -> str:
        return f"qrexec.{self._qube.domain}"

    @property
    def _links(self) -> list[Path]:
        return [Path(f"qrexec.{self._qube.name}"), Path(f"qrexec.uuid:{self._qube.uuid}")]

    def _open_sockets(self) -> None:
        os.umask(SOCKET_UMASK)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(self._socket_name).unlink(missing_ok=True)
        listener.bind(self._socket_name)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        for link in self._links:
            link.unlink(missing_ok=True)
            link.symlink_to(self._socket_name)
        os.umask(LATER_UMASK)
        self._listener = listener
        self._watch(listener.fileno(), self._accept)
        if self._announce is None:
            say("the agent has reconnected")
        else:
            self._announce(CONNECTED)
            self._announce = None

    def _remove_sockets(self) -> None:
        if self._listener is None:
            return
        self._forget(self._listener.fileno())
        self._listener.close()
        self._listener = None
        for path in (*self._links, Path(self._socket_name)):
            path.unlink(missing_ok=True)

    # clients

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            say(f"a client could not be accepted: {error}")
            # No descriptor is left (MC-107). It waits, and is not looked at again before one is free.
            self._forget(self._listener.fileno())
            return
        if len(self._clients) >= MAX_CLIENTS:
            say("too many clients")
            connection.close()
            return
        self._add_client(connection)

    def _add_client(self, connection: socket.socket) -> int:
        connection.setblocking(False)
        client = self._next_client
        self._next_client += 1
        self._clients[client] = connection
        self._watch(connection.fileno(), partial(self._client_ready, client))
        self._carry_out(self._switchboard.client_connected(client))
        return client

    def _client_ready(self, client: int) -> bool:
        """Take what it said; return whether there may be more."""
        connection = self._clients.get(client)
        if connection is None:
            return False
        try:
            data = connection.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._carry_out(self._switchboard.client_received(client, data))
            return True
        self._close_client(client)
        self._carry_out(self._switchboard.client_closed(client))
        return False

    def _send_to_client(self, client: int, data: bytes) -> None:
        connection = self._clients.get(client)
        if connection is None:
            return
        try:
            sent = connection.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            # A few bytes on an empty socket did not fit: it is gone, which the next read will tell.
            connection.shutdown(socket.SHUT_RDWR)

    def _close_client(self, client: int) -> None:
        connection = self._clients.pop(client, None)
        if connection is not None:
            self._forget(connection.fileno())
            connection.close()
            if self._listener is not None and self._listener.fileno() not in self._handlers:
                self._watch(self._listener.fileno(), self._accept)

    # errands

    def _start_errand(self, command: StartErrand) -> None:
        try:
            ours, pid, process = self._fork_errand(command)
        except OSError as error:
            # Descriptors or processes are used up (MC-107): this request is refused, others go on.
            say(f"a request could not be served: {error}")
            self._carry_out(self._switchboard.errand_ended(command.errand, EXIT_PROBLEM))
            return
        client = self._add_client(ours)

        def ended() -> None:
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                return
            self._forget(process)
            os.close(process)
            while self._client_ready(client):
                # All it said comes before its end.
                pass
            code = os.waitstatus_to_exitcode(status)
            self._carry_out(self._switchboard.errand_ended(command.errand, code))

        self._watch(process, ended)

    def _fork_errand(self, command: StartErrand) -> tuple[socket.socket, int, int]:
        """Return our end of its connection, its pid and its process descriptor. :raise OSError:"""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if not pid:
                self._be_errand(command, theirs)
        # There is a number left: the one of the end that is closed by now.
        return ours, pid, os.pidfd_open(pid)

    def _be_errand(self, command: StartErrand, connection: socket.socket) -> None:
        """Never returns."""
        code = EXIT_PROBLEM
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _close_others(connection.fileno())
            qube, request = self._qube, command.request
            caller = errand.Caller(qube.domain, qube.name, request.ident, ".", self._place)
            source = request.claimed_source if command.has_source else None
            asked = Question(qube.name, request.target, request.service, source)
            code = errand.run(caller, asked, self._policy_program, connection)
        except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the daemon may run on in the child
            say(f"errand failed: {error!r}")
        finally:
            os._exit(code)


def linger(connection: socket.socket) -> None:
    """Say that nothing more comes, and throw away what the other end is just sending."""
    deadline = Deadline(LINGER_S)
    left = LINGER_BYTES
    try:
        connection.shutdown(socket.SHUT_WR)
        while left > 0 and wait_readable(connection.fileno(), deadline=deadline):
            untrusted_data = connection.recv(READ_SIZE)
            if not untrusted_data:
                return
            left -= len(untrusted_data)
    except OSError:
        # It is gone already.
        return


def _close_others(kept: int) -> None:
    """Close what a forked process has of its parent, but for the standard descriptors and one more."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        number = int(name)
        if number > 2 and number != kept:
            try:
                os.close(number)
            except OSError:
                # The one that the list was read with.
                continue
