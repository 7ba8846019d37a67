"""What a forked process prints, for the log: the end of it is kept."""

from __future__ import annotations

import asyncio
import os

MAX_KEPT = 65536
"""Bytes."""


class LastWords:
    """Reads until nobody can print any more; takes over ``reader``, a pipe whose reading end does not block."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.data = b""
        self._loop.add_reader(reader, self._readable)

    def _readable(self) -> None:
        data = os.read(self._reader, 4096)
        self.data = (self.data + data)[-MAX_KEPT:]
        if not data:
            self.close()

    def close(self) -> None:
        """Stop reading; idempotent."""
        if not self._ended.is_set():
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._ended.set()

    async def wait(self) -> None:
        """Return when nobody can print any more."""
        await self._ended.wait()
