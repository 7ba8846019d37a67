"""The mux over the socket that leads to a qube's virtio-serial port; the host's end.

Faults of the guest do not end the session: the channel is *dropped* (every stream gone, nothing read for a while) and
the handshake begins again, after 1 s at first, then doubling to 1 min. A new process for each fault would let a guest
make the host start processes as fast as it can write nonsense; a channel that stays down would make the crash of an
agent final.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import NamedTuple, Protocol

from insula.rpc.pacing import Backoff
from insula_proto import bulk
from insula_proto.errors import RemoteProtocolError
from insula_proto.mux import HOST, Mux
from insula_proto.mux_events import (
    CreditReceived,
    DataReceived,
    FinReceived,
    MuxEvent,
    Reset,
    SharedReceived,
    SlotFreed,
    StreamOpened,
    StreamReset,
    Synced,
    current,
)
from insula_proto.mux_frames import RESET_CANCELLED, RESET_REFUSED

READ_SIZE = 262144
WRITE_SIZE = 262144
HELLO_INTERVAL = 2.0
MAX_HELLO_INTERVAL = 30.0
"""Seconds until an unanswered HELLO is repeated, doubling: a guest slower than the interval would have each answer
made void by the next attempt. (A guest that starts later asks by itself.)"""
MAX_GUEST_STREAMS = 16
"""Streams a guest may have open; it needs two."""
SMALL = 4096
"""Bytes up to which sending them costs less than lending a slot of the memory."""


class StreamHandler:
    """What happens to a stream; override what matters."""

    def data(self, untrusted_data: bytes) -> None:
        """Bytes came; they count against the window until :meth:`Channel.consumed`."""

    def view(self, untrusted_view: memoryview) -> None:
        """As :meth:`data`, for bulk: valid until this returns, so whoever keeps some makes a copy."""
        self.data(bytes(untrusted_view))

    def slot(self, number: int, untrusted_view: memoryview) -> bool:
        """As :meth:`view`, for a slot of the memory; true: it is kept until :meth:`Channel.free`."""
        self.view(untrusted_view)
        return False

    def fin(self) -> None:
        """The guest sends nothing more."""

    def writable(self) -> None:
        """There may be room again (asked for by :meth:`Channel.notify_writable`)."""

    def closed(self) -> None:
        """The stream was reset by the guest, or lost with the channel."""


class Slot(NamedTuple):
    """A piece of the memory that is shared with the guest, to be written once."""

    number: int
    view: memoryview


class ChannelOwner(Protocol):
    """Who is told about the channel as a whole."""

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        """The guest opened a stream; None refuses it. :raise RemoteProtocolError: it may not do that now."""

    def memory_wanted(self) -> None:
        """A stream has proved large, and the guest knows of memory: :meth:`Channel.give_memory`. Said once."""

    def lost(self, reason: str) -> None:
        """All streams are gone (each handler was told); a new handshake has begun or will."""

    def ended(self, reason: str) -> None:
        """The socket was closed: the machine is gone."""


class Channel:
    def __init__(self, connection: socket.socket, owner: ChannelOwner) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._mux = Mux(HOST, max_peer_streams=MAX_GUEST_STREAMS, views=True)
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._handlers: dict[int, StreamHandler] = {}
        self._blocked: set[int] = set()
        self._backoff = Backoff()
        self._timer: asyncio.TimerHandle | None = None
        self._hello_interval = HELLO_INTERVAL
        self._is_flushing = False
        self._waits_for_room = False
        self._is_closed = False
        self._memory: memoryview | None = None
        self._has_asked_for_memory = False

    def start(self) -> None:
        """Greet the guest, and go on until it answers."""
        self._hello_interval = HELLO_INTERVAL
        self._loop.add_reader(self._connection, self._readable)
        self._mux.start()
        self._schedule_flush()
        self._timer = self._loop.call_later(self._hello_interval, self._repeat_hello)

    def _repeat_hello(self) -> None:
        """Runs as long as the channel does; a handshake that was lost later is repeated by it too."""
        if self._mux.in_sync:
            self._hello_interval = HELLO_INTERVAL
        elif not self._waits_for_room:
            # (While the last HELLO is still here, nobody has read it.)
            self._mux.start()
            self._schedule_flush()
            self._hello_interval = min(2 * self._hello_interval, MAX_HELLO_INTERVAL)
        self._timer = self._loop.call_later(self._hello_interval, self._repeat_hello)

    def close(self) -> None:
        """Let go of the socket; every handler is told."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_timer()
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        self._forget_streams()

    def drop(self, reason: str) -> None:
        """The guest broke a protocol: forget the connection, begin a new one after a pause (MC-11, MC-12)."""
        if self._is_closed:
            return
        self._stop_timer()
        self._loop.remove_reader(self._connection)
        self._mux.abandon()
        self._forget_streams()
        self._timer = self._loop.call_later(self._backoff.failed(self._loop.time()), self.start)
        self._owner.lost(reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- streams -------------------------------------------------------------------------------------------------

    def open(self, port: int, handler: StreamHandler) -> int:
        """:raise LocalProtocolError: not in sync."""
        stream = self._mux.open(port)
        self._handlers[stream] = handler
        self._schedule_flush()
        return stream

    def writable(self, stream: int) -> int:
        return self._mux.writable(stream)

    def send(self, stream: int, data: bytes | memoryview) -> None:
        self._mux.send(stream, data)
        self._schedule_flush()

    def consumed(self, stream: int, count: int) -> None:
        self._mux.consumed(stream, count)
        self._schedule_flush()

    def is_open(self, stream: int) -> bool:
        """Whether its handler may still be told something."""
        return self._mux.is_open(stream)

    def notify_writable(self, stream: int) -> None:
        """Call the handler's ``writable`` once, as soon as there is room."""
        if self._mux.is_open(stream):
            self._blocked.add(stream)

    def finish(self, stream: int) -> None:
        self._mux.finish(stream)
        if not self._mux.is_open(stream):
            self._handlers.pop(stream, None)
        self._schedule_flush()

    def reset(self, stream: int, code: int = RESET_CANCELLED) -> None:
        """Tear the stream down; its handler hears nothing more."""
        self._mux.reset(stream, code)
        self._handlers.pop(stream, None)
        self._blocked.discard(stream)
        self._schedule_flush()

    def _forget_streams(self) -> None:
        handlers, self._handlers = self._handlers, {}
        self._blocked.clear()
        for handler in handlers.values():
            handler.closed()

    # --- bulk ----------------------------------------------------------------------------------------------------

    def want_memory(self) -> None:
        """A stream has proved large. Memory is offered to the guest once there is some; nobody waits for it."""
        if not self._mux.may_offer_memory:
            return
        if self._memory is not None:
            self._offer_memory(self._memory)
        elif not self._has_asked_for_memory:
            self._has_asked_for_memory = True
            self._owner.memory_wanted()

    def give_memory(self, memory: memoryview) -> None:
        """The memory (:mod:`insula_proto.bulk`) that the machine has, too; for all further epochs."""
        self._memory = memory
        if self._mux.may_offer_memory:
            self._offer_memory(memory)

    def _offer_memory(self, memory: memoryview) -> None:
        token = os.urandom(bulk.TOKEN_SIZE)
        memory[: len(token)] = token
        self._mux.offer_memory(token)
        self._schedule_flush()

    def slot(self, stream: int) -> Slot | None:
        """Where bytes for a stream can be put, to be sent by :meth:`send_slot` or released; None: nowhere now."""
        room = min(self._mux.credit(stream), bulk.SLOT_SIZE)
        if self._memory is None or room <= SMALL:
            return None
        slot = self._mux.reserve_slot()
        start = bulk.offset(slot)
        return Slot(slot, self._memory[start : start + room]) if slot else None

    def send_slot(self, stream: int, slot: Slot, size: int) -> None:
        """Send the first ``size`` bytes, as many as :meth:`writable` says at most; the slot is gone then."""
        if size > SMALL:
            self._mux.send_shared(stream, slot.number, size)
        else:
            self._mux.send(stream, bytes(slot.view[:size]))
            self._mux.release_slot(slot.number)
        self._schedule_flush()

    def release_slot(self, slot: Slot) -> None:
        """Nothing is sent of it. It may be one that went with the channel's last epoch."""
        self._mux.release_slot(slot.number)

    def _take_slot(self, event: SharedReceived) -> None:
        """:raise RemoteProtocolError: from the handler."""
        handler = self._handlers.get(event.stream)
        if handler is not None and self._memory is not None:
            start = bulk.offset(event.slot)
            if handler.slot(event.slot, self._memory[start : start + event.size]):
                return
        # What was not delivered has been copied: a reader that waits keeps no slot from others.
        self._mux.free(event.slot)

    def free(self, slot: int) -> None:
        """A handler is done with a slot it kept."""
        self._mux.free(slot)
        self._schedule_flush()

    # --- input ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            size = self._connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))
            return
        if not size:
            self._end("the machine closed the channel")
            return
        # What the handlers queue is written once, here, and not in another turn of the loop.
        is_scheduled, self._is_flushing = self._is_flushing, True
        try:
            for event in current(self._mux.receive(self._buffer[:size])):
                self._dispatch(event)
        except RemoteProtocolError as error:
            self.drop(str(error))
            return
        finally:
            self._is_flushing = is_scheduled
        if not is_scheduled and not self._waits_for_room:
            self._flush()

    def _end(self, reason: str) -> None:
        self.close()
        self._owner.ended(reason)

    def _dispatch(self, event: MuxEvent) -> None:
        """:raise RemoteProtocolError: from a handler too; a guest's fault on one stream is a fault of the guest."""
        if isinstance(event, DataReceived):
            handler = self._handlers.get(event.stream)
            if handler is not None:
                handler.view(event.data)  # type: ignore[arg-type] # with ``views`` it is one
        elif isinstance(event, SharedReceived):
            self._take_slot(event)
        elif isinstance(event, (CreditReceived, SlotFreed)):
            self._notify(event.stream)
        elif isinstance(event, FinReceived):
            handler = self._handlers.get(event.stream)
            if not self._mux.is_open(event.stream):
                self._handlers.pop(event.stream, None)
            if handler is not None:
                handler.fin()
        elif isinstance(event, StreamReset):
            self._blocked.discard(event.stream)
            handler = self._handlers.pop(event.stream, None)
            if handler is not None:
                handler.closed()
        elif isinstance(event, StreamOpened):
            self._opened(event)
        elif isinstance(event, Reset):
            self._forget_streams()
            self._owner.lost("the agent started over")
        elif isinstance(event, Synced):
            self._backoff.succeeded(self._loop.time())

    def _opened(self, event: StreamOpened) -> None:
        handler = self._owner.accept(event.stream, event.port)
        if handler is None:
            self._mux.reset(event.stream, RESET_REFUSED)
        else:
            self._handlers[event.stream] = handler

    def _notify(self, stream: int) -> None:
        if stream in self._blocked and self._mux.writable(stream):
            self._blocked.discard(stream)
            handler = self._handlers.get(stream)
            if handler is not None:
                handler.writable()

    # --- output --------------------------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        """Write once after all handlers of this turn of the loop have queued what they have."""
        if not self._is_flushing and not self._waits_for_room and not self._is_closed:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _room(self) -> None:
        self._loop.remove_writer(self._connection)
        self._waits_for_room = False
        self._flush()

    def _flush(self) -> None:
        self._is_flushing = False
        while self._mux.queued and not self._is_closed:
            data = b"".join(self._mux.data_to_send(WRITE_SIZE))
            try:
                self._mux.sent(self._connection.send(data))
            except BlockingIOError:
                self._waits_for_room = True
                self._loop.add_writer(self._connection, self._room)
                return
            except OSError as error:
                self._end(str(error))
                return
            for stream in tuple(self._blocked):
                self._notify(stream)


class StreamWriter:
    """Bytes on their way into a stream, kept until credit comes; bounded by its users through :attr:`size`."""

    def __init__(self, channel: Channel, stream: int) -> None:
        self._channel = channel
        self._stream = stream
        self._pending: list[bytes] = []
        self.size = 0
        """Bytes waiting."""

    def write(self, data: bytes) -> None:
        if data:
            self._pending.append(data)
            self.size += len(data)
            self.flush()

    def flush(self) -> None:
        """Send what may be sent; ask to be called again for the rest."""
        done = 0
        for data in self._pending:
            room = self._channel.writable(self._stream)
            part = data[:room]
            if part:
                self._channel.send(self._stream, part)
                self.size -= len(part)
            if len(part) < len(data):
                self._pending[done] = data[room:]
                self._channel.notify_writable(self._stream)
                break
            done += 1
        del self._pending[:done]
