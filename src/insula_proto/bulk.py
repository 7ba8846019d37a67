"""Bulk memory: pages that a qube and its session both see, so that bulk need not go through the pipe between them.

::

    0 ── token ── 1 slot ──── slots the guest writes ──── 8 slots ──── slots the host writes ──── 16 slots

Each slot is written by one side only. Which bytes of which stream are in it, and that the reader is done with them, is
said by frames of the mux (docs/protocols/mux.md), in order with everything else. So nothing in the memory steers
anything: what is read there is payload, whatever it is and even if it changes while it is read. The token at its
beginning is for the guest to know which of its devices it is.

:class:`Slots` keeps the books of one side. Sans I/O; who maps the memory is not known here.
"""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

SIZE = limits.BULK_SIZE
SLOT_SIZE = limits.BULK_SLOT_SIZE
TOKEN_SIZE = 16
_COUNT = SIZE // SLOT_SIZE
_GUEST = range(1, _COUNT // 2)
_HOST = range(_COUNT // 2, _COUNT)


def offset(slot: int) -> int:
    """Where a slot begins, in bytes."""
    return slot * SLOT_SIZE


class Slots:
    """The slots of one side, in one epoch. Slot 0 is none."""

    def __init__(self, *, is_host: bool) -> None:
        own, self._peers = (_HOST, _GUEST) if is_host else (_GUEST, _HOST)
        self._free = list(own)
        self._reserved: set[int] = set()
        self._lent: dict[int, int] = {}
        """Those the peer reads, and the stream each belongs to."""
        self._held: set[int] = set()
        """Those of the peer that we read."""

    def reserve(self) -> int:
        """One that may be written from now on, to be lent or released; 0: none."""
        if not self._free:
            return 0
        slot = self._free.pop()
        self._reserved.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """It is not needed after all; nothing happens if it was not reserved in this epoch."""
        if slot in self._reserved:
            self._reserved.remove(slot)
            self._free.append(slot)

    def lent_for(self, stream: int) -> int:
        """How many the peer reads for a stream."""
        return list(self._lent.values()).count(stream) if self._lent else 0

    def lend(self, slot: int, stream: int) -> None:
        """It was written, and the peer is told. :raise LocalProtocolError: it was not reserved."""
        if slot not in self._reserved:
            raise LocalProtocolError(f"slot {slot} was not reserved")
        self._reserved.remove(slot)
        self._lent[slot] = stream

    def returned(self, slot: int) -> int:
        """The peer is done with it; return the stream it was for. :raise RemoteProtocolError: it had no such slot."""
        stream = self._lent.pop(slot, None)
        if stream is None:
            raise RemoteProtocolError(f"slot {slot} was not lent")
        self._free.append(slot)
        return stream

    def take(self, slot: int, size: int) -> None:
        """The peer has written it. :raise RemoteProtocolError: it is not the peer's to write now, or not so large."""
        if slot not in self._peers or slot in self._held:
            raise RemoteProtocolError(f"slot {slot} is not the peer's to lend")
        if not 0 < size <= SLOT_SIZE:
            raise RemoteProtocolError(f"{size} bytes in a slot")
        self._held.add(slot)

    def give_back(self, slot: int) -> bool:
        """We are done with it; whether the peer is to be told: not of one of an earlier epoch."""
        if slot not in self._held:
            return False
        self._held.remove(slot)
        return True
