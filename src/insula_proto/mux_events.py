"""What a :class:`insula_proto.mux.Mux` reports, and which of it still means something."""

from __future__ import annotations

from insula_proto.value import Value, put


class MuxEvent(Value):
    """Base of what :meth:`Mux.receive` reports."""

    __slots__ = ()


class Synced(MuxEvent):
    """The handshake is complete; there are no streams."""

    __slots__ = ("version",)

    def __init__(self, version: int) -> None:
        self._fill(version=version)

    version: int


class Reset(MuxEvent):
    """The epoch is over: every stream that existed is gone, in both directions.

    ``fault`` is empty when the peer began a new one, else what a guest could not understand (it has asked the host
    for a new handshake then; a host raises RemoteProtocolError instead).
    """

    __slots__ = ("fault",)
    fault: str

    def __init__(self, fault: str = "") -> None:
        self._fill(fault=fault)


class StreamOpened(MuxEvent):
    """The peer opened a stream to ``port``. Use it, or refuse it with :meth:`Mux.reset`."""

    __slots__ = ("port", "stream")

    def __init__(self, stream: int, port: int) -> None:
        self._fill(port=port, stream=stream)

    stream: int
    port: int


class CreditReceived(MuxEvent):
    """The peer is ready for more of ``stream``; look at :meth:`Mux.writable`."""

    __slots__ = ("stream",)

    def __init__(self, stream: int) -> None:
        self._fill(stream=stream)

    stream: int


class DataReceived(MuxEvent):
    """Bytes of ``stream``, never empty; give them back with :meth:`Mux.consumed` once they are done with."""

    __slots__ = ("data", "stream")

    def __init__(self, stream: int, data: bytes) -> None:
        put(self, "data", data)
        put(self, "stream", stream)

    stream: int
    data: bytes


class MemoryOffered(MuxEvent):
    """To a guest: there is memory that begins with ``token``. :meth:`Mux.accept_memory`, if it can be found."""

    __slots__ = ("token",)

    def __init__(self, token: bytes) -> None:
        self._fill(token=token)

    token: bytes


class SharedReceived(MuxEvent):
    """As :class:`DataReceived`, but the ``size`` bytes are at the beginning of a slot of the memory.

    It comes for streams that were closed meanwhile, too: :meth:`Mux.free` is to be called in any case.
    """

    __slots__ = ("size", "slot", "stream")

    def __init__(self, stream: int, slot: int, size: int) -> None:
        self._fill(size=size, slot=slot, stream=stream)

    stream: int
    slot: int
    size: int


class SlotFreed(MuxEvent):
    """The peer is done with a slot that was written for ``stream``."""

    __slots__ = ("stream",)

    def __init__(self, stream: int) -> None:
        self._fill(stream=stream)

    stream: int


class FinReceived(MuxEvent):
    """The peer will send nothing more on ``stream``; our direction stays open."""

    __slots__ = ("stream",)

    def __init__(self, stream: int) -> None:
        self._fill(stream=stream)

    stream: int


class StreamReset(MuxEvent):
    """The peer tore ``stream`` down, both directions at once."""

    __slots__ = ("code", "stream")

    def __init__(self, stream: int, code: int) -> None:
        self._fill(code=code, stream=stream)

    stream: int
    code: int


def current(events: list[MuxEvent]) -> list[MuxEvent]:
    """Those of one :meth:`Mux.receive` that still mean something: from the last :class:`Reset` on.

    A host that repeats its HELLO makes several epochs begin and end in one piece of input. By the time a caller sees
    the events the mux is in the last of them, and acting on an earlier one would act on the wrong streams.
    """
    for index in range(len(events) - 1, 0, -1):
        if isinstance(events[index], Reset):
            return events[index:]
    return events
