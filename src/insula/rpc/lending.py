"""Slots lent to callers: what a qube wrote into shared memory need not be copied into a socket and out of it again.

On a call's connection to ``rpc.sock`` once the call was accepted, little-endian::

    caller ── 0 ──────────────────────► I can read the memory
           ◄── slot, size, position ───  those bytes of the data channel are at the beginning of that slot
           ── slot ───────────────────► I have dealt with them, or copied them

The position is counted in bytes of the data channel, of which the socket has the others, in order. With the first
message comes the descriptor of the memory (:mod:`insula_proto.bulk`). Both ends are ours: a caller that says nothing
finds everything in the socket.

What is in the memory was written by the qube, which may change it while it is read: whoever takes it apart looks at
each byte once. Nor does a caller trust the session, which takes apart what a qube says: it looks at the memory's size
and seals before it maps it, and at every number.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from insula_proto import bulk, limits
from insula_proto.errors import RemoteProtocolError

WORD = struct.Struct("<I")
LOAN = struct.Struct("<IIQ")
MAX_LENT = 4
"""Slots that callers of a qube have at a time, so that one who does not read leaves some of its seven to others."""
SMALLEST = 131072
"""Bytes below which copying them twice costs less than saying where they are."""
READ_SIZE = 4096
"""Bytes, of which a session has never said so many at once."""
_READY = 0


class Loan(NamedTuple):
    slot: int
    size: int
    """Bytes."""
    position: int
    """Of the first of them in the data channel."""


# --- the session's end ---------------------------------------------------------------------------------------------


class Lender:
    """What all callers of a session have in common."""

    def __init__(self) -> None:
        self.descriptor = -1
        """Of the memory, once there is some."""
        self.lent = 0

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Borrower:
    """One caller, as its session sees it. ``connection`` stays the owner's."""

    def __init__(self, connection: socket.socket, lender: Lender) -> None:
        self._connection = connection
        self._lender = lender
        self._is_ready = False
        self._has_descriptor = False
        self._partial = b""
        self._sizes: dict[int, int] = {}
        self._over: set[int] = set()
        """Lent when the call ended: what is still said of them was on its way."""
        self.on_returned: Callable[[int, int], None] | None = None
        """Told of each slot that comes back, and of how many bytes it had."""

    def lend(self, slot: int, size: int, position: int) -> bool:
        """Tell the caller where its next bytes are; false: it must be given them."""
        lender = self._lender
        if not self._is_ready or size < SMALLEST or lender.lent >= MAX_LENT or lender.descriptor < 0:
            return False
        message = LOAN.pack(slot, size, position)
        try:
            if self._has_descriptor:
                self._connection.send(message)
            else:
                socket.send_fds(self._connection, [message], [lender.descriptor])
                self._has_descriptor = True
        except OSError:
            # It has gone, or does not read. (So few fit a socket's buffer whole.)
            self._is_ready = False
            return False
        self._sizes[slot] = size
        lender.lent += 1
        return True

    def receive(self, data: bytes) -> None:
        """What the caller says. :raise RemoteProtocolError: it returns what it has not."""
        data = self._partial + data
        whole = len(data) - len(data) % WORD.size
        self._partial = data[whole:]
        for (slot,) in WORD.iter_unpack(data[:whole]):
            if slot == _READY:
                self._is_ready = True
            elif slot in self._sizes:
                size = self._sizes.pop(slot)
                self._lender.lent -= 1
                if self.on_returned is not None:
                    self.on_returned(slot, size)
            elif slot in self._over:
                self._over.remove(slot)
            else:
                raise RemoteProtocolError(f"slot {slot} was not lent")

    def take_back(self) -> tuple[int, ...]:
        """The call is over: the slots that were not returned. Nothing is lent any more."""
        slots = tuple(self._sizes)
        self._lender.lent -= len(slots)
        self._over.update(slots)
        self._sizes.clear()
        self._is_ready = False
        self.on_returned = None
        return slots


# --- the caller's end ----------------------------------------------------------------------------------------------


class Loans:
    """What a session has lent to one call, in the order of the data channel. ``connection`` stays the owner's."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self.fd = connection.fileno()
        """Readable when there is something to :meth:`hear`."""
        self.is_over = False
        """Nothing more can come."""
        self._partial = b""
        self._due: deque[Loan] = deque()
        self._memory: memoryview | None = None
        self._has_asked = False

    def ask(self) -> None:
        """Be lent memory from now on, if there is some; said once."""
        if not self._has_asked:
            self._has_asked = True
            self._say(_READY)

    def _say(self, word: int) -> None:
        try:
            self._connection.send(WORD.pack(word))
        except OSError:
            # The session has gone, and with it the data channel, which is where that is noticed.
            return

    def hear(self) -> None:
        """Take notice of what was lent. :raise RemoteProtocolError: it cannot be. :raise OSError: no memory is left."""
        while not self.is_over:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._connection, READ_SIZE, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            for descriptor in descriptors:
                self._map(descriptor)
            self.is_over = not data
            data = self._partial + data
            whole = len(data) - len(data) % LOAN.size
            self._partial = data[whole:]
            self._due.extend([Loan(*fields) for fields in LOAN.iter_unpack(data[:whole])])
            if len(self._due) > MAX_LENT:
                raise RemoteProtocolError(f"{len(self._due)} slots are lent")
            if not descriptors:
                return  # Else what was said later is still there: a message with a descriptor is read alone.

    def _map(self, descriptor: int) -> None:
        try:
            if self._memory is not None:
                raise RemoteProtocolError("a second memory")
            # What cannot shrink can be read without an end by SIGBUS.
            if not _seals(descriptor) & fcntl.F_SEAL_SHRINK or os.fstat(descriptor).st_size < limits.BULK_SIZE:
                raise RemoteProtocolError("no memory of a qube, or not sealed")
            self._memory = memoryview(mmap.mmap(descriptor, limits.BULK_SIZE, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def ahead(self, position: int) -> int | None:
        """How many bytes of the data channel come before those lent next; None: none are lent.

        :raise RemoteProtocolError: their place has gone by.
        """
        if not self._due:
            return None
        if self._due[0].position < position:
            raise RemoteProtocolError(f"bytes lent for {self._due[0].position}, at {position}")
        return self._due[0].position - position

    def take(self) -> tuple[Loan, memoryview]:
        """The next lent bytes, which are there until :meth:`give_back`. :raise RemoteProtocolError: they cannot be."""
        loan = self._due.popleft()
        start = bulk.offset(loan.slot)
        if self._memory is None or not 0 < loan.size <= bulk.SLOT_SIZE or start + loan.size > len(self._memory):
            raise RemoteProtocolError(f"{loan.size} bytes in slot {loan.slot}")
        return loan, self._memory[start : start + loan.size]

    def give_back(self, loan: Loan) -> None:
        self._say(loan.slot)


def _seals(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return 0  # no memory file at all
