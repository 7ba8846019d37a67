"""Many forks of one seed, looked at by the first command in each: what must be one's own is no other's (MC-67).

What the clones said is kept, not the clones: each is killed once it has spoken, so that their number costs time and no
memory. ``test_identity.py`` looks closer, at two of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, create_app_qube, hold_in_waiting, sh

from .conftest import discard

CLONES = {"fork": 40, "waited": 12}
"""How they are started → how many; those that waited take two seconds more each."""
AT_ONCE = 4
"""More than a small test machine has cores, so that forks overlap in every way."""
AGAIN = "test-clone-again"
STARTS_AGAIN = 4
CLOCK_TOLERANCE_S = 0.2

ASK = r"""
export LC_ALL=C
read -r -N 32 urandom < /dev/urandom
printf 'urandom=%q\n' "$urandom"
show() { read -r "$1" < "$2"; printf '%s=%s\n' "$1" "${!1}"; }
show random_uuid /proc/sys/kernel/random/uuid
printf 'clock=%s\n' "$EPOCHREALTIME"
printf 'getrandom=%s\n' "$SRANDOM-$SRANDOM-$SRANDOM"
show boot_id /proc/sys/kernel/random/boot_id
show machine_id /etc/machine-id
show host_name /proc/sys/kernel/hostname
for mark in /home/user/mark /rw/mark; do [ ! -e $mark ] || show found $mark; echo $HOSTNAME > $mark; done
for file in /var/lib/systemd/random-seed /etc/ssh/ssh_host_*_key; do
  [ ! -e $file ] || echo kept=$(sha256sum < $file)
done
[ ! -e /run/insula/booted ] || echo was_frozen=yes
printf 'private_uuid=%s\n' $(blkid -p -s UUID -o value /dev/disk/by-id/virtio-private)
sync
"""
"""Prints lines of NAME=VALUE. The generator comes first: the sooner after the fork, the less has
made it different. What bash does itself starts no program, which under software emulation would take most of the time;
``read -N`` leaves out zeros."""

DRAWN = ("urandom", "random_uuid", "getrandom", "boot_id")
"""Differs from start to start, of one qube too."""
OWN = ("machine_id", "host_name", "private_uuid")
"""The qube's own, and stays."""


@dataclass(frozen=True)
class Clone:
    name: str
    said: dict[str, list[str]]
    """NAME → its values, in order."""
    clock_error: float
    """Seconds that its clock was before or after the time the command took."""
    start_s: float


@dataclass(frozen=True)
class Clones:
    how: str
    each: list[Clone]
    """Many qubes, each started once."""
    again: list[Clone]
    """One qube, started many times, the first time before all others and the last time after them."""
    uuids: dict[str, str]
    """Name → uuid of the qube, 32 hex digits."""
    seeds: list[set[str]]
    """Names of the seeds, before and after."""
    taken: int
    """Starts that found a machine in waiting."""

    @property
    def all(self) -> list[Clone]:
        return self.each + self.again


@pytest.fixture(scope="module", params=CLONES)
def clones(daemon: DaemonProcess, request: pytest.FixtureRequest) -> Iterator[Clones]:
    how = str(request.param)
    names = [f"test-clone-{number}" for number in range(CLONES[how])]
    try:
        yield asyncio.run(make(daemon, how, names))
    finally:
        asyncio.run(remove(daemon, [*names, AGAIN]))


async def make(daemon: DaemonProcess, how: str, names: list[str]) -> Clones:
    client = daemon.client
    for name in (*names, AGAIN):
        await create_app_qube(client, name)
        await client.set_property("start_mode", "warm", name)
    await client.build_seed(TEMPLATE)
    seeds = [await seed_names(daemon)]
    taken = await taken_from_waiting(daemon)

    async def ready(count: int) -> None:
        await hold_in_waiting(client, count if how == "waited" else 0)

    await ready(1)
    again = [await ask(daemon, AGAIN)]
    each: list[Clone] = []
    for first in range(0, len(names), AT_ONCE):
        await ready(AT_ONCE)
        each += await asyncio.gather(*(ask(daemon, name) for name in names[first : first + AT_ONCE]))
    for _ in range(STARTS_AGAIN - 1):
        await ready(1)
        again.append(await ask(daemon, AGAIN))
    seeds.append(await seed_names(daemon))
    uuids = {name: (await client.get_property("uuid", name)).value.replace("-", "") for name in (*names, AGAIN)}
    return Clones(how, each, again, uuids, seeds, await taken_from_waiting(daemon) - taken)


