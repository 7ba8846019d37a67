"""Between a data stream of the qube and a socket: the bytes of one call, moved and not looked at.

The socket's other end has a client of ``rpc.sock``, or the session of another qube. Neither side is read while the
other does not take (MC-14): towards the qube the stream's credit is the bound, towards the socket its buffer and the
window of the stream.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from insula.rpc.channel import Channel, Slot, StreamHandler
from insula.rpc.lending import Borrower

READ_SIZE = 65536
BULK = 2097152
"""Bytes after which a call counts as large, and memory is asked for that qube and session share."""
BULK_BUFFER = 1114112
"""Bytes the socket of a large call is asked to hold, as far as this machine lets it: a slot of the memory with what the
kernel needs for it, so that a slot is sent once and nothing of it is kept here."""
SMALL = 4096
"""Bytes from the guest up to which they wait for what else came with them: a caller is woken once."""


class RelayOwner(Protocol):
    def relay_closed(self, port: int) -> None:
        """Nothing more is moved; said once."""


class Relay(StreamHandler):
    """One call. Opens its stream to ``port``; takes over ``connection``.

    ``peer_serves``: at the socket's other end is the service, not the caller, so its end of file is the end of output,
    which the qube is to read to its last byte. A caller that goes, on the other hand, wants the service ended.

    ``borrower``: the peer may be lent memory that the qube wrote.
    """

    def __init__(
        self,
        channel: Channel,
        connection: socket.socket,
        owner: RelayOwner,
        port: int,
        *,
        peer_serves: bool = False,
        borrower: Borrower | None = None,
    ) -> None:
        connection.setblocking(False)
        self._channel = channel
        self._connection = connection
        # The number, because asyncio words an error with the socket's addresses for each one it does not know yet.
        self._fd = connection.fileno()
        self._owner = owner
        self._port = port
        self._peer_serves = peer_serves
        self._borrower = borrower
        if borrower is not None:
            borrower.on_returned = self._returned
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        """From the qube, not taken by the peer yet; at most the stream's window, however small the pieces were."""
        self._qube_finished = False
        self._peer_finished = False
        self._is_closed = False
        self._is_bulk = False
        self._slot: Slot | None = None
        self._filled = 0
        """Bytes in it."""
        self.from_qube = 0
        """Bytes the qube sent."""
        self.to_qube = 0
        self.stream = channel.open(port, self)
        self._loop.add_reader(self._fd, self._readable)

    # peer to qube

    def _readable(self) -> None:
        room = self._channel.writable(self.stream)
        if self._is_bulk and self._slot is None:
            self._slot = self._channel.slot(self.stream)
        try:
            if self._slot is not None:
                size = self._fill(self._slot)
            elif room:
                size = self._read(min(room, READ_SIZE))
            else:
                # Not read while the qube does not: the peer is paced by its socket buffer (MC-14).
                self._wait_for_room()
                return
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size:
            self._count(to_qube=size)
        elif self._filled:
            # What it said before goes first; then its end is met again.
            self._wait_for_room()
        elif self._peer_serves:
            self._end_of_service()
        else:
            self.caller_gone()

    def _wait_for_room(self) -> None:
        self._loop.remove_reader(self._fd)
        self._channel.notify_writable(self.stream)

    def _read(self, limit: int) -> int:
        """:raise OSError:"""
        data = self._connection.recv(limit)
        if data:
            self._channel.send(self.stream, data)
        return len(data)

    def _fill(self, slot: Slot) -> int:
        """Read all that is there and send it; as long as the qube reads the last slot, more is read until this one is
        full, so that it is woken once for much. :raise OSError: nothing was read."""
        size = 0
        try:
            while self._filled < len(slot.view) and (more := self._connection.recv_into(slot.view[self._filled :])):
                self._filled += more
                size += more
        except OSError:
            if not size:
                raise
        if self._channel.writable(self.stream):
            self._send_slot()
        elif self._filled == len(slot.view):
            self._wait_for_room()
        else:
            self._channel.notify_writable(self.stream)
        return size

    def _send_slot(self) -> None:
        if self._slot is not None and self._filled:
            self._channel.send_slot(self.stream, self._slot, self._filled)
            self._slot, self._filled = None, 0

    def _count(self, *, from_qube: int = 0, to_qube: int = 0) -> None:
        self.from_qube += from_qube
        self.to_qube += to_qube
        # (More than a frame at once comes from the memory: such a call is large from its beginning.)
        if not self._is_bulk and (self.from_qube + self.to_qube >= BULK or from_qube > READ_SIZE):
            self._is_bulk = True
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BULK_BUFFER)
            self._channel.want_memory()

    def caller_gone(self) -> None:
        """A data channel has no half-close: a caller that closed it before the end wants the command ended."""
        if self._is_closed:
            return
        if self._qube_finished and not self._pending:
            self._channel.finish(self.stream)
        else:
            self._channel.reset(self.stream)
        self._close()

    def _end_of_service(self) -> None:
        self._peer_finished = True
        self._loop.remove_reader(self._fd)
        self._channel.finish(self.stream)
        self._close_if_finished()

    def writable(self) -> None:
        if not self._is_closed:
            self._send_slot()
            self._loop.add_reader(self._fd, self._readable)

    # qube to peer

    def slot(self, number: int, untrusted_view: memoryview) -> bool:
        size = len(untrusted_view)
        if self._borrower is None or not self._borrower.lend(number, size, self.from_qube):
            self.view(untrusted_view)
            return False
        self._count(from_qube=size)
        return True

    def _returned(self, number: int, size: int) -> None:
        self._channel.consumed(self.stream, size)
        self._channel.free(number)

    def view(self, untrusted_view: memoryview) -> None:
        self._count(from_qube=len(untrusted_view))
        sent = 0
        if not self._pending and len(untrusted_view) <= SMALL:
            self._loop.call_soon(self._deliver)
        elif not self._pending:
            # What the peer takes at once, nearly always all, is not copied.
            sent = self._send(untrusted_view)
            if self._is_closed or sent == len(untrusted_view):
                return
            self._loop.add_writer(self._fd, self._deliver)
        self._pending += untrusted_view[sent:]

    def fin(self) -> None:
        self._qube_finished = True
        if not self._pending:
            self._end_of_output()

    def closed(self) -> None:
        self._deliver()
        self._close()

    def _send(self, untrusted_data: memoryview | bytearray) -> int:
        """Give the peer what it takes now, and as much credit to the qube; return how much that was."""
        try:
            sent = self._connection.send(untrusted_data)
        except BlockingIOError:
            return 0
        except OSError:
            if not self._peer_serves:
                self.caller_gone()
                return 0
            # The service takes nothing more. What it said before may still be here, to be read.
            sent = len(untrusted_data)
        self._channel.consumed(self.stream, sent)
        return sent

    def _deliver(self) -> None:
        if self._is_closed or not self._pending:
            return
        del self._pending[: self._send(self._pending)]
        if self._is_closed:
            return
        if self._pending:
            self._loop.add_writer(self._fd, self._deliver)
            return
        self._loop.remove_writer(self._fd)
        if self._qube_finished:
            self._end_of_output()

    def _end_of_output(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            if not self._peer_serves:
                self.caller_gone()
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._peer_finished and self._qube_finished and not self._pending:
            self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._connection.close()
        self._pending.clear()
        if self._slot is not None:
            self._channel.release_slot(self._slot)
            self._slot = None
        if self._borrower is not None:
            for number in self._borrower.take_back():
                self._channel.free(number)
        self._owner.relay_closed(self._port)
