"""Processes for windows, one of which is made before anybody asks.

Connecting to a desktop takes a process a tenth of a second, and somebody waits for a window meanwhile. So after one was
taken another is made for the same desktop, some seconds later: connected, shut in, with no qube's channel yet. It is
taken for the next window there, whose ever it is. There is at most one; where no window was wanted yet there is none.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from insula.gui.control import Configure
from insula.gui.spawn import MAX_PROCESSES, GuiProcess, spawn_gui
from insula.preload.forks import PreloadedParent
from insula.preload.messages import View

DELAY_S = 2.0
"""After a process was taken: what its window waits for comes first."""

log = logging.getLogger("insula.gui")


class Supply:
    """Belongs to one daemon and its event loop; gives away what it makes."""

    def __init__(self, parent: PreloadedParent) -> None:
        """``parent`` stays the caller's."""
        self._parent = parent
        self._spare: tuple[View, GuiProcess] | None = None
        self._numbers: set[int] = set()
        """Of processes that run."""
        self._refill: asyncio.Task[None] | None = None
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def spare_pid(self) -> int | None:
        """Of the one that is nobody's yet."""
        return None if self._spare is None else self._spare[1].pid

    async def close(self) -> None:
        """End the one that is nobody's; idempotent."""
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        await self._drop()
        for watch in tuple(self._watches):
            watch.cancel()

    async def start(self, view: View, configure: Configure, channel: socket.socket, memory: int) -> GuiProcess:
        """A process that shows a qube's windows where ``view`` says; the descriptors stay the caller's.

        :raise OSError: it could not be started, or not in its sandbox.
        """
        process = await self._hand_spare(view, configure, channel, memory)
        if process is None:
            process = await self._make(view)
            try:
                process.hand(configure, channel, memory)
            except BaseException:
                await process.close()
                raise
        if self._refill is not None:
            self._refill.cancel()
        self._refill = asyncio.create_task(self._replenish(view), name="process for the next windows")
        return process

    async def _hand_spare(
        self, view: View, configure: Configure, channel: socket.socket, memory: int
    ) -> GuiProcess | None:
        if self._spare is None or self._spare[0] != view:
            return None
        _, process = self._spare
        self._spare = None
        try:
            process.hand(configure, channel, memory)
        except OSError as error:
            log.info("the process for the next windows is of no use: %s", error)
            await process.close()
            return None
        return process

    async def _replenish(self, view: View) -> None:
        await asyncio.sleep(DELAY_S)
        if self._spare is not None and self._spare[0] == view:
            return
        await self._drop()
        try:
            process = await self._make(view)
        except OSError as error:
            # Whoever asks next is told, if it is still so.
            log.info("no process for the next windows: %s", error)
            return
        self._spare = view, process

    async def _make(self, view: View) -> GuiProcess:
        number = next((n for n in range(MAX_PROCESSES) if n not in self._numbers), None)
        if number is None:
            raise OSError(f"{MAX_PROCESSES} processes show windows already")
        self._numbers.add(number)
        try:
            process = await spawn_gui(self._parent, number, view)
        except BaseException:
            self._numbers.discard(number)
            raise
        watch = asyncio.create_task(self._watch(number, process), name=f"windows' process {process.pid}")
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return process

    async def _watch(self, number: int, process: GuiProcess) -> None:
        """Once it has ended its number is free, and if it was nobody's yet (its desktop has gone), it is not taken."""
        await process.process.wait()
        self._numbers.discard(number)
        if self._spare is not None and self._spare[1] is process:
            await self._drop()

    async def _drop(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare[1].close()
