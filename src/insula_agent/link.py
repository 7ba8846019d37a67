"""The mux over the device: reads, writes, survives that the host goes away and comes back.

A virtio-serial port shows a host that is not connected as HUP, level-triggered, and reads as empty; then the port is
left alone until something changes. A unix socket (for tests and for other transports) is connected to again.

Its streams are used as :mod:`insula_agent.streams` says.
"""

from __future__ import annotations

import os
import stat

from insula_agent import bulk_memory, conveyor
from insula_agent.log import log
from insula_agent.loop import EDGE, HANGUP, READ, WRITE, Loop, Timer
from insula_agent.streams import StreamHandler, Streams
from insula_proto import bulk, limits
from insula_proto.errors import RemoteProtocolError
from insula_proto.mux import GUEST, Mux
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
    current,
)
from insula_proto.mux_frames import RESET_FAILED, RESET_REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula_proto.mux_queue import Buffer

MAX_WRITE = 32768
"""Bytes the kernel's port driver takes in one write."""
FLUSH_SIZE = 262144
"""Bytes handed to one writev(2), which writes piece after piece to a driver that knows single writes only."""
SMALL_BUFFER = 4096
"""Bytes up to which buffers are joined for a write; larger ones are written as they are."""
PORT_PAGE = 4096
"""The port driver receives into pages and hands out at most one a read (drivers/char/virtio_console.c)."""
READ_PAGES = 64
"""Pages asked for at once: readv(2) reads page after page from a driver that knows single reads only."""
FEW_PAGES = 2
"""…and while there is little: each page asked for costs, wanted or not."""
CONVEYED_HEADER = 64
"""Bytes that the header of conveyed bytes has at most."""
ENOUGH_ROOM = conveyor.SMALLEST + CONVEYED_HEADER
MEMORY_INTERVAL = 0.1
MEMORY_LOOKS = 300
"""How often the memory that the host offers is looked for: it takes a fifth of a second to come, seconds beside a busy
boot."""
HELLO_INTERVAL = 2.0
MAX_HELLO_INTERVAL = 30.0
"""Seconds until a host is asked again for a HELLO, doubling: the agent before this one may have died inside a frame,
whose bytes the first request was taken for."""
RECONNECT_INTERVAL = 0.1
"""Seconds between looks at a port whose host is away."""


class TransportError(Exception):
    """The device cannot be opened, or is gone for good."""


def open_transport(device: str) -> int:
    """Return a non-blocking descriptor for ``PATH`` (character device or unix socket) or ``fd:N``.

    :raise TransportError: it is not there (yet) or neither of these.
    """
    try:
        if device.startswith("fd:"):
            fd = int(device[3:])
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
            return fd
        if stat.S_ISSOCK(os.stat(device).st_mode):
            # The public module ``socket`` costs an import of enum and selectors.
            import _socket  # noqa: PLC0415 - only for transports other than the device

            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                connection.connect(device)
                connection.setblocking(False)
                return connection.detach()
            finally:
                connection.close()
        return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise TransportError(f"{device}: {error}") from error


