"""What goes wrong with seeds, with a real daemon and real guests: a start never fails for a seed's sake, and nothing of
a broken one is left (MC-60, MC-62, MC-63 for seeds; MC-58 for forks).

One daemon, one seed and one qube for most of the module: making a seed and booting are what takes long.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from insula.hal.qemu.seed_files import MANIFEST_NAME, MEMORY_NAME, STATE_NAME
from insula.lifecycle.seeds import MACHINE, ROOT_LAYER, STAGING_PREFIX
from insula.storage.volume_folder import SCRATCH
from insula.testing.daemon import DaemonProcess, processes_under
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, hold_in_waiting, install, run, sh

APP, LATER = "test-app", "test-later"
PATIENCE_S = 240.0
"""For a seed to be made on a busy machine."""
PAUSE_S = 8.0
CLOCK_TOLERANCE_S = 1.0
"""A clock is late by as long as the word of the time took to be obeyed: never behind when it was said."""
SMALL_DISK = "48m"
"""Enough for what a system writes to its root while it boots, too little for its memory."""


async def prepare(daemon: DaemonProcess) -> None:
    """The template, and a qube that starts warm."""
    await install(daemon.client, await build_template())
    await create_app_qube(daemon.client, APP)
    await daemon.client.set_property("start_mode", "warm", APP)


@pytest.fixture(scope="module")
def shared() -> Iterator[DaemonProcess]:
    daemon = DaemonProcess()

    async def begin() -> None:
        await daemon.__aenter__()
        await prepare(daemon)

    asyncio.run(begin())
    yield daemon
    asyncio.run(daemon.__aexit__(None, None, None))


@pytest.fixture
async def daemon(shared: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """The daemon, running, no qube on; its log is printed where a test fails."""
    yield shared
    assert shared.process is not None
    if shared.process.poll() is not None:
        await shared.start()
    for row in await shared.client.list_qubes():
        if row.klass != "AdminVM" and row.state != "Halted":
            await shared.client.kill(row.name)
    print(*(line for line in shared.log().splitlines()[-200:] if "DEBUG insula.admin" not in line), sep="\n")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def is_fork(daemon: DaemonProcess, name: str) -> bool:
    return (await run(daemon, name, "test -e /run/insula/booted")).code == 0


async def seed_names(daemon: DaemonProcess) -> list[str]:
    return [seed["name"] for seed in await daemon.client.seeds()]


def seed_files(daemon: DaemonProcess) -> list[str]:
    return sorted(str(path) for path in seed_folder(daemon).rglob("*"))


def seed_folder(daemon: DaemonProcess) -> Path:
    """Seen as the daemon sees it, which may have a disk of its own mounted there."""
    assert daemon.process is not None
    return Path(f"/proc/{daemon.process.pid}/root{daemon.paths.seeds}")


def check_nothing_is_left(daemon: DaemonProcess) -> None:
    """Of a machine that was to become a seed."""
    assert seed_files(daemon) == []
    assert list((daemon.paths.runtime / "qubes").iterdir()) == []
    assert [line for line in processes_under(daemon.paths.runtime / "qubes") if "guest=" in line] == []
    scratch = [path for path in daemon.paths.default_pool.rglob("*") if path.is_file() and SCRATCH in path.parts]
    assert scratch == []


def is_booting(daemon: DaemonProcess) -> bool:
    return any((daemon.paths.runtime / "qubes").glob("seed.*/console.log"))


def is_freezing(daemon: DaemonProcess) -> bool:
    return any(daemon.paths.seeds.glob(f"{STAGING_PREFIX}*/{MACHINE}/*"))


async def test_daemon_killed_while_a_seed_is_made_leaves_nothing_and_the_next_start_makes_it(
    daemon: DaemonProcess,
) -> None:
    for stage in (is_booting, is_freezing):
        making = asyncio.create_task(daemon.client.build_seed(TEMPLATE))
        await until(lambda stage=stage: stage(daemon))  # type: ignore[misc]
        daemon.kill()
        await asyncio.gather(making, return_exceptions=True)
        await daemon.start()
        check_nothing_is_left(daemon)
    await daemon.client.start(APP)
    assert await is_fork(daemon, APP)


async def test_clock_is_right_after_a_pause(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    await daemon.client.pause(APP)
    # Not a wait for something to happen: the time that the guest misses.
    await asyncio.sleep(PAUSE_S)
    before = time.time()
    await daemon.client.unpause(APP)
    clock = float(await sh(daemon, APP, "echo $EPOCHREALTIME", user="root"))
    assert before - CLOCK_TOLERANCE_S < clock < time.time() + CLOCK_TOLERANCE_S


@pytest.mark.parametrize("date", ["2001-01-01", "2100-01-01"])
async def test_clock_that_jumped_is_right_after_a_pause(daemon: DaemonProcess, date: str) -> None:
    """However the guest's clock came to be wrong: its own user may set it."""
    await daemon.client.start(APP)
    await sh(daemon, APP, f"date -s {date}", user="root")
    assert abs(float(await sh(daemon, APP, "echo $EPOCHREALTIME", user="root")) - time.time()) > CLOCK_TOLERANCE_S
    await daemon.client.pause(APP)
    before = time.time()
    await daemon.client.unpause(APP)
    clock = float(await sh(daemon, APP, "echo $EPOCHREALTIME", user="root"))
    assert before - CLOCK_TOLERANCE_S < clock < time.time() + CLOCK_TOLERANCE_S


