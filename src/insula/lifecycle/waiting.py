"""Waiting for the first of several things, and not overlooking that a wait was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def first_of(*makers: Callable[[], Awaitable[None]]) -> None:
    """Run all, return or raise what the first one does, cancel the others."""
    tasks = [asyncio.ensure_future(make()) for make in makers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def require_wanted() -> None:
    """For loops that go on after a failure: what fails while a cancelled task clears up takes the cancellation's place.

    :raise asyncio.CancelledError: this task is to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
