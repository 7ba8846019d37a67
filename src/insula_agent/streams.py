"""Flow-controlled byte streams to the host and to other ends of calls, whatever carries them.

Each stream has a :class:`StreamHandler`; what it may not send yet waits in a :class:`StreamWriter`. :class:`Streams` is
what :mod:`insula_agent.link` (the mux over the port of a machine) and :mod:`insula_agent.vchan_link` (a unix socket for
each stream) have in common.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESET_FAILED = 3
"""Code of a stream that is torn down because something went wrong (docs/protocols/mux.md)."""


class StreamHandler:
    """What happens to a stream; override what matters."""

    def data(self, stream: int, data: bytes) -> None:
        """Bytes came; they count against the window until :meth:`Streams.consumed`.

        ``data`` is a view of bytes, valid until :meth:`data_end`: whoever wants to keep some makes a copy.
        """

    def data_end(self, stream: int) -> None:
        """All that came at once was handed over: what was kept of it must be copied now."""

    def fin(self, stream: int) -> None:
        """The host sends nothing more."""

    def writable(self, stream: int) -> None:
        """The stream may have room again (asked for by :meth:`Streams.notify_writable`)."""

    def closed(self, stream: int, code: int) -> None:
        """The stream was reset by the host, or lost with the connection."""


class Streams:
    """Streams are numbers; what is asked of one that is closed does nothing."""

    epoch = 0
    """Counts connections to the host: what belongs to an earlier one must not speak on this one."""
    host_connects = False
    """The stream to the host is the host's to open: a lost one comes back by itself."""
    relays_programs = False
    """Programs of this qube cannot reach the other ends of calls by themselves: their data streams end here."""

    def open(self, port: int, handler: StreamHandler) -> int:
        """Open a stream to the host."""
        raise NotImplementedError

    def connect(self, domain: int, port: int, handler: StreamHandler) -> int:
        """Open the data stream of a call that the host named, where that is ours to do; 0: the host opens it."""
        del domain, port, handler
        return 0

    def writable(self, stream: int) -> int:
        """Bytes that may be sent now."""
        raise NotImplementedError

    def send(self, stream: int, *data: bytes) -> None:
        """Send in order, no more than :meth:`writable` says."""
        raise NotImplementedError

    def convey(self, stream: int, pipe: int, make_header: Callable[[int], bytes], *, is_framed: bool = False) -> bool:
        """Send what waits in a process's pipe, as much as may be sent now; False: so little that it is better read.

        ``make_header(size)`` returns what goes before ``size`` bytes on the stream. ``is_framed``: what is in the pipe
        has headers already, written by a program that conveys too.
        """
        del stream, pipe, make_header, is_framed
        return False

    def has_room(self, stream: int) -> bool:
        """Whether enough can be sent to make it worth to produce more; if not, :meth:`notify_writable` helps."""
        raise NotImplementedError

    def notify_writable(self, stream: int) -> None:
        """Call the handler's ``writable`` once, as soon as there is room."""
        raise NotImplementedError

    def consumed(self, stream: int, count: int) -> None:
        """Be ready for so many more bytes."""
        raise NotImplementedError

    def finish(self, stream: int) -> None:
        """Nothing more is sent; what was sent still arrives."""
        raise NotImplementedError

    def reset(self, stream: int, code: int = RESET_FAILED) -> None:
        """Tear the stream down; its handler hears nothing more."""
        raise NotImplementedError


class StreamWriter:
    """Bytes on their way into a stream, kept until credit comes.

    Bounded by its users: each asks :attr:`is_empty` before it produces more.
    """

    def __init__(self, link: Streams, stream: int) -> None:
        self._link = link
        self._stream = stream
        self._pending: list[bytes] = []

    @property
    def is_empty(self) -> bool:
        return not self._pending

    def write(self, *data: bytes) -> None:
        """Send in order; what belongs together goes in one frame if the stream has room for all of it."""
        if not self._pending and sum([len(piece) for piece in data]) <= self._link.writable(self._stream):
            self._link.send(self._stream, *data)
            return
        self._pending.extend(data)
        self.flush()

    def flush(self) -> None:
        """Send what may be sent; ask to be called again for the rest."""
        done = 0
        for data in self._pending:
            room = self._link.writable(self._stream)
            if room < len(data):
                if room:
                    self._link.send(self._stream, data[:room])
                    self._pending[done] = data[room:]
                self._link.notify_writable(self._stream)
                break
            self._link.send(self._stream, data)
            done += 1
        del self._pending[:done]