def _writes(buffers: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes in pieces of the size the driver takes, neighbouring small ones joined."""
    writes: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) <= SMALL_BUFFER:
            small.append(buffer)
            continue
        if small:
            writes.append(b"".join(small))
            small = []
        view = memoryview(buffer)
        writes.extend([view[start : start + MAX_WRITE] for start in range(0, len(view), MAX_WRITE)])
    if small:
        writes.append(b"".join(small))
    return writes


class Link(Streams):
    """``on_sync`` is called when a connection is new and has no streams; ``accept(stream, port)`` returns the handler
    of a stream the host opens, or None to refuse it."""

    def __init__(
        self,
        loop: Loop,
        device: str,
        on_sync: Callable[[], None],
        accept: Callable[[int, int], StreamHandler | None],
        devices: str = bulk_memory.DEVICES,
    ) -> None:
        self._loop = loop
        self._device = device
        self._on_sync = on_sync
        self._accept = accept
        self._mux = Mux(GUEST, views=True)
        self._buffer = memoryview(bytearray(READ_PAGES * PORT_PAGE))
        self._is_busy = False
        """The port held more than a few pages when it was last read."""
        self._pages = [self._buffer[start : start + PORT_PAGE] for start in range(0, len(self._buffer), PORT_PAGE)]
        self._few_pages = self._pages[:FEW_PAGES]
        self._fd = -1
        self._is_device = False
        self._handlers: dict[int, StreamHandler] = {}
        self._blocked: set[int] = set()
        self._conveyor: conveyor.Conveyor | None = None
        """Made when there is bulk to be sent for the first time."""
        self._devices = devices
        self._memory: memoryview | None = None
        """Shared with the host, in this epoch."""
        self._readers: dict[int, conveyor.MessageReader] = {}
        """Of its slots, made when they are first used."""
        self.is_full = False
        """The pipe takes nothing at present."""
        self.epoch = 0
        """Counts connections: what belongs to an earlier one must not speak on this one."""
        self.relays_programs = True
        self._timer: Timer | None = None
        """Until the host has answered the first time; one that comes back greets by itself."""
        loop.before_wait(self.flush)

    def start(self) -> None:
        """Open the transport. :raise TransportError:"""
        self._fd = open_transport(self._device)
        self._is_device = stat.S_ISCHR(os.fstat(self._fd).st_mode)
        self._mux.start(pad=False)
        self._loop.watch(self._fd, READ, self._ready)
        self._await_hello(HELLO_INTERVAL)

    def _await_hello(self, interval: float) -> None:
        self._stop_waiting()
        self._timer = self._loop.after(interval, lambda: self._ask_again(interval))

    def _ask_again(self, interval: float) -> None:
        if self._mux.in_sync:
            return
        # (While the last request is still here, nobody has read it.)
        if not self._mux.queued:
            self._mux.start()
        self._await_hello(min(2 * interval, MAX_HELLO_INTERVAL))

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- streams -------------------------------------------------------------------------------------------------

    def open(self, port: int, handler: StreamHandler) -> int:
        stream = self._mux.open(port)
        self._handlers[stream] = handler
        return stream

    def writable(self, stream: int) -> int:
        return self._mux.writable(stream)

    def send(self, stream: int, *data: bytes) -> None:
        self._mux.send(stream, *data)

    def convey(self, stream: int, pipe: int, make_header: Callable[[int], bytes], *, is_framed: bool = False) -> bool:
        """Send what waits in a process's pipe, as much as may be sent now; False: so little that it is better read.

        ``make_header(size)`` returns what goes before ``size`` bytes on the stream.
        """
        available = conveyor.waiting(pipe) if conveyor.IS_POSSIBLE else 0
        if available < conveyor.SMALLEST:
            return False
        lent = self._mux.lent(stream)
        while self._may_lend(stream, available, lent):
            size = self._lend(stream, pipe, available, None if is_framed else make_header)
            if not size:
                break
            lent += 1
            if lent >= limits.BULK_MAX_LENT:
                return True
            available = conveyor.waiting(pipe)
        if lent:
            return True
        self._conveyor = self._conveyor or conveyor.Conveyor()
        self.flush()
        for _ in range(conveyor.MAX_FRAMED if is_framed else conveyor.MAX_FRAMES):
            room = self._mux.writable(stream) - CONVEYED_HEADER
            size = conveyor.frame_size(min(available, room), is_framed=is_framed)
            if self.is_full or self._mux.queued or not size:
                break
            header = make_header(size)
            header = self._mux.begin(stream, len(header) + size) + header
            rest = self._conveyor.put(header, pipe, size)
            available -= size
            if rest:
                self._mux.complete(rest)
        return True

    def _may_lend(self, stream: int, available: int, lent: int) -> bool:
        """Whether it is worth it, now: a first slot carries what there is, a second one is to be filled."""
        if self._memory is None:
            return False
        if lent:
            enough = conveyor.SMALLEST_AHEAD
            return lent < limits.BULK_MAX_LENT and min(available, self._mux.credit(stream)) >= enough
        return available >= conveyor.SMALLEST_SHARED and self._mux.writable(stream) >= ENOUGH_ROOM

    def _lend(self, stream: int, pipe: int, available: int, make_header: Callable[[int], bytes] | None) -> int:
        """Have the host read what waits in a pipe from shared memory; how many bytes of that are lent, 0: none."""
        slot = self._mux.reserve_slot()
        if not slot or self._memory is None:
            return 0
        reader = self._readers.get(slot)
        if reader is None:
            start = bulk.offset(slot)
            reader = conveyor.MessageReader(self._memory[start : start + bulk.SLOT_SIZE], conveyor.drawer())
            self._readers[slot] = reader
        room = min(self._mux.credit(stream), bulk.SLOT_SIZE)
        try:
            size = (
                reader.read_framed(pipe, room)
                if make_header is None
                else reader.read(pipe, room, available, make_header)
            )
        except OSError:
            # What it is the one who reads will see.
            size = 0
        if size:
            self._mux.send_shared(stream, slot, size)
        else:
            self._mux.release_slot(slot)
        return size

    def has_room(self, stream: int) -> bool:
        """Whether enough can be sent to make it worth to produce more; if not, :meth:`notify_writable` helps."""
        return not self.is_full and self._mux.writable(stream) >= ENOUGH_ROOM

    def consumed(self, stream: int, count: int) -> None:
        self._mux.consumed(stream, count)

    def notify_writable(self, stream: int) -> None:
        """Call the handler's ``writable`` once, as soon as there is room."""
        if self._mux.is_open(stream):
            self._blocked.add(stream)

    def finish(self, stream: int) -> None:
        self._mux.finish(stream)
        if not self._mux.is_open(stream):
            self._handlers.pop(stream, None)

    def reset(self, stream: int, code: int = RESET_FAILED) -> None:
        """Tear the stream down; its handler hears nothing more."""
        self._mux.reset(stream, code)
        self._handlers.pop(stream, None)
        self._blocked.discard(stream)

    # --- input ---------------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        """Read what is there, at most what the buffer takes, and deal with all of it: the buffer is used again."""
        try:
            size = os.readv(self._fd, self._pages if self._is_busy else self._few_pages)
        except BlockingIOError:
            if events & HANGUP:
                self._lost()
        except OSError as error:
            log(f"reading {self._device}: {error}")
            self._lost()
        else:
            if size:
                self._is_busy = size > PORT_PAGE
                self._receive(self._buffer[:size])
            else:
                self._lost()

    def _receive(self, untrusted_data: memoryview) -> None:
        try:
            events = self._mux.receive(untrusted_data)
        except RemoteProtocolError as error:
            log(f"no handshake: {error}")
            self._forget_streams()
            self._mux.start(pad=False)
            return
        received: dict[int, None] = {}
        slots: list[int] = []
        roomy: dict[int, None] = {}
        for event in current(events):
            if isinstance(event, (CreditReceived, SlotFreed)):
                # The two come together: who waits for room is told once.
                roomy[event.stream] = None
                continue
            if isinstance(event, (DataReceived, SharedReceived)):
                received[event.stream] = None
            if isinstance(event, SharedReceived):
                slots.append(event.slot)
            self._dispatch(event)
        for stream in received:
            handler = self._handlers.get(stream)
            if handler is not None:
                handler.data_end(stream)
        for slot in slots:
            # Nothing refers to it any more: what was kept of it was copied.
            self._mux.free(slot)
        for stream in roomy:
            self._notify(stream, may_lend=self._mux.lent(stream) == 1)

    def _dispatch(self, event: MuxEvent) -> None:
        if isinstance(event, DataReceived):
            handler = self._handlers.get(event.stream)
            if handler is not None:
                handler.data(event.stream, event.data)
        elif isinstance(event, SharedReceived):
            handler = self._handlers.get(event.stream)
            if handler is not None and self._memory is not None:
                start = bulk.offset(event.slot)
                handler.data(event.stream, self._memory[start : start + event.size])  # type: ignore[arg-type]
        elif isinstance(event, FinReceived):
            handler = self._handlers.get(event.stream)
            if not self._mux.is_open(event.stream):
                self._handlers.pop(event.stream, None)
            if handler is not None:
                handler.fin(event.stream)
        elif isinstance(event, StreamReset):
            self._blocked.discard(event.stream)
            handler = self._handlers.pop(event.stream, None)
            if handler is not None:
                handler.closed(event.stream, event.code)
        else:
            self._connection_event(event)

    def _connection_event(self, event: MuxEvent) -> None:
        if isinstance(event, StreamOpened):
            self._opened(event)
        elif isinstance(event, Reset):
            log(f"connection starts over{': ' + event.fault if event.fault else ''}")
            self._forget_streams()
        elif isinstance(event, Synced):
            self.epoch += 1
            self._on_sync()
        elif isinstance(event, MemoryOffered):
            self._look_for_memory(event.token, self.epoch, MEMORY_LOOKS)

    def _opened(self, event: StreamOpened) -> None:
        handler = self._accept(event.stream, event.port)
        if handler is None:
            self._mux.reset(event.stream, RESET_REFUSED)
        else:
            self._handlers[event.stream] = handler

    def _notify(self, stream: int, *, may_lend: bool = False) -> None:
        """``may_lend``: it may have room for more of what is lent, if for nothing else."""
        if stream in self._blocked and (may_lend or self._mux.writable(stream)):
            self._blocked.discard(stream)
            handler = self._handlers.get(stream)
            if handler is not None:
                handler.writable(stream)

    def _look_for_memory(self, token: bytes, epoch: int, looks: int) -> None:
        """Map the memory the host offers, and say so; until then, and if it never comes, all goes through the port."""
        if epoch != self.epoch:
            return
        memory = bulk_memory.find(token, self._devices)
        if memory is not None:
            self._memory = memoryview(memory)
            self._mux.accept_memory(token)
        elif looks:
            self._loop.after(MEMORY_INTERVAL, lambda: self._look_for_memory(token, epoch, looks - 1))

    def _forget_streams(self) -> None:
        # Of another epoch: the host's next session may have it write elsewhere.
        self._memory = None
        self._readers.clear()
        handlers, self._handlers = self._handlers, {}
        self._blocked.clear()
        for stream, handler in handlers.items():
            handler.closed(stream, RESET_FAILED)

    # --- output --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write until the pipe is full; streams that waited for the queue to shrink go on."""
        while self._fd >= 0 and (self._mux.queued or self._conveyed):
            try:
                if self._conveyor is not None:
                    self._conveyor.move(self._fd)
                if self._mux.queued:
                    self._mux.sent(os.writev(self._fd, _writes(self._mux.data_to_send(FLUSH_SIZE))))
            except BlockingIOError:
                self.is_full = True
                self._loop.watch(self._fd, READ | WRITE, self._ready)
                return
            except OSError as error:
                log(f"writing {self._device}: {error}")
                self._lost()
                return
            self.is_full = False
            for stream in tuple(self._blocked):
                self._notify(stream)
        if self._fd >= 0:
            self.is_full = False
            self._loop.watch(self._fd, READ, self._ready)

    @property
    def _conveyed(self) -> int:
        """Bytes on the conveyor, which go before everything queued."""
        return 0 if self._conveyor is None else self._conveyor.size

    # --- the host is away ----------------------------------------------------------------------------------------

    def _lost(self) -> None:
        self._stop_waiting()
        self._loop.forget(self._fd)
        if not self._is_device:
            os.close(self._fd)
        fd, self._fd = self._fd, -1
        self.is_full = False
        if self._conveyor is not None:
            self._conveyor.clear()
        for event in self._mux.transport_lost():
            self._dispatch(event)
        if self._is_device:
            self._loop.watch(fd, READ | EDGE, lambda events: self._look(fd, events))
        elif self._device.startswith("fd:"):
            log("the transport was closed")
            self._loop.stop(0)
        else:
            self._loop.after(RECONNECT_INTERVAL, self._reconnect)

    def _look(self, fd: int, events: int) -> None:
        """Something changed at the port; go on if it is that a host has connected again and spoken."""
        if not events & HANGUP:
            self._loop.forget(fd)
            self._fd = fd
            self._loop.watch(fd, READ, self._ready)

    def _reconnect(self) -> None:
        try:
            self.start()
        except TransportError:
            self._loop.after(RECONNECT_INTERVAL, self._reconnect)
