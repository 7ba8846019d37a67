"""Keys and headers of encrypted layers, made before anybody needs them: a disposable needs three in the midst of its
start, and each takes one to two milliseconds of the daemon.

A spare is a key like any other: drawn at random, used for one layer, in no file. It only is in memory a while longer.
"""

from __future__ import annotations

import asyncio
from collections import deque

from insula.model.block import new_key
from insula.storage import luks

Spare = tuple[bytes, luks.Header]
WANTED = 12
"""Four disposables with three disks each; 125 KiB a spare."""
QUIET_S = 3.0
"""After one was taken, before others are made: people come first."""


class SpareHeaders:
    """Belongs to one pool and its event loop; none is made before the first was asked for."""

    def __init__(self) -> None:
        self._spares: deque[Spare] = deque()
        self._refilling: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._spares)

    def take(self) -> Spare:
        """A key that nobody has and the header that it opens. In any thread."""
        try:
            return self._spares.popleft()
        except IndexError:
            return _make()

    def refill_later(self) -> None:
        """Have some again, soon."""
        if self._refilling is None or self._refilling.done():
            self._refilling = asyncio.create_task(self._refill(), name="spare headers of encrypted layers")

    async def aclose(self) -> None:
        """Stop making them, forget those there are."""
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        self._spares.clear()

    async def _refill(self) -> None:
        await asyncio.sleep(QUIET_S)
        while len(self._spares) < WANTED:
            self._spares.append(await asyncio.to_thread(_make))


def _make() -> Spare:
    key = new_key()
    return key, luks.new_header(key)
