"""One operation on a volume at a time, first come first served; long background work can see that others wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    """Holder and all who wait."""
    hurried: int = 0
    """Of those who wait, the ones who do not want to wait for background work."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Locks by key that exist only while somebody uses them."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def hold(self, *keys: str, patient: bool = False) -> AsyncIterator[None]:
        """Hold all ``keys`` (taken in sorted order, so two holders never wait for each other).

        :param patient: wait for background work to finish instead of having it step aside.
        """
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self._hold_one(key, patient))
            yield

    async def wanted(self, key: str) -> None:
        """For a holder of ``key``: return as soon as somebody else wants it."""
        await self._turns[key].wanted.wait()

    @asynccontextmanager
    async def _hold_one(self, key: str, patient: bool) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            await self._acquire(turn, patient)
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[key]

    @staticmethod
    async def _acquire(turn: _Turn, patient: bool) -> None:
        if patient:
            await turn.lock.acquire()
            return
        turn.hurried += 1
        turn.wanted.set()
        try:
            await turn.lock.acquire()
        finally:
            turn.hurried -= 1
            if turn.hurried == 0:
                turn.wanted.clear()
