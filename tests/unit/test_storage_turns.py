from __future__ import annotations

import asyncio

import pytest

from insula.storage.turns import Turns


async def ticks(count: int = 20) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_holder_a_key_in_order_of_asking() -> None:
    turns, order = Turns(), []
    inside = 0

    async def work(number: int) -> None:
        nonlocal inside
        async with turns.hold("a"):
            inside += 1
            assert inside == 1
            await ticks(3)
            order.append(number)
            inside -= 1

    await asyncio.gather(*(work(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert turns._turns == {}, "nothing is remembered of keys nobody uses"


async def test_different_keys_do_not_wait_for_each_other() -> None:
    turns = Turns()
    async with turns.hold("a"), turns.hold("b"):
        pass


async def test_pairs_asked_in_opposite_order_do_not_deadlock() -> None:
    turns = Turns()

    async def work(one: str, two: str) -> None:
        async with turns.hold(one, two):
            await ticks(2)

    await asyncio.wait_for(asyncio.gather(*(work(*pair) for pair in [("a", "b"), ("b", "a"), ("a", "a")] * 5)), 60)


async def test_holder_learns_that_somebody_hurried_waits() -> None:
    turns = Turns()
    async with turns.hold("a", patient=True):
        wanted = asyncio.ensure_future(turns.wanted("a"))
        patient = asyncio.ensure_future(_take(turns, patient=True))
        await ticks()
        assert not wanted.done()
        hurried = asyncio.ensure_future(_take(turns, patient=False))
        await ticks()
        assert wanted.done()
    await asyncio.gather(patient, hurried)


async def test_cancelled_waiter_is_wanted_no_more() -> None:
    turns = Turns()
    async with turns.hold("a"):
        waiting = asyncio.ensure_future(_take(turns, patient=False))
        await ticks()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        wanted = asyncio.ensure_future(turns.wanted("a"))
        await ticks()
        assert not wanted.done()
        wanted.cancel()
    assert turns._turns == {}


async def _take(turns: Turns, *, patient: bool) -> None:
    async with turns.hold("a", patient=patient):
        pass