async def test_clock_of_a_machine_that_waited_is_the_hosts_when_it_is_somebodys(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    await daemon.client.kill(APP)
    await hold_in_waiting(daemon.client, 1)
    taken = await taken_from_waiting(daemon)
    # Not a wait for something to happen: the time that the guest misses.
    await asyncio.sleep(PAUSE_S)
    before = time.time()
    await daemon.client.start(APP)
    clock = float(await sh(daemon, APP, "echo $EPOCHREALTIME", user="root"))
    assert before - CLOCK_TOLERANCE_S < clock < time.time() + CLOCK_TOLERANCE_S
    assert await taken_from_waiting(daemon) == taken + 1


async def taken_from_waiting(daemon: DaemonProcess) -> int:
    """Starts so far that found a machine in waiting."""
    return sum([seed["waiting"]["taken"] for seed in await daemon.client.seeds()])


# --- what is on the disk is not what was written -------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """Of the first byte that is no hole."""
    with path.open("r+b") as file:
        place = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), place)


def claim_another_qemu(path: Path) -> None:
    manifest = json.loads(path.read_bytes())
    manifest["qemu"] = "1.0"
    path.write_text(json.dumps(manifest))


# Each costs a boot; contract/test_qemu_seeds.py and the unit tests have more kinds.
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "memory cut": (f"{MACHINE}/{MEMORY_NAME}", cut),
    "state flipped": (f"{MACHINE}/{STATE_NAME}", flip_a_bit),
    "another QEMU": (f"{MACHINE}/{MANIFEST_NAME}", claim_another_qemu),
    "root cut": (ROOT_LAYER, lambda path: os.truncate(path, 100)),
}


@pytest.fixture(scope="module")
def kept_seed(shared: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a good seed, from which each case makes a bad one."""
    name = str(asyncio.run(shared.client.build_seed(TEMPLATE))["name"])
    kept = tmp_path_factory.mktemp("seed") / name
    copy(shared.paths.seeds / name, kept)
    return kept


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--archive", "--sparse=always", source, target], check=True, timeout=120)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_seed_is_dropped_with_one_warning_and_the_qube_boots(
    daemon: DaemonProcess, kept_seed: Path, damage: str
) -> None:
    daemon.kill()
    seed = daemon.paths.seeds / kept_seed.name
    shutil.rmtree(seed, ignore_errors=True)
    copy(kept_seed, seed)
    file, harm = DAMAGES[damage]
    harm(seed / file)
    begin = len(daemon.log())
    await daemon.start()
    await daemon.client.start(APP)
    assert not await is_fork(daemon, APP)
    assert await seed_names(daemon) == []
    warnings = [line for line in daemon.log()[begin:].splitlines() if " WARNING " in line or " ERROR " in line]
    assert len(warnings) == 1, warnings
    assert f"seed {kept_seed.name} of {TEMPLATE} is dropped" in warnings[0]


async def test_seed_that_was_dropped_is_made_anew_for_the_next_start(daemon: DaemonProcess, kept_seed: Path) -> None:
    """Follows a case above, or has none to begin with."""
    await daemon.client.start(APP)
    assert await is_fork(daemon, APP)
    assert await seed_names(daemon) == [kept_seed.name]


# --- the template changes ------------------------------------------------------------------------------------------


async def test_changed_template_leaves_forks_alone_and_renews_its_seed(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    assert await is_fork(daemon, APP)
    old = await seed_names(daemon)
    await create_app_qube(daemon.client, LATER)
    await daemon.client.set_property("start_mode", "warm", LATER)
    await daemon.client.start(TEMPLATE)
    await sh(daemon, TEMPLATE, "echo new > /etc/from-template", user="root")
    await daemon.client.shutdown(TEMPLATE, wait=True)

    assert (await run(daemon, APP, "cat /etc/from-template")).code == 1
    assert (await daemon.client.volume_info(APP, "root")).is_outdated
    async with asyncio.timeout(PATIENCE_S):
        while set(await seed_names(daemon)) <= set(old):
            await asyncio.sleep(0.1)
    await daemon.client.start(LATER)
    assert await is_fork(daemon, LATER)
    assert await sh(daemon, LATER, "cat /etc/from-template") == "new"
    assert not (await daemon.client.volume_info(LATER, "root")).is_outdated
    # Its seed is gone from the disk, what it works with is not.
    assert await sh(daemon, APP, "cat /etc/debian_version; date +ok") != ""
    assert (await daemon.client.volume_info(APP, "root")).is_outdated


# --- the disk is full ----------------------------------------------------------------------------------------------


class CrampedDaemon(DaemonProcess):
    """Its seeds are on a disk of their own that is too small for one. No root is needed: the disk is a tmpfs in a user
    namespace; in another one inside it the daemon is an ordinary user, with all its sandboxes."""

    def command(self) -> list[str]:
        mount = 'mkdir -p "$1" && mount -t tmpfs -o size=$2,mode=0700 none "$1" && shift 2 && exec "$@"'
        outer = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
        inner = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
        return [*outer, str(self.paths.seeds), SMALL_DISK, *inner, *super().command()]


async def test_disk_too_small_for_a_seed_is_said_once_and_the_qube_boots() -> None:
    async with CrampedDaemon() as daemon:
        await prepare(daemon)
        await daemon.client.start(APP)
        assert not await is_fork(daemon, APP)
        assert seed_files(daemon) == []
        warnings = [line for line in daemon.log().splitlines() if " WARNING " in line or " ERROR " in line]
        assert len(warnings) == 1, warnings
        assert f"no seed of {TEMPLATE} could be made" in warnings[0]
