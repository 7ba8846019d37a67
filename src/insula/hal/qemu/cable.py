"""The far end of a machine's interface, held by the daemon beside whoever uses it, so that it can be cut cleanly.

QEMU 7.2 forgets to write on: where a connection ends while a frame is only half written, or waits to be, the interface
sends nothing over the next connection either, for ever, and what it would send begins in the middle of that frame
(``net/stream.c``: the end of a connection takes away what would go on writing, and leaves ``send_index``). A net qube
that is killed while a client sends much is just that. So a cable does not end with its net qube. It is *cut*: what is
on its way is thrown away, and what is written from then on is refused (EPIPE), which QEMU takes for sent. It ends when
QEMU has had its turn.
"""

from __future__ import annotations

import socket
from contextlib import suppress

_PIECE = 65536
"""Bytes thrown away at a time."""


class Cable:
    """Owns a connection to a machine's interface; the same open socket is handed to whoever is to use it."""

    def __init__(self, end: socket.socket) -> None:
        """:param end: non-blocking; taken over."""
        self._end = end
        self.is_cut = False

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def name(self) -> bytes | str:
        """Of this end, as the other one sees it."""
        name: bytes | str = self._end.getsockname()
        return name

    def cut(self) -> None:
        """Nobody uses this end any more. Waits for nothing; idempotent, also after :meth:`close`."""
        if self.is_cut:
            return
        self.is_cut = True
        # What raises: the machine has ended, and its interface with it.
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RD)
            # Nothing is added any more.
            while self._end.recv(_PIECE):
                pass

    def close(self) -> None:
        """Let go of it: it ends with the last who has it. Idempotent."""
        self._end.close()
