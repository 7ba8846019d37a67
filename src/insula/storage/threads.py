"""Blocking work off the event loop, with cancellation that never leaves a thread working behind one's back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def finished(future: asyncio.Future[T]) -> None:
    """Return when ``future`` is done, whatever its outcome; a cancellation meanwhile is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def in_thread(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Run ``work`` in a thread and return its result.

    A thread cannot be interrupted, so a cancelled caller waits for it: whoever holds a lock around this call still
    holds it while the thread works. ``undo`` is then called with the result nobody receives.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await finished(task)
    except asyncio.CancelledError:
        if undo is not None and not task.cancelled() and task.exception() is None:
            result = task.result()
            await finished(asyncio.ensure_future(asyncio.to_thread(lambda: undo(result))))
        elif not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller is told
        raise
    return task.result()
