"""The bus: who publishes events and who listens never meet.

``publish`` hands the event to a bounded queue per listener and returns at once; it never waits and never
fails because of a listener. A listener that falls behind is not fed gaps: its queue is emptied and it is told
by :class:`Overrun`, once, after which it is off the bus. Whoever shows a state must then load it anew, as
clients do after a reconnect.

Everything happens on one asyncio loop; other threads use ``loop.call_soon_threadsafe(bus.publish, event)``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Self

from insula.events.types import Event

MAX_QUEUED = 4096
"""Events one listener may be behind. A start publishes a dozen, so this is some 300 starts: only a
listener that has stopped reading gets there."""
MAX_LISTENERS = 256
"""Listeners at a time; each may hold :data:`MAX_QUEUED` events."""

_log = logging.getLogger("insula.events")


class Overrun(Exception):
    """The listener was too slow; what was queued is lost and the listener is off the bus."""


class TooManyListeners(Exception):
    """:data:`MAX_LISTENERS` are listening already."""


class Listener:
    """One consumer's queue. A context manager (leaving it takes it off the bus) and an async iterator.

    Iterating ends when the bus is closed.
    """

    def __init__(self, bus: EventBus, max_queued: int) -> None:
        self._bus = bus
        self._max_queued = max_queued
        self._queue: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._overrun = False
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bus; a pending or later :meth:`__anext__` ends the iteration. Idempotent."""
        self._bus.remove(self)
        self.end()

    def offer(self, event: Event) -> bool:
        """Queue the event; False: there was no room, the listener is to be dropped. For the bus only."""
        if len(self._queue) >= self._max_queued:
            self._queue.clear()
            self._overrun = True
            self._changed.set()
            return False
        self._queue.append(event)
        self._changed.set()
        return True

    def end(self) -> None:
        """No more events will come. For the bus only."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """:raise Overrun: see the module."""
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._overrun:
                self._overrun = False
                self._closed = True
                raise Overrun
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()


class EventBus:
    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._closed = False

    @property
    def listener_count(self) -> int:
        return len(self._listeners)

    def publish(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            if not listener.offer(event):
                self._listeners.remove(listener)
                _log.warning("a listener was %d events behind and was dropped", MAX_QUEUED)

    def listen(self, *, max_queued: int = MAX_QUEUED) -> Listener:
        """Return a listener that gets every event published from now on.

        :raise TooManyListeners:
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyListeners(f"{MAX_LISTENERS} listeners are connected already")
        listener = Listener(self, max_queued)
        if self._closed:
            listener.end()
        else:
            self._listeners.append(listener)
        return listener

    def remove(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def close(self) -> None:
        """End every listener after it has read what is queued; later listeners end at once."""
        self._closed = True
        for listener in self._listeners:
            listener.end()
        self._listeners.clear()
