"""Streams over vchans made of unix sockets, for agents without a machine around them (reference: vchan).

The control channel is one vchan, served by us for the admin domain; each data channel is another one, served by the
other end. The bytes on the sockets are the bytes of the streams.
"""

from __future__ import annotations

import os

from insula_agent import sockets
from insula_agent.log import log
from insula_agent.loop import HANGUP, READ, WRITE, Loop, Timer
from insula_agent.pieces import MAX_PIECES, drop
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams
from insula_proto import limits, qrexec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.sockets import Socket
    from insula_proto.vchan import Place

ADMIN_DOMAIN = 0
WINDOW = 262144
"""Bytes read of a stream and not consumed yet above which it is not read any more."""
READ_SIZE = 262144
ROOM = limits.QREXEC_MAX_CHUNK + qrexec.HEADER.size
"""Bytes that may be sent when nothing waits: one message."""
MAX_CONTROL_QUEUE = 32 * 1024 * 1024
"""Bytes on the control channel that a daemon which does not read may leave us with; it is then taken for lost."""
LINGER_TIME = 2.0
"""Seconds the other end has to close a stream we have finished."""
RESTLESS_TRIES = 40
"""First tries to connect, without a pause but for others to run: the other end is told at the same time as we are…"""
EAGER_INTERVAL, EAGER_TRIES = 0.001, 100
"""…then seconds between tries, as many…"""
PATIENT_INTERVAL = 0.05
"""…and between those after."""


class _Stream:
    __slots__ = ("fd", "handler", "is_blocked", "is_control", "is_finishing", "pending", "timer", "unconsumed")

    def __init__(self, handler: StreamHandler, *, is_control: bool) -> None:
        self.handler = handler
        self.is_control = is_control
        self.fd = -1
        """-1 before it is connected."""
        self.pending: list[bytes | memoryview] = []
        self.unconsumed = 0
        self.is_blocked = False
        self.is_finishing = False
        self.timer: Timer | None = None
        """The next try to connect, or the end of lingering."""


