"""Many flow-controlled byte streams over one byte pipe that may be cut at any time (docs/protocols/mux.md).

The pipe is a virtio-serial port: reliable while both ends hold it, but either end may vanish in the middle of a
frame and come back as a new process, and the other end may not even be told. So the machine has two modes. *In
sync*, it parses frames. *Hunting*, it skips input until a HELLO that fits. Only the host starts a handshake; each
attempt carries a fresh nonce, and the guest's answer repeats it. Because the pipe keeps order, everything the host
sends after the answer to its last nonce, and everything the guest sends after that answer, belongs to the new
epoch, so streams of two epochs can never be mixed up.

Sans I/O and without a clock: bytes in by :meth:`Mux.receive`, bytes out by :meth:`Mux.data_to_send` and
:meth:`Mux.sent`; the caller drives retries by calling :meth:`Mux.start` again. Payload is handed on as it arrives,
also in parts of a frame, so nothing but an unfinished header is ever buffered here; what the application has not
:meth:`~Mux.consumed` is bounded by the credit granted to the peer. Bulk payload is not copied on its way out, and on
its way in only if the caller wants that: under software emulation copies are most of what a transfer costs.

From version 2 on payload need not be in the pipe: the host may offer memory that both sides see
(:mod:`insula_proto.bulk`), and a frame then says where in it bytes of a stream are.
"""

from __future__ import annotations

import os

from insula_proto import bulk, limits, mux_frames
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.mux_events import (
    CreditReceived,
    DataReceived,
    FinReceived,
    MemoryOffered,
    MuxEvent,
    Reset,
    SharedReceived,
    SlotFreed,
    StreamOpened,
    StreamReset,
    Synced,
)
from insula_proto.mux_frames import (
    CREDIT,
    DATA,
    FIN,
    FREED,
    HEADER,
    HEADER_SIZE,
    MEMORY,
    OPEN,
    RESET,
    SHARED,
    TWO_U32,
    U32,
    frame,
)
from insula_proto.mux_queue import FrameQueue
from insula_proto.mux_streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported at run time: the agent starts under software emulation
    from collections.abc import Callable

    from insula_proto.mux_queue import Buffer

HOST = "host"
GUEST = "guest"

_HUNTING, _IN_SYNC, _FAILED = range(3)


