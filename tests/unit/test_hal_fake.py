"""What tests of other rooms rely on in the fake, beyond the contract of all drivers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula.hal.capabilities import Capability
from insula.hal.driver import RPC_CHANNEL, ExitKind, MachineState
from insula.hal.errors import DriverError, MachineGone, Unsupported
from insula.hal.fake import FakeDriver, FakeHost, FakeMachine
from insula.testing.hypervisors import FakeWorld


@pytest.fixture
def world(tmp_path: Path) -> FakeWorld:
    return FakeWorld(tmp_path)


async def started(world: FakeWorld, driver: FakeDriver) -> FakeMachine:
    machine = await driver.define(world.spec("one"))
    await machine.start_paused()
    await machine.resume()
    return machine


async def test_scripted_failure_hits_one_call(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    world.host.script.fail_next("pause")
    with pytest.raises(DriverError, match="scripted failure of pause"):
        await machine.pause()
    assert machine.state is MachineState.RUNNING
    await machine.pause()
    assert machine.state is MachineState.PAUSED


async def test_scripted_failure_of_a_start_leaves_nothing(world: FakeWorld) -> None:
    world.host.script.fail_next("start_paused", DriverError("no memory"))
    machine = await FakeDriver(world.host).define(world.spec("one"))
    with pytest.raises(DriverError, match="no memory"):
        await machine.start_paused()
    assert world.leftovers() == []
    assert (await machine.wait_gone()).kind is ExitKind.CRASHED


async def test_held_call_waits_for_its_gate_and_sees_an_end_meanwhile(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    gate = world.host.script.hold_next("pause")
    pausing = asyncio.create_task(machine.pause())
    await asyncio.sleep(0)
    machine.guest.panic()
    gate.set()
    with pytest.raises(MachineGone):
        await pausing


async def test_calls_are_noted_in_order(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    await machine.kill()
    assert [method for _, method in world.host.script.calls] == ["define", "start_paused", "resume", "kill"]


async def test_obedient_guest_powers_off_and_stubborn_one_does_not(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    machine.guest.powers_off_when_asked = False
    await machine.request_shutdown()
    assert (machine.state, machine.guest.shutdown_requests) == (MachineState.RUNNING, 1)
    machine.guest.powers_off_when_asked = True
    await machine.request_shutdown()
    assert (await machine.wait_gone()).kind is ExitKind.SHUTDOWN


async def test_first_end_counts(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    machine.guest.power_off()
    machine.guest.panic()
    await machine.kill()
    assert (await machine.wait_gone()).kind is ExitKind.SHUTDOWN


async def test_missing_capability_is_refused_by_name(world: FakeWorld) -> None:
    driver = FakeDriver(world.host, capabilities=frozenset())
    machine = await started(world, driver)
    for call in (machine.pause(), machine.set_memory(64), machine.resize_disk("root", 1)):
        with pytest.raises(Unsupported):
            await call
    with pytest.raises(Unsupported) as caught:
        await driver.adopt(machine.spec, machine.record())
    assert caught.value.capability is Capability.ADOPT
    await machine.kill()


async def test_driver_without_adopt_ends_its_machines_when_closed(world: FakeWorld) -> None:
    driver = FakeDriver(world.host, capabilities=frozenset())
    await started(world, driver)
    await driver.close()
    assert world.leftovers() == []


async def test_channel_joins_host_and_guest(world: FakeWorld) -> None:
    machine = await started(world, FakeDriver(world.host))
    with await machine.open_channel(RPC_CHANNEL) as channel:
        channel.send(b"ping")
        assert machine.guest.channel(RPC_CHANNEL).recv(10) == b"ping"
    await machine.kill()


def test_hosts_do_not_share_machines() -> None:
    assert FakeHost().guests is not FakeHost().guests
