"""Whether a channel of a machine has a client is asked of QEMU, which may be slow to notice and slow to answer."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from insula.hal.qemu import machine
from insula.hal.qemu.machine import QemuMachine


def made(answers: itertools.chain[bool]) -> QemuMachine:
    async def is_chardev_connected(chardev: str) -> bool:
        assert chardev == "channel0"
        return next(answers)

    one = object.__new__(QemuMachine)
    one._monitor = SimpleNamespace(is_chardev_connected=is_chardev_connected)  # type: ignore[assignment]
    return one


@pytest.fixture(autouse=True)
def over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over with the first answer."""
    monkeypatch.setattr(machine, "CHANNEL_LIMIT_S", 0.0)
    monkeypatch.setattr(machine, "CHANNEL_POLL_S", 0.0)


async def test_one_that_had_no_time_to_notice_is_asked_again() -> None:
    late = made(itertools.chain([False] * 20, itertools.repeat(True)))
    assert await late._chardev_becomes("channel0", connected=True)


async def test_one_that_does_not_notice_though_it_answers_is_given_up() -> None:
    never = made(itertools.chain(itertools.repeat(False)))
    assert not await never._chardev_becomes("channel0", connected=True)
