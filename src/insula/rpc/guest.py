"""The two streams every agent opens: its keys (port 111) and the qrexec control channel (port 512).

Both belong to :class:`GuestServices`, which knows whether the agent is ready. A guest that begins a message and does
not finish it, or opens the control channel and does not say HELLO, is dropped after :data:`SILENCE_TIMEOUT` (MC-13).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from insula.rpc.channel import Channel, StreamHandler, StreamWriter
from insula.rpc.pacing import RateLimit
from insula_proto import qrexec, qubesdb
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ConnectionTerminated, ExecCmdline, Hello, JustExec, MalformedTrigger, ServiceRefused
from insula_proto.qrexec_channel import DaemonControl, ServiceRequested

SILENCE_TIMEOUT = 10.0
"""Seconds a guest may take to finish what it has begun to say."""
MAX_CONTROL_BACKLOG = 1048576
"""Bytes of requests an agent has not read, above which new calls are refused as busy."""
KEY_WRITES_BURST = 200
KEY_WRITES_PER_SECOND = 20
"""How often a guest may have the daemon told of a key; further writes are answered with an error."""

SLOW_DOWN = 0.05
"""Seconds the control channel of a guest that asks too much is not read on, each time."""

CLOCK_KEY = "/insula-clock"
"""This host's time, decimal nanoseconds since the epoch, as of when the keys are read: a machine's own clock chip has
whole seconds, and a fork's system clock stands where its seed was frozen."""
CLOCK_CHECK = b"?"
"""After such a time: it is for checking a clock that was set already."""
CLOCK_CHECKS_S = (1.0, 3.0)
"""Seconds after an agent is ready: the word that set its clock took part in a start, and that of a busy host takes
tenths of a second. Later, words take their time only by chance, and of two one is likely to be quick. Both are over
before a disposable that is to be held ready is paused, and so are not what it hears first when it goes on."""


class GuestListener(Protocol):
    """Who is told what the guest did."""

    def agent_ready(self, version: int) -> None: ...

    def key_written(self, path: str, value: bytes) -> None: ...

    def key_removed(self, path: str) -> None: ...

    def service_requested(self, request: ServiceRequested) -> None:
        """To be answered once, by :meth:`GuestServices.refuse_service` or :meth:`GuestServices.connect_service`."""

    def service_malformed(self, request: MalformedTrigger) -> None:
        """As above."""

    def service_withdrawn(self, ident: bytes) -> None:
        """Who asked under that ident has gone; there may be no such request any more."""

    def connection_terminated(self, domain: int, port: int) -> None: ...

    def can_tell(self) -> bool:
        """Whether the daemon takes messages at present."""


class _Watch:
    """Drops the channel when the guest owes us the rest of a message for too long."""

    def __init__(self, channel: Channel, what: str) -> None:
        self._channel = channel
        self._what = what
        self._timer: asyncio.TimerHandle | None = None

    def owes(self, is_owed: bool) -> None:  # noqa: FBT001, RUF100 - a fact, not a switch
        if not is_owed:
            self.stop()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SILENCE_TIMEOUT, self._expired)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        self._channel.drop(f"{self._what}: a message was begun and not finished in {SILENCE_TIMEOUT:.0f} s")


class _Conversation(StreamHandler):
    """A stream on which requests are answered; input is granted again only while the answers are being read."""

    def __init__(self, channel: Channel, stream: int, what: str) -> None:
        self.channel = channel
        self.stream = stream
        self.writer = StreamWriter(channel, stream)
        self.watch = _Watch(channel, what)
        self._unconsumed = 0

    def took(self, count: int) -> None:
        self._unconsumed += count
        self._grant()

    def _grant(self) -> None:
        if not self.writer.size:
            self.channel.consumed(self.stream, self._unconsumed)
            self._unconsumed = 0

    def writable(self) -> None:
        self.writer.flush()
        self._grant()

    def fin(self) -> None:
        raise RemoteProtocolError("the agent closed a stream it must keep")


class _KeyStream(_Conversation):
    def __init__(self, services: GuestServices, channel: Channel, stream: int) -> None:
        super().__init__(channel, stream, "keys")
        self._services = services
        self.server = qubesdb.KeyServer(services.keys, services.may_write)
        self.watch.owes(True)

    def data(self, untrusted_data: bytes) -> None:
        if not self.server.is_synchronised:
            self._services.keys[CLOCK_KEY] = str(time.time_ns()).encode("ascii")
        events = self.server.receive(untrusted_data)
        self.watch.owes(not self.server.is_between_messages)
        self.writer.write(self.server.take_output())
        self.took(len(untrusted_data))
        for event in events:
            self._services.key_changed(event)

    def closed(self) -> None:
        self.watch.stop()
        self._services.key_stream = None


