"""The open streams of a mux: their numbers, their credit, and the pool their windows come from."""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

LAST_STREAM = 0xFFFFFFFF


class Stream:
    """Counters of one open stream."""

    __slots__ = ("fin_received", "fin_sent", "receive_credit", "send_credit", "unreturned", "window")

    def __init__(self, window: int, send_credit: int) -> None:
        self.window = window
        self.send_credit = send_credit
        self.receive_credit = window
        self.unreturned = 0
        """Bytes consumed by the application and not yet granted again."""
        self.fin_sent = False
        self.fin_received = False

    def count_received(self, stream: int, length: int) -> None:
        """:raise RemoteProtocolError: these bytes may not come."""
        if self.fin_received:
            raise RemoteProtocolError(f"DATA after FIN on stream {stream}")
        if length > self.receive_credit:
            raise RemoteProtocolError(f"stream {stream} sends beyond its credit")
        self.receive_credit -= length

    def count_consumed(self, stream: int, count: int) -> int:
        """What to grant again now, in large steps; 0: nothing yet.

        :raise LocalProtocolError: more than was received.
        """
        self.unreturned += count
        if self.unreturned + self.receive_credit > self.window:
            raise LocalProtocolError(f"more consumed on stream {stream} than was received")
        if self.unreturned * 2 < self.window:
            return 0
        grant, self.unreturned = self.unreturned, 0
        self.receive_credit += grant
        return grant


class Streams:
    """Those of one epoch. The host's have even numbers, the guest's odd ones, both strictly rising."""

    def __init__(self, *, is_host: bool) -> None:
        self._is_host = is_host
        self.by_number: dict[int, Stream] = {}
        self._next = 2 if is_host else 1
        self._last_of_peer = 0
        self.count_of_peer = 0
        """Streams open that the peer has opened."""
        self.granted = 0
        """Bytes of the pool that windows have."""

    def new_number(self) -> int:
        """The next of ours. :raise LocalProtocolError: they are used up."""
        stream = self._next
        if stream > LAST_STREAM:
            raise LocalProtocolError("stream numbers are used up; resync")
        self._next += 2
        return stream

    def number_seen(self, stream: int) -> None:
        """The peer opens that one. :raise RemoteProtocolError: it is none of its, or was used."""
        if not self._is_peers(stream) or stream <= self._last_of_peer:
            raise RemoteProtocolError(f"stream {stream} cannot be opened")
        self._last_of_peer = stream

    def add(self, stream: int, send_credit: int, max_window: int) -> int:
        """It is open now; return the window it got."""
        window = self._new_window(max_window)
        self.by_number[stream] = Stream(window, send_credit)
        if self._is_peers(stream):
            self.count_of_peer += 1
        return window

    def _new_window(self, max_window: int) -> int:
        """What to promise for one more stream: a share of what is left of the pool, which bounds the sum."""
        share = (limits.MUX_WINDOW_POOL - self.granted) // limits.MUX_WINDOW_SHARE
        if share <= limits.MUX_SMALL_WINDOW:
            return limits.MUX_SMALL_WINDOW
        window = min(share, max_window)
        self.granted += window
        return window

    def close(self, stream: int) -> None:
        state = self.by_number.pop(stream)
        if state.window > limits.MUX_SMALL_WINDOW:
            self.granted -= state.window
        if self._is_peers(stream):
            self.count_of_peer -= 1

    def _is_peers(self, stream: int) -> bool:
        return bool(stream % 2) == self._is_host

    def ours(self, stream: int) -> Stream:
        """One that we use. :raise LocalProtocolError: it is not open."""
        state = self.by_number.get(stream)
        if state is None:
            raise LocalProtocolError(f"stream {stream} is not open")
        return state

    def named(self, stream: int) -> Stream | None:
        """One that a frame names; None if it was closed: frames may still be under way then.

        :raise RemoteProtocolError: it was never opened.
        """
        state = self.by_number.get(stream)
        if state is not None:
            return state
        known = stream <= self._last_of_peer if self._is_peers(stream) else 0 < stream < self._next
        if not known:
            raise RemoteProtocolError(f"stream {stream} was never opened")
        return None
