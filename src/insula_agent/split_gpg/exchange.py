"""Carries descriptors over one channel, both ways, on either side of split GPG.

Nothing is buffered without bound: the channel is read only while no descriptor owes what it was sent, descriptors only
while the channel does not. Writes are of at most 4096 bytes to what poll(2) says is writable, which neither a pipe nor
a socket then blocks on; so neither side ever waits for anything but its own readers and writers.
"""

from __future__ import annotations

import os
import select

from insula_proto import limits, split_gpg
from insula_proto.split_gpg import Closed, Data, FrameDecoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 65536
_GONE = select.POLLERR | select.POLLNVAL
_READABLE = select.POLLIN | select.POLLHUP


class PeerGone(Exception):
    """The channel has ended before the work has."""


class Exchange:
    """``sources`` are read and sent, ``sinks`` written; each list in the order that both sides know.

    All descriptors are the exchange's from now on, and closed by it.
    """

    def __init__(
        self, channel: tuple[int, int], sources: Sequence[int], sinks: Sequence[int], *, is_client: bool
    ) -> None:
        self._channel_in, self._channel_out = channel
        self._sources = {fd: index for index, fd in enumerate(sources)}
        self._sinks = list(sinks)
        self._closing: set[int] = set()
        """Sinks that nothing more comes for."""
        self._closed: set[int] = set()
        self._queues: dict[int, bytes] = dict.fromkeys(sinks, b"")
        self._output = b""
        """Frames for the channel."""
        self._decoder = FrameDecoder(len(sinks), is_client=is_client)
        self._is_client = is_client
        self.status: int | None = None
        """What the server said gpg ended with."""

    def run(self) -> None:
        """Until all sources are at their end (server), or the server has said how gpg ended (client).

        :raise PeerGone: the channel ended before. :raise RemoteProtocolError:
        """
        while not self._is_over():
            interest = self._interest()
            watched = select.poll()
            for fd, events in interest.items():
                watched.register(fd, events)
            for fd, events in watched.poll():
                self._serve(fd, events)

    def send_status(self, status: int) -> None:
        """Say how gpg ended, after all that it wrote."""
        self._output += split_gpg.encode_exited(status)
        while self._output:
            self._output = self._output[os.write(self._channel_out, self._output[: limits.GPG_MAX_DATA]) :]

    def close(self) -> None:
        """Close what is still open of sources and sinks."""
        for fd in [*self._sources, *self._sinks]:
            if fd not in self._closed:
                os.close(fd)
        self._sources.clear()
        self._closed.update(self._sinks)

    def _is_over(self) -> bool:
        if self._is_client:
            return self.status is not None and not any(self._queues.values())
        return not self._sources and not self._output

    def _interest(self) -> dict[int, int]:
        """What is waited for, by descriptor; a socket may be both ends of the channel."""
        interest: dict[int, int] = {}
        owed = [fd for fd, queue in self._queues.items() if queue]
        if not owed and self.status is None:
            interest[self._channel_in] = select.POLLIN
        if self._output:
            interest[self._channel_out] = interest.get(self._channel_out, 0) | select.POLLOUT
        elif self.status is None:
            for fd in self._sources:
                interest[fd] = select.POLLIN
        for fd in owed:
            interest[fd] = select.POLLOUT
        return interest

    def _serve(self, fd: int, events: int) -> None:
        if fd in self._queues and events & (select.POLLOUT | _GONE):
            self._write_sink(fd, events)
        elif fd in self._sources:
            self._read_source(fd)
        else:
            if fd == self._channel_out and events & (select.POLLOUT | _GONE) and self._output:
                self._write_channel()
            if fd == self._channel_in and events & (_READABLE | _GONE):
                self._read_channel()

    def _read_source(self, fd: int) -> None:
        data = os.read(fd, limits.GPG_MAX_DATA)
        index = self._sources[fd]
        if data:
            self._output += split_gpg.encode_data(index, data)
        else:
            self._output += split_gpg.encode_closed(index)
            del self._sources[fd]
            os.close(fd)

    def _write_channel(self) -> None:
        try:
            self._output = self._output[os.write(self._channel_out, self._output[: limits.GPG_MAX_DATA]) :]
        except BrokenPipeError as error:
            raise PeerGone("the other side has gone") from error

    def _read_channel(self) -> None:
        untrusted_data = os.read(self._channel_in, CHUNK)
        if not untrusted_data:
            self._decoder.end()
            raise PeerGone("the other side has gone")
        for frame in self._decoder.receive(untrusted_data):
            if isinstance(frame, Data):
                fd = self._sinks[frame.index]
                # One whose reader has gone takes it all.
                if fd not in self._closed:
                    self._queues[fd] += frame.data
            elif isinstance(frame, Closed):
                fd = self._sinks[frame.index]
                self._closing.add(fd)
                self._close_if_done(fd)
            else:
                self.status = frame.status

    def _write_sink(self, fd: int, events: int) -> None:
        if events & select.POLLOUT:
            try:
                self._queues[fd] = self._queues[fd][os.write(fd, self._queues[fd][: limits.GPG_MAX_DATA]) :]
            except BrokenPipeError:
                self._drop_sink(fd)
        else:
            self._drop_sink(fd)
        self._close_if_done(fd)

    def _drop_sink(self, fd: int) -> None:
        """Its reader wants no more."""
        self._queues[fd] = b""
        self._closing.add(fd)

    def _close_if_done(self, fd: int) -> None:
        if fd in self._closing and not self._queues[fd] and fd not in self._closed:
            self._closed.add(fd)
            os.close(fd)