async def ask(daemon: DaemonProcess, name: str) -> Clone:
    """Start it, hear what it has to say, end it."""
    asked = time.time()
    await daemon.client.start(name)
    begin = time.time()
    answer = await sh(daemon, name, ASK, user="root")
    end = time.time()
    await daemon.client.kill(name)
    said: dict[str, list[str]] = {}
    for line in answer.splitlines():
        what, _, value = line.partition("=")
        said.setdefault(what, []).append(value)
    clock = float(said["clock"][0])
    return Clone(name, said, max(begin - clock, clock - end, 0.0), begin - asked)


async def taken_from_waiting(daemon: DaemonProcess) -> int:
    return sum([seed["waiting"]["taken"] for seed in await daemon.client.seeds()])


async def seed_names(daemon: DaemonProcess) -> set[str]:
    return {seed["name"] for seed in await daemon.client.seeds()}


async def remove(daemon: DaemonProcess, names: list[str]) -> None:
    there = {row.name for row in await daemon.client.list_qubes()}
    for name in there.intersection(names):
        await discard(daemon, name)


def repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def test_all_are_forks_of_one_seed(clones: Clones) -> None:
    """Without this the rest of the file could pass for cold starts."""
    assert [clone.name for clone in clones.all if clone.said.get("was_frozen") != ["yes"]] == []
    before, after = clones.seeds
    assert before == after
    assert clones.taken == (len(clones.all) if clones.how == "waited" else 0)


@pytest.mark.parametrize("what", DRAWN)
def test_no_two_starts_draw_the_same(clones: Clones, what: str) -> None:
    drawn = [value for clone in clones.all for value in clone.said[what]]
    assert len(drawn) == len(clones.all)
    assert repeated(drawn) == []


@pytest.mark.parametrize("what", OWN)
def test_no_two_qubes_have_the_same(clones: Clones, what: str) -> None:
    values = [clone.said[what][0] for clone in clones.each]
    assert all(values)
    assert repeated(values) == []


@pytest.mark.parametrize("what", OWN)
def test_a_qube_has_the_same_at_each_start(clones: Clones, what: str) -> None:
    assert len({clone.said[what][0] for clone in clones.again}) == 1


def test_each_is_who_the_daemon_says(clones: Clones) -> None:
    for clone in clones.all:
        assert clone.said["host_name"] == [clone.name]
        assert clone.said["machine_id"] == [clones.uuids[clone.name]]


def test_private_volume_has_what_the_qube_wrote_and_nothing_of_another(clones: Clones) -> None:
    first, *later = clones.again
    assert [clone.name for clone in (*clones.each, first) if "found" in clone.said] == []
    assert [clone.said["found"] for clone in later] == [[AGAIN, AGAIN]] * (STARTS_AGAIN - 1)


def test_no_two_keep_the_same_secret_in_a_file(clones: Clones) -> None:
    """Random seed for the next boot, host keys: each another one, or none."""
    assert repeated(digest for clone in clones.all for digest in clone.said.get("kept", [])) == []


def test_clock_is_the_hosts(clones: Clones) -> None:
    """It is late by the time that the host's word took to be obeyed, which is a part of the start."""
    wrong = [clone for clone in clones.all if clone.clock_error > CLOCK_TOLERANCE_S + clone.start_s]
    assert [(clone.name, clone.clock_error, clone.start_s) for clone in wrong] == []
