"""Frame memory of a real guest: what it writes is what the host sees, however the machine began."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from insula.hal.driver import Machine, MachineSpec
from insula.hal.hostinfo import probe
from insula.hal.qemu.driver import QemuDriver
from insula.testing import tiny_guest
from insula.testing.hypervisors import GUEST_LIMIT_S, POLL_S, QemuWorld, freeze, leftovers_of, run_in_guest
from insula.testing.tiny_guest import Behaviour

pytestmark = pytest.mark.qemu

DEVICE = "for d in /sys/bus/pci/devices/*; do [ $(cat $d/device) = 0x1110 ] && break; done"
"""ivshmem; ``$d`` is its folder."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    made = QemuWorld(tmp_path, probe(), tiny_guest.build())
    yield made
    assert await leftovers_of(made) == []


@pytest.fixture
async def driver(world: QemuWorld) -> AsyncIterator[QemuDriver]:
    made = QemuDriver(probe())
    yield made
    await made.close()


@asynccontextmanager
async def shell(world: QemuWorld, driver: QemuDriver, spec: MachineSpec) -> AsyncIterator[Machine]:
    machine = await driver.define(spec)
    try:
        await machine.start_paused()
        await machine.resume()
        if spec.seed is None:
            await world.act(machine)
        yield machine
    finally:
        await machine.kill()


async def write_from_the_guest(machine: Machine, offset: int, value: int) -> int:
    """Have the guest write a 32-bit number into its frame memory; what the host finds there."""
    memory = await machine.open_frames()
    try:
        async with asyncio.timeout(GUEST_LIMIT_S):
            while not (found := await run_in_guest(machine, f"{DEVICE}; [ -e $d/resource2 ] && cat $d/resource")):
                await asyncio.sleep(POLL_S)
        start = int(found.splitlines()[2].split()[0], 16)
        await run_in_guest(machine, f"{DEVICE}; echo 1 >$d/enable; devmem {start + offset:#x} 32 {value:#x}")
        return int.from_bytes(os.pread(memory, 4, offset), "little")
    finally:
        os.close(memory)


async def test_what_a_guest_writes_is_in_the_hosts_memory_at_once(world: QemuWorld, driver: QemuDriver) -> None:
    async with shell(world, driver, world.spec("shown", Behaviour.SHELL)) as machine:
        assert await write_from_the_guest(machine, 0x7FF_F000, 0xCAFE) == 0xCAFE


async def test_fork_gets_frame_memory_of_its_own(world: QemuWorld, driver: QemuDriver, tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    await freeze(driver, world.spec("frozen", Behaviour.SHELL), world, seed)
    for name in ("one", "two"):
        async with shell(world, driver, replace(world.spec(name, Behaviour.SHELL), seed=seed)) as fork:
            assert await write_from_the_guest(fork, 4096, 0xBEEF) == 0xBEEF