class VchanLink(Streams):
    """``on_connected`` is called when the admin domain has connected to the control channel."""

    def __init__(self, loop: Loop, place: Place, on_connected: Callable[[], None]) -> None:
        self._loop = loop
        self._place = place
        self._on_connected = on_connected
        self._streams: dict[int, _Stream] = {}
        self._count = 0
        self._listener: Socket | None = None
        self._control: Socket | None = None
        self._path = ""
        self._buffer = memoryview(bytearray(READ_SIZE))
        self.host_connects = True

    # --- the control channel -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve the control channel, once. :raise OSError, ValueError: its socket cannot be made."""
        self._path = self._place.served_for(ADMIN_DOMAIN, qrexec.CONTROL_PORT)
        self._listener = sockets.listen(self._path, 0o600, 1)
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Leave: what was sent still arrives, the name is free."""
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            sockets.remove(self._path)
        for stream in self._streams.values():
            if stream.fd >= 0:
                os.close(stream.fd)
        self._streams.clear()

    def _accept(self, events: int) -> None:
        del events
        assert self._listener is not None
        try:
            self._control = sockets.accept(self._listener)
        except OSError:
            return
        # One client for each server: another one waits in vain until this one is lost.
        self._loop.forget(self._listener.fileno())
        self.epoch += 1
        self._on_connected()

    def _restart(self) -> None:
        """A daemon that comes back may be in the queue already: the name stays served all the time."""
        log("the control channel is lost")
        assert self._listener is not None
        self._loop.watch(self._listener.fileno(), READ, self._accept)

    def open(self, port: int, handler: StreamHandler) -> int:
        assert port == qrexec.CONTROL_PORT
        assert self._control is not None
        stream = self._add(handler, is_control=True)
        control, self._control = self._control, None
        self._connected(stream, control)
        return stream

    # --- data channels -------------------------------------------------------------------------------------------

    def connect(self, domain: int, port: int, handler: StreamHandler) -> int:
        stream = self._add(handler, is_control=False)
        self._try(stream, domain, port, 0)
        return stream

    def _try(self, stream: int, domain: int, port: int, count: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        connection = sockets.unix_socket()
        connection.setblocking(False)
        try:
            connection.connect(self._place.served_by(domain, port))
        except (BlockingIOError, FileNotFoundError, ConnectionRefusedError):
            connection.close()
            interval = EAGER_INTERVAL if count < RESTLESS_TRIES + EAGER_TRIES else PATIENT_INTERVAL
            if count < RESTLESS_TRIES:
                os.sched_yield()
                interval = 0.0
            state.timer = self._loop.after(interval, lambda: self._try(stream, domain, port, count + 1))
        except (OSError, ValueError) as error:
            connection.close()
            log(f"vchan {domain}:{port}: {error}")
            state.timer = self._loop.after(0, lambda: self._lose(stream))
        else:
            self._connected(stream, connection)

    def _add(self, handler: StreamHandler, *, is_control: bool) -> int:
        self._count += 1
        self._streams[self._count] = _Stream(handler, is_control=is_control)
        return self._count

    def _connected(self, stream: int, connection: Socket) -> None:
        state = self._streams[stream]
        connection.setblocking(False)
        state.fd = connection.detach()
        self._watch(stream, state)
        self._unblock(stream, state)

    # --- for handlers --------------------------------------------------------------------------------------------

    def writable(self, stream: int) -> int:
        state = self._streams.get(stream)
        return ROOM if state is not None and self._takes_more(state) else 0

    def has_room(self, stream: int) -> bool:
        return self.writable(stream) > 0

    def _takes_more(self, state: _Stream) -> bool:
        return state.fd >= 0 and not state.is_finishing and (not state.pending or state.is_control)

    def send(self, stream: int, *data: bytes) -> None:
        state = self._streams.get(stream)
        if state is None or state.is_finishing:
            return
        state.pending.extend(data)
        self._flush(stream, state)

    def notify_writable(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is not None:
            state.is_blocked = True

    def consumed(self, stream: int, count: int) -> None:
        state = self._streams.get(stream)
        if state is not None:
            was_full = state.unconsumed >= WINDOW
            state.unconsumed -= count
            if was_full and state.unconsumed < WINDOW:
                self._watch(stream, state)

    def finish(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is not None:
            state.is_finishing = True
            if not state.pending:
                self._linger(stream, state)

    def reset(self, stream: int, code: int = RESET_FAILED) -> None:
        del code
        state = self._streams.get(stream)
        if state is not None:
            is_control = state.is_control
            self._forget(stream)
            if is_control:
                self._restart()

    # --- sockets -------------------------------------------------------------------------------------------------

    def _watch(self, stream: int, state: _Stream) -> None:
        if state.fd < 0:
            return
        interest = WRITE if state.pending else 0
        if state.unconsumed < WINDOW:
            interest |= READ
        if interest:
            self._loop.watch(state.fd, interest, lambda events: self._ready(stream, events))
        else:
            self._loop.forget(state.fd)

    def _ready(self, stream: int, events: int) -> None:
        state = self._streams.get(stream)
        if state is not None and events & WRITE and state.pending:
            self._flush(stream, state)
        if events & (READ | HANGUP):
            self._read(stream)

    def _read(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        if state.unconsumed >= WINDOW:
            # The end is behind what its handler has not taken yet.
            self._watch(stream, state)
            return
        try:
            size = os.readv(state.fd, [self._buffer])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._ended(stream, state)
            return
        if state.is_finishing:
            return
        state.unconsumed += size
        # A view, not a copy: handlers keep what they want of it when they are told that this was all.
        state.handler.data(stream, self._buffer[:size])  # type: ignore[arg-type]
        state.handler.data_end(stream)
        if stream in self._streams:
            self._watch(stream, state)

    def _ended(self, stream: int, state: _Stream) -> None:
        if state.is_finishing:
            self._forget(stream)
        elif state.is_control:
            self._lose(stream)
        else:
            # There is no half-close: the other end has gone.
            self._loop.forget(state.fd)
            state.handler.fin(stream)
            self._forget(stream)

    def _flush(self, stream: int, state: _Stream) -> None:
        if state.fd < 0:
            return
        try:
            while state.pending:
                drop(state.pending, os.writev(state.fd, state.pending[:MAX_PIECES]))
        except BlockingIOError:
            if state.is_control and sum([len(piece) for piece in state.pending]) > MAX_CONTROL_QUEUE:
                self._lose(stream)
                return
        except OSError:
            # Who reads has gone; what it said before may still be there to be read.
            state.pending.clear()
        if not state.pending and state.is_finishing:
            self._linger(stream, state)
            return
        self._watch(stream, state)
        self._unblock(stream, state)

    def _linger(self, stream: int, state: _Stream) -> None:
        """All is sent. Closed at once, the other end would be told of an error before it reads the rest."""
        if state.fd < 0:
            self._forget(stream)
            return
        sockets.shut(state.fd, sockets.SHUT_WR)
        state.unconsumed = 0
        self._watch(stream, state)
        state.timer = self._loop.after(LINGER_TIME, lambda: self._forget(stream))

    def _unblock(self, stream: int, state: _Stream) -> None:
        if state.is_blocked and self._takes_more(state):
            state.is_blocked = False
            state.handler.writable(stream)

    def _lose(self, stream: int) -> None:
        """The stream broke; its handler is told."""
        state = self._streams.get(stream)
        if state is None:
            return
        is_control, handler = state.is_control, state.handler
        self._forget(stream)
        handler.closed(stream, RESET_FAILED)
        if is_control:
            self._restart()

    def _forget(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is None:
            return
        if state.timer is not None:
            state.timer.cancel()
        if state.fd >= 0:
            self._loop.forget(state.fd)
            os.close(state.fd)
            state.fd = -1
