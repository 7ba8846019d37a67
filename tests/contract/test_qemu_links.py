"""Frames between real guests: they cross from one VMM to the other, and reach nobody else.

The guests are tiny ones whose shell sets addresses; what net qubes make of it is tested with real qubes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from insula.hal.driver import Driver, Machine, MachineSpec, Nic, link_mac
from insula.hal.hostinfo import HostInfo, probe
from insula.hal.qemu import outside
from insula.hal.qemu.descriptors import NIC_SOCKET, connect
from insula.hal.qemu.driver import QemuDriver
from insula.hal.qemu.process import ProcessIdentity
from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_GATEWAY
from insula.testing import tiny_guest
from insula.testing.hypervisors import GUEST_LIMIT_S, POLL_S, QemuWorld, run_in_guest
from insula.testing.tiny_guest import Behaviour, TinyGuest

pytestmark = pytest.mark.qemu

MAC = "00:16:3e:5e:6c:00"
ANNOUNCING_S = 1.0
"""What QEMU 7.2 takes to tell the network five times where a machine is, unless told not to: 0.05 + … + 0.35 s."""


@pytest.fixture(scope="module")
def host() -> HostInfo:
    return probe()


@pytest.fixture(scope="module")
def guest() -> TinyGuest:
    return tiny_guest.build()


@pytest.fixture
def world(tmp_path: Path, host: HostInfo, guest: TinyGuest) -> QemuWorld:
    return QemuWorld(tmp_path, host, guest)


@pytest.fixture
async def driver(world: QemuWorld) -> AsyncIterator[QemuDriver]:
    made = world.driver()
    assert isinstance(made, QemuDriver)
    yield made
    await made.close()


@asynccontextmanager
async def shell(world: QemuWorld, driver: Driver, spec: MachineSpec) -> AsyncIterator[Machine]:
    machine = await driver.define(spec)
    try:
        await machine.start_paused()
        await machine.resume()
        await world.act(machine)
        yield machine
    finally:
        await machine.kill()


def client(world: QemuWorld, name: str) -> MachineSpec:
    return replace(world.spec(name, Behaviour.SHELL), nic=Nic(MAC))


def provider(world: QemuWorld, name: str = "net") -> MachineSpec:
    return replace(world.spec(name, Behaviour.SHELL), links=4)


async def interface(machine: Machine, mac: str) -> str:
    """Name of the interface with this address, once the guest has it."""
    async with asyncio.timeout(GUEST_LIMIT_S):
        while True:
            found = await run_in_guest(machine, f"cd /sys/class/net && grep -l {mac} */address")
            if found.strip():
                return found.decode().split("/")[0].strip()
            await asyncio.sleep(POLL_S)


async def give_address(machine: Machine, mac: str, address: str) -> None:
    name = await interface(machine, mac)
    await run_in_guest(machine, f"ip addr add {address} dev {name} && ip link set {name} up")


async def can_ping(machine: Machine, address: str) -> bool:
    return b" 0% packet loss" in await run_in_guest(machine, f"ping -c 1 -W 2 {address} 2>&1")


async def until_ping(machine: Machine, address: str) -> None:
    """A neighbour that did not answer before the link was there is asked again only after a while."""
    async with asyncio.timeout(GUEST_LIMIT_S):
        while not await can_ping(machine, address):
            pass


async def send_much(machine: Machine, address: str) -> None:
    """Several times what the socket between two machines takes."""
    large = f"ping -c 1 -W 1 -s 60000 {address} >/dev/null"
    await run_in_guest(machine, f"for i in $(seq 40); do {large} & done; wait")


async def test_frames_pass_between_two_linked_guests_and_stop_when_they_are_parted(
    world: QemuWorld, driver: QemuDriver
) -> None:
    async with shell(world, driver, provider(world)) as net, shell(world, driver, client(world, "one")) as one:
        await give_address(one, MAC, "10.1.0.2/24")
        assert not await can_ping(one, "10.1.0.1")
        await driver.link(one, net, 2)
        await give_address(net, link_mac(2), "10.1.0.1/24")
        await until_ping(one, "10.1.0.1")
        # With frames on their way that nobody took.
        await net.pause()
        await send_much(one, "10.1.0.1")
        await driver.unlink(net, 2)
        await net.resume()
        assert not await can_ping(one, "10.1.0.1")
        # Back again, on another number: the client's interface is the one it always had.
        await driver.link(one, net, 3)
        await give_address(net, link_mac(3), "10.1.0.1/24")
        await until_ping(one, "10.1.0.1")


async def test_client_of_a_provider_that_died_is_linked_to_another(world: QemuWorld, driver: QemuDriver) -> None:
    async with shell(world, driver, client(world, "one")) as one:
        await give_address(one, MAC, "10.1.0.2/24")
        for name in ("first", "second"):
            async with shell(world, driver, provider(world, name)) as net:
                await driver.link(one, net, 0)
                await give_address(net, link_mac(0), "10.1.0.1/24")
                await until_ping(one, "10.1.0.1")
                # It dies with frames on their way that it did not take.
                await net.pause()
                await send_much(one, "10.1.0.1")


async def test_provider_that_takes_no_frames_does_not_hold_its_client(world: QemuWorld, driver: QemuDriver) -> None:
    async with shell(world, driver, provider(world)) as net, shell(world, driver, client(world, "one")) as one:
        await driver.link(one, net, 0)
        await give_address(net, link_mac(0), "10.1.0.1/24")
        await give_address(one, MAC, "10.1.0.2/24")
        await until_ping(one, "10.1.0.1")
        await net.pause()
        await send_much(one, "10.1.0.1")
        async with asyncio.timeout(GUEST_LIMIT_S):
            assert await run_in_guest(one, "echo alive") == b"alive\n"
            assert await driver.links(one) == frozenset()
        await net.resume()
        await until_ping(one, "10.1.0.1")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_way_out_that_is_lost_is_replaced_and_the_interface_stays(
    world: QemuWorld, driver: QemuDriver, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """MC-118"""
    monkeypatch.setattr(outside, "SILENCE_LIMIT_S", 8.0)
    async with shell(world, driver, client(world, "one")) as one:
        await driver.link_outside(one)
        await give_address(one, MAC, f"{OUTSIDE_ADDRESS}/24")
        await until_ping(one, OUTSIDE_GATEWAY)
        name, first = await interface(one, MAC), way_out_of(one)
        os.kill(first, how)
        # (A process that hangs takes nothing of it.)
        await send_much(one, OUTSIDE_GATEWAY)
        async with asyncio.timeout(GUEST_LIMIT_S):
            while way_out_of(one) == first:
                await asyncio.sleep(POLL_S)
        await until_ping(one, OUTSIDE_GATEWAY)
        assert await interface(one, MAC) == name
        last = way_out_of(one)
    async with asyncio.timeout(GUEST_LIMIT_S):
        while ProcessIdentity.of(last) is not None:
            await asyncio.sleep(POLL_S)


async def test_way_out_outlives_its_driver_and_the_next_one_looks_after_it(
    world: QemuWorld, driver: QemuDriver
) -> None:
    one = await driver.define(client(world, "one"))
    await one.start_paused()
    await driver.link_outside(one)
    first = way_out_of(one)
    await driver.close()
    later = world.driver()
    assert isinstance(later, QemuDriver)
    adopted = await later.adopt(one.spec, one.record())
    assert adopted is not None
    try:
        await later.link_outside(adopted)
        assert way_out_of(one) == first
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(GUEST_LIMIT_S):
            while way_out_of(one) == first:
                await asyncio.sleep(POLL_S)
    finally:
        await adopted.kill()
        await later.close()


def way_out_of(machine: Machine) -> int:
    return int(json.loads((machine.spec.runtime_dir / outside.NOTE).read_text())["pid"])


async def test_frames_of_one_link_are_not_seen_on_another(world: QemuWorld, driver: QemuDriver) -> None:
    async with (
        shell(world, driver, provider(world)) as net,
        shell(world, driver, client(world, "one")) as one,
        shell(world, driver, client(world, "two")) as two,
    ):
        await driver.link(one, net, 0)
        await driver.link(two, net, 1)
        for machine, mac, address in (
            (net, link_mac(0), "10.1.0.1/24"), (one, MAC, "10.1.0.2/24"), (two, MAC, "10.1.0.3/24"),
        ):  # fmt: skip
            await give_address(machine, mac, address)
        name = await interface(two, MAC)
        await until_ping(one, "10.1.0.1")
        before = await run_in_guest(two, f"cat /sys/class/net/{name}/statistics/rx_packets")
        assert await can_ping(one, "10.1.0.1")
        assert not await can_ping(one, "10.1.0.3")
        assert await run_in_guest(two, f"cat /sys/class/net/{name}/statistics/rx_packets") == before


async def freeze(world: QemuWorld, driver: QemuDriver, folder: Path) -> Path:
    """Seed of a booted machine that has an interface."""
    frozen = await driver.define(replace(client(world, "frozen"), freezable=True))
    await frozen.start_paused()
    await frozen.resume()
    await world.act(frozen)
    await frozen.pause()
    seed = folder / "seed"
    seed.mkdir()
    await frozen.freeze(seed)
    return seed


async def test_fork_has_the_interface_of_its_seed_and_is_heard_only_when_its_guest_speaks(
    world: QemuWorld, driver: QemuDriver, tmp_path: Path
) -> None:
    seed = await freeze(world, driver, tmp_path)
    async with shell(world, driver, provider(world)) as net:
        fork = await driver.define(replace(client(world, "fork"), seed=seed))
        try:
            await fork.start_paused()
            with connect(fork.spec.runtime_dir / NIC_SOCKET, is_named=True) as cable:
                # Frames of a paused machine wait until it runs.
                await fork.resume()
                cable.settimeout(ANNOUNCING_S)
                with pytest.raises(TimeoutError):
                    cable.recv(1)
            await driver.link(fork, net, 0)
            await give_address(fork, MAC, "10.1.0.2/24")
            await give_address(net, link_mac(0), "10.1.0.1/24")
            await until_ping(fork, "10.1.0.1")
            # Its guest resets an interface that is taken away: a machine that was restored stands that.
            await driver.unplug_nic(fork)
            await driver.plug_nic(fork, MAC)
            await interface(fork, MAC)
        finally:
            await fork.kill()


async def test_interface_taken_away_and_given_again_works(world: QemuWorld, driver: QemuDriver) -> None:
    async with shell(world, driver, provider(world)) as net, shell(world, driver, client(world, "one")) as one:
        for _ in range(3):
            await driver.plug_nic(one, MAC)
            await driver.link(one, net, 0)
            await give_address(one, MAC, "10.1.0.2/24")
            await give_address(net, link_mac(0), "10.1.0.1/24")
            await until_ping(one, "10.1.0.1")
            await driver.unlink(net, 0)
            await driver.unplug_nic(one)
            async with asyncio.timeout(GUEST_LIMIT_S):
                while await driver.links(net):
                    await asyncio.sleep(POLL_S)
