"""Waiting for the first of several things."""

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
