"""Sound between a qube and the host: two services of the host, whose streams have samples one way and grants the other.

The format is fixed (:data:`FORMAT`), so nobody takes anything apart: samples are opaque bytes in whole frames. Who
plays sends no sample unasked: each byte that comes the other way, whatever its value, is a *grant* of :data:`BLOCK`
bytes more, and at most :data:`AHEAD` of these are open at a time. So the host's sound server sets the pace, and what
lies between a program and the loudspeaker is bounded (:data:`AHEAD_S`) though every pipe on the way is longer.
"""

from __future__ import annotations

PLAY_SERVICE = "insula.PlaySound"
RECORD_SERVICE = "insula.RecordSound"
FORMAT = "s16le"
"""Signed, 16 bits, little-endian, channels by turns."""
RATE = 48000
CHANNELS = 2
FRAME = 2 * CHANNELS
"""Bytes of a sample of all channels."""
BLOCK_MS = 20
BLOCK = RATE * BLOCK_MS // 1000 * FRAME
"""Bytes of a grant."""
AHEAD = 8
AHEAD_S = AHEAD * BLOCK_MS / 1000
"""Seconds of sound that are granted and not heard yet: as long as a busy machine may keep one of the processes between
from running before it is heard."""
GRANT = b"\1"
SILENCE = b"\0" * BLOCK


class Grants:
    """Counts what may be sent; at the end of the samples."""

    def __init__(self) -> None:
        self.room = 0
        """Bytes that may be sent."""

    def receive(self, untrusted_data: bytes) -> None:
        """One that grants more than it may is given no more than that."""
        self.room = min(self.room + len(untrusted_data) * BLOCK, AHEAD * BLOCK)

    def sent(self, size: int) -> None:
        assert size <= self.room
        self.room -= size
