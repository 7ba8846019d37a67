"""What programs record, from the host into the sound server's other FIFO, in a call to ``insula.RecordSound``.

Nobody says that a program records. But the sound server reads its FIFO only then, and the FIFO is kept full: room in it
is the sign. The host gives samples as far as they are granted, and none where this qube does not have the microphone:
then the program hears silence, in its time, and the host is asked again after a while.
"""

from __future__ import annotations

import os
import time

from insula_agent.loop import WRITE
from insula_agent.sound.host_call import HostCall
from insula_proto import sound
from insula_proto.sound import AHEAD, BLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.loop import Loop

IDLE_S = 3.0
"""Seconds nobody takes samples until the call is ended."""
DEAF_S = 5.0
"""Until the host is asked again after it refused, or ended it."""
SETTLE_S = 4.0
"""From our start: a sound server takes samples until it notices that nobody records."""


class Recorder:
    def __init__(self, loop: Loop, fifo: int) -> None:
        """``fifo``: where it does not block, and stays the caller's."""
        self._loop = loop
        self._fifo = fifo
        self._call: HostCall | None = None
        self._pending = b""
        self._taken = 0
        """Bytes the sound server took that were not granted anew."""
        self._deaf_until = time.monotonic() + SETTLE_S
        self._has_ended = False
        self._wait_for_room()

    def close(self) -> None:
        """The sound server has gone."""
        self._has_ended = True
        self._loop.forget(self._fifo)
        self._end_call()

    def _end_call(self) -> None:
        if self._call is not None:
            self._call.wait()
            self._call = None

    def _wait_for_room(self) -> None:
        if not self._has_ended:
            self._loop.watch(self._fifo, WRITE, self._writable)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fifo, data)
        except BlockingIOError:
            return 0

    def _writable(self, events: int) -> None:
        del events
        if self._call is not None:
            self._pass_on(self._call)
        elif time.monotonic() >= self._deaf_until:
            self._begin()
        else:
            self._loop.forget(self._fifo)
            written = self._write(sound.SILENCE)
            self._loop.after(written / BLOCK * sound.BLOCK_MS / 1000, self._wait_for_room)

    # --- while the host records ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._loop.forget(self._fifo)
        self._pending, self._taken = b"", 0
        try:
            self._call = HostCall(self._loop, sound.RECORD_SERVICE, self._came, IDLE_S, self._idle)
            os.write(self._call.stdin, sound.GRANT * AHEAD)
        except OSError:
            self._ended()

    def _came(self) -> None:
        if self._call is None:
            return
        data = os.read(self._call.stdout, AHEAD * BLOCK)
        if not data:
            self._ended()
            return
        if not self._pending:
            self._call.used()
        # (No more comes than was granted.)
        self._pending += data
        self._pass_on(self._call)

    def _pass_on(self, call: HostCall) -> None:
        size = self._write(self._pending) if self._pending else 0
        if size:
            self._pending = self._pending[size:]
            call.used()
            self._taken += size
            grants, self._taken = divmod(self._taken, BLOCK)
            if grants:
                try:
                    os.write(call.stdin, sound.GRANT * grants)
                except BrokenPipeError:
                    # What is read next of the call is its end.
                    self._pending = b""
        if self._pending:
            self._wait_for_room()
        else:
            self._loop.forget(self._fifo)

    def _idle(self) -> bool:
        if not self._pending:
            # It is the host that gives nothing.
            return False
        self._end_call()
        self._pending = b""
        self._wait_for_room()
        return True

    def _ended(self) -> None:
        """The host has ended it, or never began."""
        self._end_call()
        self._deaf_until = time.monotonic() + DEAF_S
        self._wait_for_room()
