"""``insula-session``: the process that talks to one qube's agent, the only host code that parses what a guest wrote.

It is forked from the preloaded parent into its sandbox (``insula.preload``), with three descriptors and nothing else:
the channel to the guest, the listening ``rpc.sock``, and a socket to the daemon. It ends when the machine or the daemon
is gone, or when told to. Calls end with it; the next session of the same guest begins with a handshake that resets what
this one left.

It imports the standard library, ``msgspec`` and ``insula_proto``, all of it at the top of a module: there is no file to
import from any more when it runs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence

from insula.preload import title
from insula.rpc import control
from insula.rpc.call_table import CallTable
from insula.rpc.callers import CallServer
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.control import (
    AgentLost,
    AgentReady,
    Ask,
    Begin,
    CallsChanged,
    Configure,
    Connect,
    Finish,
    FromSession,
    Host,
    KeyRemoved,
    KeyWritten,
    Memory,
    MemoryWanted,
    Refuse,
    RemoveKey,
    Serve,
    SessionEnding,
    SetKey,
    Shutdown,
    ToSession,
    printable,
)
from insula.rpc.guest import GuestServices
from insula.rpc.pacing import RateLimit
from insula.rpc.service_calls import ServiceCalls
from insula_proto import limits
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import MalformedTrigger
from insula_proto.qrexec_channel import ServiceRequested

MAX_UNTOLD = 256
"""Messages the daemon has not taken yet; above it guests may not cause more."""
COUNTS_BURST = 8
COUNTS_PER_SECOND = 2
COUNT_INTERVAL = 0.5
"""How often changes of the counters of calls are told at once, else collected for this long: they are for people."""
LOG_BURST = 20
LOG_PER_SECOND = 1
EXIT_OK = 0
EXIT_DAEMON_PROTOCOL = 65
EXIT_DEFECT = 70


class Session:
    """Joins the parts; is the owner of the channel, the listener of the guest and the counter of calls."""

    def __init__(self, channel: socket.socket, listener: socket.socket, daemon: socket.socket) -> None:
        daemon.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._daemon = daemon
        self._untold: deque[bytes] = deque()
        self._calls_untold = False
        self._count_limit = RateLimit(COUNTS_BURST, COUNTS_PER_SECOND)
        self._count_timer: asyncio.TimerHandle | None = None
        self._name = ""
        self._log_limit = RateLimit(LOG_BURST, LOG_PER_SECOND)
        self.done: asyncio.Future[int] = self._loop.create_future()
        self._guest = GuestServices(self)
        self._table = CallTable(self)
        self._server = CallServer(listener, self._guest, self._table)
        self._services = ServiceCalls(self._guest, self._table, self._tell, self.can_tell)
        self._channel = Channel(channel, self)
        self._is_ready = False
        self._loop.add_reader(daemon, self._daemon_readable)

    def close(self) -> None:
        if self._count_timer is not None:
            self._count_timer.cancel()
            self._count_timer = None
        self._channel.close()
        self._server.close()
        self._loop.remove_reader(self._daemon)
        self._loop.remove_writer(self._daemon)
        self._daemon.close()

    def finish(self, code: int) -> None:
        if not self.done.done():
            self.done.set_result(code)

    def _log(self, message: str) -> None:
        """What a guest can cause is limited in number, and its words are made printable."""
        if self._log_limit.take(self._loop.time()):
            print(f"insula-session {self._name}: {printable(message)}", file=sys.stderr, flush=True)

    # --- the daemon ----------------------------------------------------------------------------------------------

    def _daemon_readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._daemon, control.MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.finish(EXIT_OK)
            return
        try:
            message = _decode(data, has_descriptor=bool(descriptors))
            if not descriptors:
                self._obey(message)
        except RemoteProtocolError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            self._log(str(error))
            self.finish(EXIT_DAEMON_PROTOCOL)
            return
        if isinstance(message, Memory):
            self._map(descriptors[0])
        elif descriptors:
            # Its kind is known: asking the kernel costs three system calls.
            self._join(message, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptors[0]))

    def _map(self, descriptor: int) -> None:
        """Share memory with the qube from now on. It cannot shrink: it is sealed.

        Its size is looked at all the same: after a restart of the daemon it comes from the VMM.
        """
        try:
            # (Not fstat(2), as in insula.gui.frame_memory.)
            if (size := os.lseek(descriptor, 0, os.SEEK_END)) != limits.BULK_SIZE:
                raise ValueError(f"{size} bytes")  # noqa: TRY301 - logged like what mmap(2) says
            memory = mmap.mmap(descriptor, limits.BULK_SIZE)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            self._log(f"no memory is shared: {error}")
        else:
            self._server.share(descriptor)
            self._channel.give_memory(memoryview(memory))

    def _join(self, message: ToSession, connection: socket.socket) -> None:
        """Messages that come with one end of a call."""
        if isinstance(message, Connect):
            self._services.connect(message, connection)
        elif isinstance(message, Serve):
            self._services.serve(message, connection)
        elif isinstance(message, Host):
            self._services.host(message, connection)
        elif isinstance(message, Ask):
            self._services.ask(message, connection)

    def _obey(self, message: ToSession) -> None:
        if isinstance(message, Configure):
            self._name = message.name
            title.show(f"insula-session {message.name}")
            self._server.configure(self._channel, message.domain, message.default_user)
            self._services.configure(self._channel, message.default_user)
        elif isinstance(message, Refuse):
            self._services.refuse(message)
        elif isinstance(message, Finish):
            self._services.finish(message)
        elif isinstance(message, SetKey):
            if len(self._guest.keys) >= limits.QUBESDB_MAX_KEYS and message.path not in self._guest.keys:
                raise RemoteProtocolError("too many keys")
            self._guest.set_key(message.path, message.value)
        elif isinstance(message, RemoveKey):
            self._guest.remove_key(message.path)
        elif isinstance(message, Begin):
            self._channel.start()
        elif isinstance(message, Shutdown):
            self.finish(EXIT_OK)

    def _tell(self, message: FromSession) -> None:
        self._untold.append(control.encode(message))
        self._tell_all()

    def _tell_all(self) -> None:
        try:
            while self._untold or self._calls_untold:
                if self._untold:
                    self._daemon.send(self._untold[0])
                    self._untold.popleft()
                else:
                    self._daemon.send(
                        control.encode(CallsChanged(self._table.running, self._table.started, self._table.refused))
                    )
                    self._calls_untold = False
        except BlockingIOError:
            self._loop.add_writer(self._daemon, self._tell_all)
        except OSError:
            self.finish(EXIT_OK)
        else:
            self._loop.remove_writer(self._daemon)

    # --- ChannelOwner --------------------------------------------------------------------------------------------

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        return self._guest.accept(self._channel, stream, port)

    def memory_wanted(self) -> None:
        self._tell(MemoryWanted())

    def lost(self, reason: str) -> None:
        self._log(f"connection lost: {reason}")
        self._table.clear()
        self._services.agent_lost()
        if self._is_ready:
            self._is_ready = False
            self._tell(AgentLost(printable(reason)))

    def ended(self, reason: str) -> None:
        self.lost(reason)
        self._tell(SessionEnding(printable(reason)))
        self.finish(EXIT_OK)

    # --- GuestListener -------------------------------------------------------------------------------------------

    def agent_ready(self, version: int) -> None:
        self._is_ready = True
        self._tell(AgentReady(version))

    def can_tell(self) -> bool:
        return len(self._untold) < MAX_UNTOLD

    def key_written(self, path: str, value: bytes) -> None:
        self._tell(KeyWritten(path, value))

    def key_removed(self, path: str) -> None:
        if self.can_tell():
            self._tell(KeyRemoved(path))

    def service_requested(self, request: ServiceRequested) -> None:
        self._services.requested(request)

    def service_malformed(self, request: MalformedTrigger) -> None:
        self._services.malformed(request)

    def service_withdrawn(self, ident: bytes) -> None:
        self._services.withdrawn(ident)

    def connection_terminated(self, domain: int, port: int) -> None:
        self._table.terminated(domain, port)

    # --- CallCounter ---------------------------------------------------------------------------------------------

    def calls_changed(self) -> None:
        """Some changes are told at once, those of a busy qube together."""
        if self._count_timer is None:
            is_few = self._count_limit.take(self._loop.time())
            self._count_timer = self._loop.call_later(0 if is_few else COUNT_INTERVAL, self._tell_counts)

    def _tell_counts(self) -> None:
        self._count_timer = None
        self._calls_untold = True
        self._tell_all()


def _decode(data: bytes, *, has_descriptor: bool) -> ToSession:
    """:raise RemoteProtocolError: no message of the daemon's, or a descriptor is missing, or there is one too many."""
    message = control.decode_to_session(data)
    if isinstance(message, control.WITH_DESCRIPTOR) != has_descriptor:
        raise RemoteProtocolError("a descriptor is missing, or there is one too many")
    return message


async def serve(channel: socket.socket, listener: socket.socket, daemon: socket.socket) -> int:
    """Run until there is nothing left to do; return the exit code."""
    session = Session(channel, listener, daemon)

    def defect(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        # Half a session would be worse than none: the daemon starts another.
        loop.default_exception_handler(context)
        session.finish(EXIT_DEFECT)

    asyncio.get_running_loop().set_exception_handler(defect)
    try:
        return await session.done
    finally:
        session.close()


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent; the descriptors are channel, listener and daemon."""
    channel, listener, daemon = (socket.socket(fileno=number) for number in descriptors)
    return asyncio.run(serve(channel, listener, daemon))
