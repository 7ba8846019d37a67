from __future__ import annotations

import asyncio
import threading

import pytest

from insula.storage.threads import finished, in_thread


async def test_result_and_error_of_the_work_arrive() -> None:
    assert await in_thread(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_cancelled_caller_waits_for_the_thread_and_undoes() -> None:
    begun, may_end = threading.Event(), threading.Event()
    undone: list[str] = []

    def work() -> str:
        begun.set()
        assert may_end.wait(120)
        return "made"

    task = asyncio.ensure_future(in_thread(work, undo=undone.append))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # asked twice
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["made"]


async def test_cancelled_caller_of_failing_work_undoes_nothing() -> None:
    begun, may_end = threading.Event(), threading.Event()
    undone: list[object] = []

    def work() -> None:
        begun.set()
        assert may_end.wait(120)
        raise ValueError

    task = asyncio.ensure_future(in_thread(work, undo=undone.append))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == []


async def test_finished_passes_a_cancellation_on_only_afterwards() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(finished(future))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    future.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await task
