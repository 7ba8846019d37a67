"""Spare keys and headers: never the same twice, there again after a while, gone with their pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from insula.storage import luks, spare_headers
from insula.storage.spare_headers import WANTED, SpareHeaders

PATIENCE_S = 120.0


@pytest.fixture
async def spares(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpareHeaders]:
    """Their headers say which key they are for."""
    monkeypatch.setattr(spare_headers, "QUIET_S", 0.0)
    monkeypatch.setattr(luks, "new_header", lambda key: luks.Header(b"for " + key, b""))
    made = SpareHeaders()
    yield made
    await made.aclose()


async def full(spares: SpareHeaders) -> None:
    spares.refill_later()
    async with asyncio.timeout(PATIENCE_S):
        while len(spares) < WANTED:
            await asyncio.sleep(0.001)


async def test_each_key_is_given_once_and_opens_its_header(spares: SpareHeaders) -> None:
    await full(spares)
    # More than there are: the rest are made at once.
    taken = [spares.take() for _ in range(2 * WANTED)]
    assert len({key for key, _ in taken}) == 2 * WANTED
    assert all(header.header == b"for " + key for key, header in taken)
    assert len(spares) == 0


async def test_threads_that_take_at_the_same_time_get_different_ones(spares: SpareHeaders) -> None:
    await full(spares)
    taken: list[bytes] = []
    threads = [threading.Thread(target=lambda: taken.append(spares.take()[0])) for _ in range(WANTED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == WANTED


async def test_none_is_made_before_it_was_quiet_for_a_while(
    spares: SpareHeaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_headers, "QUIET_S", 3600.0)
    spares.refill_later()
    spares.refill_later()
    await asyncio.sleep(0.01)
    assert len(spares) == 0


async def test_closed_pool_has_none(spares: SpareHeaders) -> None:
    await full(spares)
    await spares.aclose()
    assert len(spares) == 0
