from __future__ import annotations

import os

from insula_agent.loop import READ, Loop


def test_timer_cancelled_is_not_called_others_in_order() -> None:
    loop = Loop()
    called: list[str] = []
    loop.after(0, lambda: called.append("first"))
    loop.after(0, lambda: called.append("never")).cancel()
    loop.after(0.01, lambda: loop.stop(3))
    assert loop.run() == 3
    assert called == ["first"]


def test_watch_readable_calls_handler_until_forgotten() -> None:
    loop = Loop()
    reader, writer = os.pipe()
    calls: list[int] = []

    def handler(events: int) -> None:
        calls.append(events & READ)
        if len(calls) == 2:
            loop.forget(reader)
            loop.forget(reader)
            loop.after(0, lambda: loop.stop(0))

    loop.watch(reader, READ, handler)
    os.write(writer, b"x")
    assert loop.run() == 0
    assert calls == [READ, READ]
    os.close(reader)
    os.close(writer)


def test_before_wait_is_called_before_each_wait() -> None:
    loop = Loop()
    order: list[str] = []
    loop.before_wait(lambda: order.append("flush"))
    loop.after(0, lambda: order.append("timer"))
    loop.after(0.001, lambda: loop.stop(0))
    loop.run()
    assert order[:3] == ["timer", "flush", "flush"]
    assert loop.run() == 0


def test_timer_set_by_a_timer_is_called() -> None:
    loop = Loop()
    loop.after(0, lambda: loop.after(0, lambda: loop.stop(5)) and None)
    assert loop.run() == 5
