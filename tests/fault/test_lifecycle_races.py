"""Operations on one qube raced in pairs: every order ends in a valid state, and no volume is lost (MC-57)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from insula.lifecycle.create import disks_of
from insula.lifecycle.engine import CreateRequest
from insula.model.errors import InsulaError
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench

OTHER = QubeName("other")
Operation = Callable[[Bench], Awaitable[None]]


async def clone(bench: Bench) -> None:
    await bench.engine.create(CreateRequest("AppVM", OTHER, "red", template=TEMPLATE))
    await bench.engine.volume_clone((WORK, "private"), (OTHER, "private"))


OPERATIONS: dict[str, Operation] = {
    "start": lambda bench: bench.engine.start(WORK),
    "shutdown": lambda bench: bench.engine.shutdown(WORK, force=False, wait=True),
    "kill": lambda bench: bench.engine.kill(WORK),
    "pause": lambda bench: bench.engine.pause(WORK),
    "remove": lambda bench: bench.engine.remove(WORK),
    "clone": clone,
    "clear": lambda bench: bench.engine.volume_clear(WORK, "private"),
    "resize": lambda bench: bench.engine.volume_resize(WORK, "private", 4 << 30),
}
PAIRS = list(itertools.combinations_with_replacement(OPERATIONS, 2))


@pytest.mark.parametrize("is_on", [False, True], ids=["halted", "running"])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
async def test_pair_of_operations_at_once_ends_in_a_valid_state(
    tmp_path: Path, pair: tuple[str, str], is_on: bool
) -> None:
    for turns in (0, 1, 5, 25):
        folder = tmp_path / str(turns)
        folder.mkdir()
        async with engine_bench(folder) as bench:
            if is_on:
                await bench.engine.start(WORK)
            first = asyncio.ensure_future(OPERATIONS[pair[0]](bench))
            for _ in range(turns):
                await asyncio.sleep(0)
            second = asyncio.ensure_future(OPERATIONS[pair[1]](bench))
            async with asyncio.timeout(120):
                results = await asyncio.gather(first, second, return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, InsulaError), result
            await check_valid(bench)


async def check_valid(bench: Bench) -> None:
    """One machine at the most, a volume for each that a qube names, and the qube can be ended and started."""
    alive = [guest for guest in bench.computer.guests.values() if guest.exit is None]
    assert len(alive) <= 1
    system = bench.host.store.system
    named = {v.vid for qube in system.qubes.values() for v in disks_of(qube) if v.save_on_stop}
    assert set(await bench.host.pools["default"].volumes()) == named
    if WORK not in system.qubes:
        assert alive == []
        return
    state = bench.engine.power_state(WORK)
    assert state in (PowerState.HALTED, PowerState.RUNNING, PowerState.PAUSED)
    assert bool(alive) == state.is_on
    if state.is_on:
        await bench.engine.kill(WORK)
    await bench.engine.start(WORK)
    await bench.engine.kill(WORK)
    assert bench.leftovers() == []