class Mux:
    """One end of the pipe.

    ``role`` is :data:`HOST` (opens even streams, starts handshakes) or :data:`GUEST` (odd, answers them).
    Every method that sends only queues; nothing is lost but by a resync.

    ``views``: the data of DataReceived is a view of what :meth:`receive` was given instead of a copy, for callers who
    are done with an event, or make their own copy, before they use their buffer again.
    """

    def __init__(
        self,
        role: str,
        *,
        nonce: Callable[[int], bytes] = os.urandom,
        max_peer_streams: int = limits.MUX_MAX_STREAMS,
        views: bool = False,
    ) -> None:
        if role not in (HOST, GUEST):
            raise ValueError(role)
        self._is_host = role == HOST
        self._make_nonce = nonce
        self._max_peer_streams = max_peer_streams
        self._views = views
        self._state = _HUNTING
        self._nonce = mux_frames.NO_NONCE
        self._hunted = 0
        self._partial = b""
        """Input not yet understood: part of a header, of a control frame, or (hunting) of a HELLO."""
        self._body_left = 0
        self._body_stream = 0
        self._queue = FrameQueue()
        self.version = 0
        """That both sides of this epoch speak; 0 before the first one."""
        self._clear_streams()

    def _clear_streams(self) -> None:
        self._streams = Streams(is_host=self._is_host)
        self._body_left = 0
        self._token = b""
        """Of the memory that was offered."""
        self._slots: bulk.Slots | None = None
        """Once both sides have the memory."""

    # --- state ---------------------------------------------------------------------------------------------------

    @property
    def in_sync(self) -> bool:
        return self._state == _IN_SYNC

    def is_open(self, stream: int) -> bool:
        """Whether the stream exists: neither reset nor closed in both directions."""
        return stream in self._streams.by_number

    def writable(self, stream: int) -> int:
        """Bytes :meth:`send` takes on this stream now; 0 if it is closed for sending or must wait."""
        state = self._streams.by_number.get(stream)
        if state is None or state.fin_sent or self._queue.size >= limits.MUX_MAX_QUEUED_DATA:
            return 0
        if self._slots is not None and self._slots.lent_for(stream):
            return 0
        return state.send_credit

    # --- handshake -----------------------------------------------------------------------------------------------

    def start(self, *, pad: bool = True) -> None:
        """Begin or repeat the handshake; all streams are gone.

        The host sends HELLO, the guest asks the host for one; after padding unless the peer is known to be at a frame
        boundary, or (a guest that has just started) it is likely and soon found out.
        """
        self._queue.drop()
        self._clear_streams()
        self._partial = b""
        self._hunted = 0
        self._state = _HUNTING
        self._nonce = self._make_nonce(mux_frames.NONCE_SIZE)
        if pad:
            self._queue.push(mux_frames.PADDING)
        self._queue.push(mux_frames.hello(self._nonce, mux_frames.NO_NONCE))

    def transport_lost(self) -> list[MuxEvent]:
        """The pipe was closed at the other end: forget streams, half-read and unsent frames."""
        events: list[MuxEvent] = []
        self._begin_epoch(events)
        self._queue.clear()
        self._partial = b""
        self._state = _HUNTING
        return events

    def abandon(self) -> None:
        """Have nothing more to do with this peer until :meth:`start`: forget streams and what is queued."""
        self._queue.drop()
        self._clear_streams()
        self._partial = b""
        self._state = _FAILED

    def _begin_epoch(self, events: list[MuxEvent]) -> None:
        if self._state == _IN_SYNC:
            events.append(Reset())
        self._clear_streams()
        self._hunted = 0

    def _hello_received(self, body: tuple[bytes, int, bytes, bytes], events: list[MuxEvent]) -> None:
        _, version, nonce, answer_to = body
        if version < 1:
            raise RemoteProtocolError("mux version 0 does not exist")
        if self._is_host:
            if answer_to == mux_frames.NO_NONCE:
                self._begin_epoch(events)
                self.start(pad=False)
            elif answer_to == self._nonce and self._state == _HUNTING:
                self._begin_epoch(events)
                self._sync(version, events)
            elif self._state == _IN_SYNC:
                raise RemoteProtocolError("answer to a HELLO that was not asked")
        elif answer_to == mux_frames.NO_NONCE:
            self._begin_epoch(events)
            self._queue.drop()
            self._queue.push(mux_frames.hello(self._nonce, nonce))
            self._sync(version, events)
        elif self._state == _IN_SYNC:
            raise RemoteProtocolError("a host asks, it does not answer")

    def _sync(self, version: int, events: list[MuxEvent]) -> None:
        self._state = _IN_SYNC
        self.version = min(version, mux_frames.VERSION)
        events.append(Synced(self.version))

    # --- output --------------------------------------------------------------------------------------------------

    def _push_control(self, stream: int, kind: int, body: bytes) -> None:
        """Queue a frame the peer provoked; refuse to hoard them for one who does not read."""
        if self._queue.size > limits.MUX_MAX_QUEUED:
            raise RemoteProtocolError("the peer does not read what it asks for")
        self._queue.push(frame(stream, kind, body))

    @property
    def queued(self) -> int:
        """Bytes waiting for the pipe."""
        return self._queue.size

    def data_to_send(self, limit: int = limits.MUX_MAX_DATA) -> list[Buffer]:
        """Buffers to write next, in order, together about ``limit`` bytes; empty if there is nothing.

        They stay queued until :meth:`sent` says how many bytes the pipe took.
        """
        return self._queue.head(limit)

    def sent(self, count: int) -> None:
        """The pipe took the first ``count`` bytes of :meth:`data_to_send`."""
        self._queue.sent(count)

    @property
    def _max_window(self) -> int:
        return limits.MUX_MAX_WINDOW if self.version >= mux_frames.MEMORY_VERSION else limits.MUX_MAX_WINDOW_1

    # --- streams, our side ---------------------------------------------------------------------------------------

    def open(self, port: int) -> int:
        """Open a stream to ``port`` and return its number; it may be written to at once."""
        if self._state != _IN_SYNC:
            raise LocalProtocolError("not in sync")
        if not 0 < port <= limits.MUX_MAX_PORT:
            raise LocalProtocolError(f"port {port}")
        stream = self._streams.new_number()
        window = self._streams.add(stream, limits.MUX_INITIAL_CREDIT, self._max_window)
        self._queue.push(frame(stream, OPEN, TWO_U32.pack(port, window)))
        return stream

    def send(self, stream: int, data: Buffer, *more: Buffer) -> None:
        """Queue bytes; at most :meth:`writable` of them. Empty data sends nothing.

        They are not copied if they are many: what is queued must not change. Several pieces go in one frame where
        they fit one.

        :raise LocalProtocolError: more than may be sent, or the stream is closed for sending.
        """
        pieces = (data, *more)
        size = sum([len(piece) for piece in pieces]) if more else len(data)
        if size > self.writable(stream):
            raise LocalProtocolError(f"{size} bytes for stream {stream}, writable {self.writable(stream)}")
        state = self._streams.ours(stream)
        state.send_credit -= size
        if size <= limits.MUX_MAX_DATA:
            self._queue.push_data(stream, size, pieces)
            return
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), limits.MUX_MAX_DATA):
                part = view[start : start + limits.MUX_MAX_DATA]
                self._queue.push_data(stream, len(part), (part,))

    def begin(self, stream: int, size: int) -> bytes:
        """Return the header of a frame of ``size`` bytes that the caller brings to the pipe by other means, body
        included; nothing may be queued, and nothing else may come before the frame is complete.

        :raise LocalProtocolError: more than may be sent, something is queued, or the stream is closed for sending.
        """
        if self._queue.size or not 0 < size <= min(self.writable(stream), limits.MUX_MAX_DATA):
            raise LocalProtocolError(f"{size} bytes for stream {stream}, writable {self.writable(stream)}")
        self._streams.ours(stream).send_credit -= size
        return HEADER.pack(stream, DATA, size)

    def complete(self, rest: bytes) -> None:
        """Queue the rest of a frame made by :meth:`begin`; it survives a new handshake, as the peer is inside it."""
        if self._queue.size:
            raise LocalProtocolError("something is queued")
        self._queue.push_rest(rest)

    def finish(self, stream: int) -> None:
        """Send FIN: nothing more from us; the other direction stays open. Repeating it does nothing."""
        state = self._streams.by_number.get(stream)
        if state is None or state.fin_sent:
            return
        state.fin_sent = True
        self._queue.push(frame(stream, FIN))
        if state.fin_received:
            self._streams.close(stream)

    def reset(self, stream: int, code: int = mux_frames.RESET_CANCELLED) -> None:
        """Tear the stream down; a stream that is gone already is left alone."""
        if not self.is_open(stream):
            return
        self._streams.close(stream)
        self._queue.push(frame(stream, RESET, U32.pack(code)))

    def consumed(self, stream: int, count: int) -> None:
        """The application is done with ``count`` received bytes: grant them again, in large steps."""
        state = self._streams.by_number.get(stream)
        if state is None or state.fin_received:
            return
        grant = state.count_consumed(stream, count)
        if grant:
            self._queue.push(frame(stream, CREDIT, U32.pack(grant)))

    # --- memory that both sides see --------------------------------------------------------------------------------

    @property
    def may_offer_memory(self) -> bool:
        """Whether the guest knows what that is, and was not offered any in this epoch."""
        return self._is_host and self.in_sync and self.version >= mux_frames.MEMORY_VERSION and not self._token

    @property
    def has_memory(self) -> bool:
        """Whether both sides have it."""
        return self._slots is not None

    def offer_memory(self, token: bytes) -> None:
        """The host's: there is memory that begins with these :data:`~insula_proto.bulk.TOKEN_SIZE` bytes.

        :raise LocalProtocolError: it may not be offered.
        """
        if not self.may_offer_memory or len(token) != bulk.TOKEN_SIZE:
            raise LocalProtocolError("no memory can be offered")
        self._token = token
        self._queue.push(frame(0, MEMORY, token))

    def accept_memory(self, token: bytes) -> None:
        """The guest's: it has the memory; an offer of an earlier epoch is not answered any more."""
        if self._is_host:
            raise LocalProtocolError("a host offers")
        if token == self._token and self._slots is None:
            self._slots = bulk.Slots(is_host=False)
            self._queue.push(frame(0, MEMORY, token))

    def reserve_slot(self) -> int:
        """One that may be written, to be sent by :meth:`send_shared` or released; 0: none, so send bytes."""
        return 0 if self._slots is None else self._slots.reserve()

    def release_slot(self, slot: int) -> None:
        """It is not needed after all, or of an epoch that is over."""
        if self._slots is not None:
            self._slots.release(slot)

    def lent(self, stream: int) -> int:
        """How many slots are under way for a stream."""
        return 0 if self._slots is None else self._slots.lent_for(stream)

    def credit(self, stream: int) -> int:
        """Bytes that may be sent before more credit comes, maybe not at once; 0: the stream is closed for sending."""
        state = self._streams.by_number.get(stream)
        return 0 if state is None or state.fin_sent else state.send_credit

    def send_shared(self, stream: int, slot: int, size: int) -> None:
        """``size`` bytes for the stream are in the slot, which is the peer's until :class:`SlotFreed`. More may be lent
        while one is under way, nothing else may be sent.

        :raise LocalProtocolError: more than may be sent, or the slot or the stream cannot be used.
        """
        if self._slots is None or not 0 < size <= min(self.credit(stream), bulk.SLOT_SIZE):
            raise LocalProtocolError(f"{size} shared bytes for stream {stream}, credit {self.credit(stream)}")
        if self._slots.lent_for(stream) >= limits.BULK_MAX_LENT:
            raise LocalProtocolError(f"the peer reads {limits.BULK_MAX_LENT} slots of stream {stream}")
        self._slots.lend(slot, stream)
        self._streams.ours(stream).send_credit -= size
        self._queue.push(frame(stream, SHARED, TWO_U32.pack(slot, size)))

    def free(self, slot: int) -> None:
        """What was in the peer's slot has been dealt with, or copied."""
        if self._slots is not None and self._slots.give_back(slot):
            self._queue.push(frame(0, FREED, U32.pack(slot)))

    def _memory_frame(self, stream: int, kind: int, body: memoryview, events: list[MuxEvent]) -> None:
        if self.version < mux_frames.MEMORY_VERSION:
            raise RemoteProtocolError(f"frame of type {kind} in version {self.version}")
        if kind == MEMORY:
            self._memory_named(stream, bytes(body), events)
        elif self._slots is None:
            raise RemoteProtocolError(f"frame of type {kind} without memory")
        elif kind == SHARED:
            slot, size = TWO_U32.unpack(body)
            self._slots.take(slot, size)
            self._count_received(stream, size)
            events.append(SharedReceived(stream, slot, size))
        else:
            if stream:
                raise RemoteProtocolError(f"FREED on stream {stream}")
            events.append(SlotFreed(self._slots.returned(U32.unpack(body)[0])))

    def _memory_named(self, stream: int, token: bytes, events: list[MuxEvent]) -> None:
        if stream:
            raise RemoteProtocolError(f"MEMORY on stream {stream}")
        if self._is_host:
            if token != self._token or self._slots is not None:
                raise RemoteProtocolError("memory that was not offered")
            self._slots = bulk.Slots(is_host=True)
            return
        if self._token:
            raise RemoteProtocolError("a second memory")
        self._token = token
        events.append(MemoryOffered(token))

    # --- input ---------------------------------------------------------------------------------------------------

    def receive(self, untrusted_data: Buffer) -> list[MuxEvent]:
        """Take bytes from the pipe, in any split; return what they mean.

        :raise RemoteProtocolError: the guest broke the protocol, or a guest found no HELLO for too long. All streams
            are gone; call :meth:`start` or give up.
        """
        if self._state == _FAILED:
            raise LocalProtocolError("the peer broke the protocol; start again first")
        events: list[MuxEvent] = []
        try:
            self._parse(untrusted_data, events)
        except RemoteProtocolError:
            self.abandon()
            raise
        return events

    def _parse(self, untrusted_data: Buffer, events: list[MuxEvent]) -> None:
        if self._partial:
            untrusted_data = self._partial + untrusted_data
            self._partial = b""
        view = memoryview(untrusted_data)
        position = 0
        end = len(view)
        while position < end:
            if self._body_left:
                position += self._take_body(view[position : position + self._body_left], events)
                continue
            if self._state != _IN_SYNC:
                position = self._hunt(untrusted_data, position, events)
                if position < 0:
                    return
                continue
            try:
                size = self._take_frame(view, position, end - position, events)
            except RemoteProtocolError as error:
                if self._is_host:
                    raise
                self._lose_sync(str(error), events)
                continue
            if not size:
                break
            position += size
        self._partial = bytes(view[position:])

    def _lose_sync(self, fault: str, events: list[MuxEvent]) -> None:
        """A guest trusts its host: what it does not understand is a frame whose rest died with an old session.

        So look for the HELLO that should follow, from this very byte on, and ask for one in case none does.
        """
        self.start(pad=False)
        events.append(Reset(fault))

    def _take_frame(self, view: memoryview, position: int, left: int, events: list[MuxEvent]) -> int:
        """Handle the frame at a position with ``left`` bytes from there on, of DATA only the header.

        :return: its size, 0 if it is incomplete.
        """
        if left < HEADER_SIZE:
            return 0
        stream, kind, length = HEADER.unpack_from(view, position)
        if kind == DATA:
            self._begin_data(stream, length)
            return HEADER_SIZE
        if mux_frames.BODY_SIZES.get(kind) != length:
            raise RemoteProtocolError(f"frame of type {kind} with length {length}")
        if left < HEADER_SIZE + length:
            return 0
        body = position + HEADER_SIZE
        self._control(stream, kind, view[body : body + length], events)
        return HEADER_SIZE + int(length)

    def _hunt(self, untrusted_data: Buffer, position: int, events: list[MuxEvent]) -> int:
        """Skip to the next HELLO and handle it; return the position behind it, or -1 if there is none yet."""
        untrusted_data = bytes(untrusted_data)
        found = untrusted_data.find(mux_frames.HELLO_PREFIX, position)
        keep = found if found >= 0 else max(position, len(untrusted_data) - len(mux_frames.HELLO_PREFIX) + 1)
        self._hunted += keep - position
        if self._hunted > limits.MUX_MAX_HUNT:
            raise RemoteProtocolError(f"no HELLO in {self._hunted} bytes")
        if found < 0 or len(untrusted_data) - found < mux_frames.HELLO_SIZE:
            self._partial = untrusted_data[keep:]
            return -1
        self._hello_received(mux_frames.HELLO_BODY.unpack_from(untrusted_data, found + HEADER.size), events)
        return found + mux_frames.HELLO_SIZE

    def _begin_data(self, stream: int, length: int) -> None:
        if not 0 < length <= limits.MUX_MAX_DATA:
            raise RemoteProtocolError(f"DATA of {length} bytes")
        self._count_received(stream, length)
        self._body_stream = stream
        self._body_left = length

    def _count_received(self, stream: int, length: int) -> None:
        state = self._streams.named(stream)
        if state is not None:
            state.count_received(stream, length)

    def _take_body(self, part: memoryview, events: list[MuxEvent]) -> int:
        size = len(part)
        self._body_left -= size
        if self.is_open(self._body_stream):
            # A copy: a small view would keep the whole read alive for as long as the stream's reader pleases.
            data = part if self._views else bytes(part)
            events.append(DataReceived(self._body_stream, data))  # type: ignore[arg-type] # a view reads like bytes
        return size

    def _control(self, stream: int, kind: int, body: memoryview, events: list[MuxEvent]) -> None:
        if kind in (mux_frames.PAD, mux_frames.HELLO):
            if stream:
                raise RemoteProtocolError(f"frame of type {kind} on stream {stream}")
            if kind == mux_frames.PAD:
                self._padded(events)
                return
            if body[: mux_frames.NONCE_SIZE] != mux_frames.MAGIC:
                raise RemoteProtocolError("HELLO without its magic")
            self._hello_received(mux_frames.HELLO_BODY.unpack(body), events)
        elif kind == OPEN:
            port, window = TWO_U32.unpack(body)
            self._opened(stream, port, window, events)
        elif kind == CREDIT:
            self._credited(stream, U32.unpack(body)[0], events)
        elif kind == FIN:
            self._finished(stream, events)
        elif kind in mux_frames.OF_MEMORY:
            self._memory_frame(stream, kind, body, events)
        elif self._streams.named(stream) is not None:
            self._streams.close(stream)
            events.append(StreamReset(stream, U32.unpack(body)[0]))

    def _padded(self, events: list[MuxEvent]) -> None:
        """The peer starts over and a HELLO follows, at any alignment."""
        self._begin_epoch(events)
        self._queue.drop()
        self._state = _HUNTING
        # What answered the last one belongs to the epoch that is over.
        self._nonce = self._make_nonce(mux_frames.NONCE_SIZE)

    def _opened(self, stream: int, port: int, window: int, events: list[MuxEvent]) -> None:
        self._streams.number_seen(stream)
        if not 0 < port <= limits.MUX_MAX_PORT or not 0 < window <= self._max_window:
            raise RemoteProtocolError(f"OPEN of port {port} with window {window}")
        if self._streams.count_of_peer >= self._max_peer_streams:
            self._push_control(stream, RESET, U32.pack(mux_frames.RESET_BUSY))
            return
        own_window = self._streams.add(stream, window, self._max_window)
        if own_window > limits.MUX_INITIAL_CREDIT:
            self._push_control(stream, CREDIT, U32.pack(own_window - limits.MUX_INITIAL_CREDIT))
        events.append(StreamOpened(stream, port))

    def _credited(self, stream: int, amount: int, events: list[MuxEvent]) -> None:
        state = self._streams.named(stream)
        if amount == 0:
            raise RemoteProtocolError(f"empty CREDIT on stream {stream}")
        if state is None:
            return
        if state.send_credit + amount > self._max_window:
            raise RemoteProtocolError(f"too much CREDIT on stream {stream}")
        state.send_credit += amount
        if not state.fin_sent:
            events.append(CreditReceived(stream))

    def _finished(self, stream: int, events: list[MuxEvent]) -> None:
        state = self._streams.named(stream)
        if state is None:
            return
        if state.fin_received:
            raise RemoteProtocolError(f"second FIN on stream {stream}")
        state.fin_received = True
        if state.fin_sent:
            self._streams.close(stream)
        events.append(FinReceived(stream))