class _ControlStream(_Conversation):
    def __init__(self, services: GuestServices, channel: Channel, stream: int) -> None:
        super().__init__(channel, stream, "control channel")
        self._services = services
        self.protocol = DaemonControl(may_withdraw=True)
        self._held: asyncio.TimerHandle | None = None
        self.watch.owes(True)

    def data(self, untrusted_data: bytes) -> None:
        messages = self.protocol.receive(untrusted_data)
        self.watch.owes(not self.protocol.is_between_messages)
        for message in messages:
            if isinstance(message, Hello):
                self.writer.write(self.protocol.answer())
                self._services.ready(self.protocol)
            elif isinstance(message, ConnectionTerminated):
                self._services.listener.connection_terminated(message.domain, message.port)
            elif isinstance(message, ServiceRequested):
                self._services.listener.service_requested(message)
            elif isinstance(message, MalformedTrigger):
                self._services.listener.service_malformed(message)
            elif isinstance(message, ServiceRefused):
                self._services.listener.service_withdrawn(message.ident)
        self.took(len(untrusted_data))

    def slow_down(self) -> None:
        """Read on only after a while: a guest that asks without end costs no more than its rate."""
        if self._held is None:
            self._held = asyncio.get_running_loop().call_later(SLOW_DOWN, self._go_on)

    def _go_on(self) -> None:
        self._held = None
        self._grant()

    def _grant(self) -> None:
        if self._held is None:
            super()._grant()

    def closed(self) -> None:
        self.watch.stop()
        if self._held is not None:
            self._held.cancel()
        self._services.control_closed()


class GuestServices:
    """What the host offers to one guest: its keys, and ears for its control channel."""

    def __init__(self, listener: GuestListener) -> None:
        self.listener = listener
        self.keys: dict[str, bytes] = {}
        self.key_stream: _KeyStream | None = None
        self._control: _ControlStream | None = None
        self._is_ready = False
        self._key_limit = RateLimit(KEY_WRITES_BURST, KEY_WRITES_PER_SECOND)
        self._clock_checks: list[asyncio.TimerHandle] = []

    # --- for the session -----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    def accept(self, channel: Channel, stream: int, port: int) -> StreamHandler | None:
        """The guest opened a stream. :raise RemoteProtocolError: it has that one already."""
        if port == qubesdb.PORT:
            if self.key_stream is not None:
                raise RemoteProtocolError("a second stream for keys")
            self.key_stream = _KeyStream(self, channel, stream)
            return self.key_stream
        if port == qrexec.CONTROL_PORT:
            if self._control is not None:
                raise RemoteProtocolError("a second control channel")
            self._control = _ControlStream(self, channel, stream)
            return self._control
        return None

    def has_room(self) -> bool:
        """Whether the agent reads its requests fast enough to be given another."""
        return self._control is not None and self._control.writer.size <= MAX_CONTROL_BACKLOG

    def execute(self, message: ExecCmdline | JustExec) -> None:
        """Send a request; the agent is ready."""
        assert self._control is not None
        self._control.writer.write(self._control.protocol.execute(message))

    def refuse_service(self, ident: bytes) -> None:
        """The answer to a request: no. Without an agent nobody waits for it."""
        if self._control is not None:
            self._control.writer.write(self._control.protocol.refuse_service(ident))

    def connect_service(self, domain: int, port: int, ident: bytes) -> None:
        """The answer to a request: be the caller on the stream to this port. The agent is ready."""
        assert self._control is not None
        self._control.writer.write(self._control.protocol.connect_service(domain, port, ident))

    def slow_down(self) -> None:
        """The guest asks for more than it may."""
        if self._control is not None:
            self._control.slow_down()

    def set_key(self, path: str, value: bytes) -> None:
        self.keys[path] = value
        if self.key_stream is not None and self.key_stream.server.is_synchronised:
            self.key_stream.writer.write(self.key_stream.server.write(path, value))

    def remove_key(self, path: str) -> None:
        if self.keys.pop(path, None) is None:
            return
        if self.key_stream is not None and self.key_stream.server.is_synchronised:
            self.key_stream.writer.write(self.key_stream.server.remove(path))

    def set_initial_keys(self, keys: Mapping[str, bytes]) -> None:
        self.keys.update(keys)

    # --- for the streams -----------------------------------------------------------------------------------------

    def ready(self, protocol: DaemonControl) -> None:
        assert protocol.version is not None
        self._is_ready = True
        self.listener.agent_ready(protocol.version)
        loop = asyncio.get_running_loop()
        self._clock_checks = [loop.call_later(seconds, self._check_clock) for seconds in CLOCK_CHECKS_S]

    def _check_clock(self) -> None:
        self.set_key(CLOCK_KEY, str(time.time_ns()).encode("ascii") + CLOCK_CHECK)

    def control_closed(self) -> None:
        self._control = None
        self._is_ready = False
        for check in self._clock_checks:
            check.cancel()

    def may_write(self, path: str, value: bytes) -> bool:
        """Whether the daemon can be told of one more key."""
        del path, value
        return self.listener.can_tell() and self._key_limit.take(asyncio.get_running_loop().time())

    def key_changed(self, event: qubesdb.KeyWritten | qubesdb.KeyRemoved) -> None:
        if isinstance(event, qubesdb.KeyWritten):
            self.listener.key_written(event.path, event.value)
        elif qubesdb.guest_may_write(event.path):
            self.listener.key_removed(event.path)
