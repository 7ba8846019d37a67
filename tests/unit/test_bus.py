"""The event bus: order, isolation of listeners, loud ends."""

from __future__ import annotations

import asyncio

import pytest

from insula.events.bus import MAX_LISTENERS, EventBus, Overrun, TooManyListeners
from insula.events.types import Event


def numbered(count: int) -> list[Event]:
    return [Event("work", f"e{number}") for number in range(count)]


async def test_every_listener_gets_every_event_in_order() -> None:
    bus = EventBus()
    with bus.listen() as first, bus.listen() as second:
        for event in numbered(3):
            bus.publish(event)
        bus.close()
        assert [event async for event in first] == numbered(3)
        assert [event async for event in second] == numbered(3)


async def test_events_before_listening_are_not_delivered() -> None:
    bus = EventBus()
    bus.publish(Event("", "old"))
    with bus.listen() as listener:
        bus.publish(Event("", "new"))
        assert (await anext(listener)).name == "new"


async def test_waiting_listener_is_woken_by_publish() -> None:
    bus = EventBus()
    with bus.listen() as listener:
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        assert not waiting.done()
        bus.publish(Event("", "e"))
        assert await waiting == Event("", "e")


async def test_slow_listener_ends_with_overrun_and_others_go_on() -> None:
    bus = EventBus()
    with bus.listen(max_queued=2) as slow, bus.listen() as quick:
        for event in numbered(3):
            bus.publish(event)
        with pytest.raises(Overrun):
            await anext(slow)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        assert bus.listener_count == 1
        assert (await anext(quick)).name == "e0"


async def test_leaving_takes_the_listener_off_the_bus() -> None:
    bus = EventBus()
    with bus.listen() as listener:
        assert bus.listener_count == 1
    assert bus.listener_count == 0
    listener.close()
    with pytest.raises(StopAsyncIteration):
        await anext(listener)


async def test_closed_bus_ends_waiting_and_later_listeners() -> None:
    bus = EventBus()
    with bus.listen() as listener:
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        bus.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        with bus.listen() as late, pytest.raises(StopAsyncIteration):
            await anext(late)


async def test_too_many_listeners_are_refused() -> None:
    bus = EventBus()
    for _ in range(MAX_LISTENERS):
        bus.listen()
    with pytest.raises(TooManyListeners):
        bus.listen()
