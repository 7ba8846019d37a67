"""Seeds and forks of the QEMU driver: what a fork sees and what nobody may change (decision 011)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event

import pytest

from insula.hal.driver import Disk, ExitKind, Machine, MachineSpec
from insula.hal.errors import DriverError, SeedUnusable
from insula.hal.hostinfo import HostInfo, probe
from insula.hal.qemu import machine as machine_module
from insula.hal.qemu.driver import QemuDriver
from insula.hal.qemu.seed_files import MANIFEST_NAME, MEMORY_NAME, STATE_NAME, copy_sparse
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat, new_key
from insula.storage.luks import new_header
from insula.storage.qcow2_image import write_encrypted_overlay
from insula.testing import tiny_guest
from insula.testing.daemon import open_files
from insula.testing.hypervisors import (
    GUEST_LIMIT_S,
    POLL_S,
    QemuWorld,
    freeze,
    leftovers_of,
    make_overlay,
    run_in_guest,
)
from insula.testing.tiny_guest import Behaviour, TinyGuest

pytestmark = pytest.mark.qemu

KEY = new_key()
OTHER_KEY = new_key()
SECTOR = 512


@pytest.fixture(scope="module")
def host() -> HostInfo:
    return probe()


@pytest.fixture(scope="module")
def guest() -> TinyGuest:
    return tiny_guest.build(kernel_package=tiny_guest.GENERIC_KERNEL)


@pytest.fixture
def world(tmp_path: Path, host: HostInfo, guest: TinyGuest) -> Iterator[QemuWorld]:
    made = QemuWorld(tmp_path, host, guest)
    yield made
    assert made.leftovers() == []


@pytest.fixture
async def driver(world: QemuWorld) -> AsyncIterator[QemuDriver]:
    made = world.driver()
    assert isinstance(made, QemuDriver)
    yield made
    await made.close()
    await leftovers_of(world)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, host: HostInfo, guest: TinyGuest) -> Path:
    """A frozen machine with a root disk of 16 MiB and a private placeholder of 1 MiB; not to be changed."""
    folder = tmp_path_factory.mktemp("seed")
    world = QemuWorld(tmp_path_factory.mktemp("seed-machine"), host, guest)

    async def make() -> None:
        driver = world.driver()
        await freeze(driver, with_private(world.spec("frozen", Behaviour.SHELL), MIB), world, folder)
        await driver.close()

    asyncio.run(make())
    return folder


def with_private(spec: MachineSpec, size: int, content: bytes = b"") -> MachineSpec:
    """The spec with a raw disk ``private`` that begins with ``content``."""
    path = spec.runtime_dir.parent / f"{spec.name}-private.raw"
    path.write_bytes(content)
    os.truncate(path, size)
    source = BlockSource((BlockLayer(path, LayerFormat.RAW),), size, writable=True)
    return replace(spec, disks=(spec.disks[0], Disk("private", source)))


def fork_of(seed: Path, world: QemuWorld, name: str) -> MachineSpec:
    return replace(with_private(world.spec(name, Behaviour.SHELL), MIB), seed=seed)


@asynccontextmanager
async def running(driver: QemuDriver, spec: MachineSpec) -> AsyncIterator[Machine]:
    machine = await driver.define(spec)
    try:
        await machine.start_paused()
        await machine.resume()
        yield machine
    finally:
        await machine.kill()


def proc(machine: Machine) -> Path:
    return Path("/proc", str(machine.record()["pid"]))


# What a fork sees


@pytest.mark.parametrize("size", [MIB // 2, 8 * MIB])
async def test_disk_of_another_size_and_content_is_seen_at_once(
    world: QemuWorld, driver: QemuDriver, seed: Path, size: int
) -> None:
    spec = replace(with_private(world.spec("one", Behaviour.SHELL), size, b"private content"), seed=seed)
    async with running(driver, spec) as machine:
        assert await run_in_guest(machine, "cat /sys/block/vdb/size; head -c 15 /dev/vdb") == (
            f"{size // SECTOR}\nprivate content".encode()
        )
        last = size // SECTOR - 1
        await run_in_guest(machine, f"echo end | dd of=/dev/vdb bs=512 seek={last} conv=sync 2>/dev/null; sync")
    assert spec.disks[1].source.layers[0].path.read_bytes()[-SECTOR:].startswith(b"end\n")


async def test_disk_in_another_format_is_seen(world: QemuWorld, driver: QemuDriver, seed: Path, tmp_path: Path) -> None:
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"from the base".ljust(4 * MIB, b"\0"))
    make_overlay(top, 4 * MIB)
    layers = (BlockLayer(top, LayerFormat.QCOW2), BlockLayer(base, LayerFormat.RAW))
    fork = fork_of(seed, world, "one")
    spec = replace(fork, disks=(fork.disks[0], Disk("private", BlockSource(layers, 4 * MIB, writable=True))))
    async with running(driver, spec) as machine:
        assert await run_in_guest(machine, "cat /sys/block/vdb/size; head -c 13 /dev/vdb") == b"8192\nfrom the base"


async def test_guest_sees_no_uuid_cold_or_forked(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    # Linux shows the file only if the firmware names a uuid.
    for spec in (fork_of(seed, world, "one"), world.spec("two", Behaviour.SHELL)):
        async with running(driver, spec) as machine:
            await world.act(machine) if spec.seed is None else None
            assert await run_in_guest(machine, "ls /sys/class/dmi/id/ | grep uuid") == b""


async def test_forks_notice_that_they_are_and_draw_different_random_numbers(
    world: QemuWorld, driver: QemuDriver, seed: Path
) -> None:
    drawn = []
    for name in ("one", "two"):
        async with running(driver, fork_of(seed, world, name)) as machine:
            async with asyncio.timeout(GUEST_LIMIT_S):
                while b"virtual machine fork" not in await run_in_guest(machine, "dmesg"):
                    await asyncio.sleep(POLL_S)
            drawn.append(await run_in_guest(machine, "cat /proc/sys/kernel/random/uuid"))
    assert drawn[0] != drawn[1]


# What nobody may change


async def test_vmm_cannot_write_the_seeds_memory(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    before = digest_of(seed)
    async with running(driver, fork_of(seed, world, "one")) as machine:
        links = open_files(proc(machine))
        fds = [fd for fd, link in links.items() if link.startswith("/memfd:seed-")]
        assert {links[fd].split()[0] for fd in fds} == {"/memfd:seed-memory"}
        for fd in fds:
            # As the VMM would: same file, opened anew for writing, which its mode allows.
            with (proc(machine) / "fd" / str(fd)).open("r+b", buffering=0) as file:
                seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_WRITE and seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_SEAL
                with pytest.raises(PermissionError):
                    os.pwrite(file.fileno(), b"x", 0)
                with pytest.raises(PermissionError):
                    os.truncate(file.fileno(), 0)
                with pytest.raises(PermissionError):
                    mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                with pytest.raises(PermissionError):
                    os.posix_fallocate(file.fileno(), 0, 1 << 40)
    assert digest_of(seed) == before


async def test_writes_of_one_fork_show_in_no_other_and_not_in_the_seed(
    world: QemuWorld, driver: QemuDriver, seed: Path
) -> None:
    async with running(driver, fork_of(seed, world, "one")) as one, running(driver, fork_of(seed, world, "two")) as two:
        await run_in_guest(
            one, "for n in 1 2 3 4 5 6 7 8; do head -c 1m /dev/zero | tr '\\0' M >/tmp-$n; done; echo 1 >/mark"
        )
        assert await run_in_guest(one, "cat /mark; head -c 3 /tmp-8") == b"1\nMMM"
        assert await run_in_guest(two, "ls /mark /tmp-8 2>/dev/null") == b""
    async with running(driver, fork_of(seed, world, "three")) as three:
        assert await run_in_guest(three, "ls /mark /tmp-8 2>/dev/null") == b""


def digest_of(seed: Path) -> str:
    return subprocess.run(
        ["sha256sum", *sorted(seed.iterdir())], check=True, capture_output=True, encoding="ascii"
    ).stdout


# A machine that was started for nobody


def waiting_of(seed: Path, world: QemuWorld, name: str = "waiting.10002") -> MachineSpec:
    """A fork with a placeholder for its private disk; its root is what ``owner_of`` goes on with."""
    spec = fork_of(seed, world, name)
    return replace(spec, qid=10_002, host_number=10_002, disks=(on_overlay(spec), spec.disks[1]))


def on_overlay(spec: MachineSpec) -> Disk:
    """Its root, with an overlay of its own above."""
    top = spec.runtime_dir.parent / f"{spec.name}-root.qcow2"
    source = spec.disks[0].source
    make_overlay(top, source.size)
    base = source.layers[-1]
    return Disk("root", BlockSource((BlockLayer(top, LayerFormat.QCOW2), base), source.size, True, unlink_top=True))


def owner_of(waiting: MachineSpec, world: QemuWorld, seed: Path, name: str, private: MachineSpec) -> MachineSpec:
    root = waiting.disks[0].source
    top = private.runtime_dir.parent / f"{name}-root.qcow2"
    make_overlay(top, root.size)
    layers = (BlockLayer(top, LayerFormat.QCOW2), *root.layers[1:])
    return replace(private, seed=seed, disks=(Disk("root", replace(root, layers=layers)), private.disks[1]))


@asynccontextmanager
async def in_waiting(driver: QemuDriver, spec: MachineSpec, command: str = "true") -> AsyncIterator[Machine]:
    """It has run once, for nobody, and is paused."""
    async with running(driver, spec) as machine:
        await run_in_guest(machine, command)
        await machine.pause()
        yield machine


@pytest.mark.parametrize("size", [MIB // 2, 8 * MIB])
async def test_machine_becomes_anothers_with_its_disks_and_goes_on_with_its_root(
    world: QemuWorld, driver: QemuDriver, seed: Path, size: int
) -> None:
    waiting = waiting_of(seed, world)
    private = with_private(world.spec("work", Behaviour.SHELL), size, b"private content")
    spec = owner_of(waiting, world, seed, "work", private)
    async with in_waiting(driver, waiting, "echo before | dd of=/dev/vda conv=sync 2>/dev/null; sync") as machine:
        spec.runtime_dir.mkdir(exist_ok=True)
        await machine.become(spec)
        assert machine.spec == replace(spec, uuid=waiting.uuid, host_number=10_002)
        assert not waiting.runtime_dir.exists()
        await machine.resume()
        assert await run_in_guest(machine, "cat /sys/block/vdb/size; head -c 15 /dev/vdb; head -c 6 /dev/vda") == (
            f"{size // SECTOR}\nprivate contentbefore".encode()
        )
        await run_in_guest(machine, "echo mine | dd of=/dev/vdb conv=sync 2>/dev/null; sync")
        await machine.resize_disk("private", 16 * MIB)
        assert await run_in_guest(machine, "cat /sys/block/vdb/size") == f"{16 * MIB // SECTOR}\n".encode()
    assert spec.disks[1].source.layers[0].path.read_bytes().startswith(b"mine\n")
    assert waiting.disks[1].source.layers[0].path.read_bytes()[:5] == bytes(5)
    assert not spec.disks[0].source.layers[0].path.exists()


async def test_machine_that_became_anothers_is_adopted_by_the_next_daemon(
    world: QemuWorld, driver: QemuDriver, seed: Path
) -> None:
    waiting = waiting_of(seed, world)
    spec = owner_of(waiting, world, seed, "work", with_private(world.spec("work", Behaviour.SHELL), MIB, b"mine"))
    machine = await driver.define(waiting)
    await machine.start_paused()
    await machine.become(spec)
    await machine.resume()
    await driver.close()
    second = world.driver()
    try:
        adopted = await second.adopt(machine.spec, machine.record())
        assert adopted is not None
        assert await run_in_guest(adopted, "head -c 4 /dev/vdb") == b"mine"
        assert adopted.console_log.parent == spec.runtime_dir
        await adopted.kill()
    finally:
        await second.close()


async def test_encrypted_disks_are_taken_over_and_their_keys_wiped(
    world: QemuWorld, driver: QemuDriver, seed: Path
) -> None:
    waiting = waiting_of(seed, world)
    spec = owner_of(
        waiting, world, seed, "work", with_encrypted(world.spec("work", Behaviour.SHELL), KEY, b"from the base")
    )
    async with in_waiting(driver, waiting) as machine:
        await machine.become(spec)
        await machine.resume()
        assert await run_in_guest(machine, "head -c 13 /dev/vdb") == b"from the base"
        await run_in_guest(machine, "yes SECRETS | head -c 64k | dd of=/dev/vdb bs=64k seek=1 2>/dev/null; sync")
        assert await closes(machine, "/memfd:key")
        assert KEY not in (proc(machine) / "cmdline").read_bytes()
    assert b"SECRETS" not in spec.disks[1].source.layers[0].path.read_bytes()


async def closes(machine: Machine, path: str) -> bool:
    """Whether a machine lets go of a file soon."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GUEST_LIMIT_S):
            while any(link.startswith(path) for link in open_files(proc(machine)).values()):
                await asyncio.sleep(POLL_S)
            return True
    return False


async def test_machine_holds_no_placeholder_afterwards(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    waiting = waiting_of(seed, world)
    spec = owner_of(waiting, world, seed, "work", with_private(world.spec("work", Behaviour.SHELL), MIB))
    async with in_waiting(driver, waiting) as machine:
        placeholder = str(waiting.disks[1].source.layers[0].path)
        assert placeholder in open_files(proc(machine)).values()
        await machine.become(spec)
        await machine.resume()
        assert await closes(machine, placeholder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"memory_mib": 256}, "built differently"),
        ({"seed": None}, "no fork of the seed"),
        ({"name": "-x"}, "machine name"),
    ],
)
async def test_machine_of_another_kind_is_refused(
    world: QemuWorld, driver: QemuDriver, seed: Path, change: dict[str, object], complaint: str
) -> None:
    waiting = waiting_of(seed, world)
    spec = owner_of(waiting, world, seed, "work", with_private(world.spec("work", Behaviour.SHELL), MIB))
    async with in_waiting(driver, waiting) as machine:
        with pytest.raises(DriverError, match=complaint):
            await machine.become(replace(spec, **change))  # type: ignore[arg-type]


async def test_somebody_cannot_become_somebody_else(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    spec = fork_of(seed, world, "one")
    async with in_waiting(driver, spec) as machine:
        with pytest.raises(DriverError, match="somebody already"):
            await machine.become(replace(spec, name="two"))


async def test_disk_in_use_elsewhere_is_not_taken_over(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    private = with_private(world.spec("work", Behaviour.SHELL), MIB)
    waiting = waiting_of(seed, world)
    spec = owner_of(waiting, world, seed, "work", private)
    other = replace(fork_of(seed, world, "other"), disks=(on_overlay(private), private.disks[1]))
    async with running(driver, other), in_waiting(driver, waiting) as machine:
        with pytest.raises(DriverError):
            await machine.become(spec)


# A disk encrypted with a key in memory


def with_encrypted(spec: MachineSpec, key: bytes, content: bytes) -> MachineSpec:
    """The spec with an encrypted overlay over a plain base as its disk ``private``."""
    folder = spec.runtime_dir.parent
    base, top = folder / "base.raw", folder / "top.qcow2"
    base.write_bytes(content.ljust(MIB, b"\0"))
    write_encrypted_overlay(top, MIB, new_header(KEY))
    layers = (BlockLayer(top, LayerFormat.QCOW2), BlockLayer(base, LayerFormat.RAW))
    return replace(spec, disks=(spec.disks[0], Disk("private", BlockSource(layers, MIB, writable=True, key=key))))


@pytest.mark.parametrize("is_fork", [True, False], ids=["fork", "cold"])
async def test_encrypted_overlay_is_plain_to_the_guest_and_ciphertext_on_disk(
    world: QemuWorld, driver: QemuDriver, seed: Path, is_fork: bool
) -> None:
    fork = fork_of(seed, world, "one")
    spec = with_encrypted(fork if is_fork else replace(fork, seed=None), KEY, b"from the base")
    async with running(driver, spec) as machine:
        if not is_fork:
            await world.act(machine)
        assert await run_in_guest(machine, "head -c 13 /dev/vdb") == b"from the base"
        await run_in_guest(machine, "yes SECRETS | head -c 64k | dd of=/dev/vdb bs=64k seek=1 2>/dev/null; sync")
        await run_in_guest(machine, "echo 3 >/proc/sys/vm/drop_caches")
        assert await run_in_guest(machine, "dd if=/dev/vdb bs=64k skip=1 count=1 2>/dev/null | sort -u") == b"SECRETS\n"
        where_a_key_could_be = [(proc(machine) / name).read_bytes() for name in ("cmdline", "environ")]
        where_a_key_could_be += [path.read_bytes() for path in spec.runtime_dir.iterdir() if path.is_file()]
        for number, link in open_files(proc(machine)).items():
            if link.startswith("/memfd:key"):
                where_a_key_could_be.append((proc(machine) / "fd" / str(number)).read_bytes())
        # The VMM still has the file that brought the key; nothing is in it any more.
        assert bytes(len(KEY)) in where_a_key_could_be
        assert not any(KEY in place for place in where_a_key_could_be)
    assert b"SECRETS" not in spec.disks[1].source.layers[0].path.read_bytes()


async def test_wrong_key_is_refused(world: QemuWorld, driver: QemuDriver) -> None:
    machine = await driver.define(with_encrypted(world.spec("one"), OTHER_KEY, b""))
    with pytest.raises(DriverError) as caught:
        await machine.start_paused()
    assert "Invalid password" in caught.value.detail
    assert await leftovers_of(world) == []


# Faults


def edit_manifest(seed: Path, **values: object) -> None:
    path = seed / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.fixture
def copy(seed: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", "--sparse=always", seed, target], check=True, timeout=GUEST_LIMIT_S)
    return target


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"qemu": "7.2.1"}, "frozen by QEMU 7.2.1"),
        ({"format": 2}, "format 2"),
        ({"something": "new"}, "damaged manifest"),
        ({"memory": {"size": 1 << 60, "sha256": ""}}, "another size"),
    ],
)
async def test_seed_of_another_version_is_refused_when_loaded(
    driver: QemuDriver, copy: Path, values: dict[str, object], complaint: str
) -> None:
    edit_manifest(copy, **values)
    with pytest.raises(SeedUnusable, match=complaint):
        await driver.load_seed(copy)


async def test_seed_of_another_model_is_refused_by_a_start(world: QemuWorld, driver: QemuDriver, copy: Path) -> None:
    edit_manifest(copy, model="0" * 64)
    machine = await driver.define(fork_of(copy, world, "one"))
    with pytest.raises(SeedUnusable, match="built differently"):
        await machine.start_paused()
    assert await leftovers_of(world) == []


async def test_state_that_qemu_refuses_leaves_nothing_and_its_words(
    world: QemuWorld, driver: QemuDriver, copy: Path
) -> None:
    """A whole folder, made so that only QEMU can find out: its digests are right, its state makes no sense."""
    state = copy / STATE_NAME
    with state.open("r+b") as file:
        file.seek(state.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    edit_manifest(copy, state=note_of(state))
    machine = await driver.define(fork_of(copy, world, "one"))
    with pytest.raises(SeedUnusable) as caught:
        await machine.start_paused()
    assert "load of migration failed" in caught.value.detail
    assert await leftovers_of(world) == []


def note_of(path: Path) -> dict[str, object]:
    """What a manifest says about a file as it is now."""
    with path.open("rb") as file, TemporaryFile() as nowhere:
        size = os.fstat(file.fileno()).st_size
        return {"size": size, "sha256": copy_sparse(file.fileno(), nowhere.fileno(), size, Event())}


async def test_hole_filled_with_zeros_is_no_damage_and_with_data_is(driver: QemuDriver, copy: Path) -> None:
    memory = copy / MEMORY_NAME
    with memory.open("r+b") as file:
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        os.pwrite(file.fileno(), bytes(4096), hole)
        await driver.load_seed(copy)
        driver.unload_seed(copy)
        os.pwrite(file.fileno(), b"\1", hole + 100)
    with pytest.raises(SeedUnusable, match="damaged"):
        await driver.load_seed(copy)


async def test_read_only_disk_of_another_size_is_refused(world: QemuWorld, driver: QemuDriver, seed: Path) -> None:
    """QEMU can tell a guest about the new size of a writable disk only."""
    fork = fork_of(seed, world, "one")
    read_only = replace(fork.disks[1], source=replace(fork.disks[1].source, writable=False))
    machine = await driver.define(replace(fork, disks=(fork.disks[0], read_only)))
    with pytest.raises(SeedUnusable):
        await machine.start_paused()


async def test_disk_in_use_elsewhere_fails_the_fork_and_leaves_nothing(
    world: QemuWorld, driver: QemuDriver, seed: Path
) -> None:
    async with running(driver, fork_of(seed, world, "one")) as machine:
        second = await driver.define(replace(fork_of(seed, world, "two"), disks=machine.spec.disks))
        with pytest.raises(DriverError):
            await second.start_paused()
        assert await run_in_guest(machine, "echo alive") == b"alive\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, smaller than any seed."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True, timeout=GUEST_LIMIT_S)
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=GUEST_LIMIT_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
async def test_full_disk_while_freezing_ends_the_machine_and_empties_the_folder(
    world: QemuWorld, driver: QemuDriver, small_disk: Path
) -> None:
    async with running(driver, replace(world.spec("one", Behaviour.SHELL), freezable=True)) as machine:
        await world.act(machine)
        await machine.pause()
        with pytest.raises(DriverError, match="No space left"):
            await machine.freeze(small_disk)
        assert list(small_disk.iterdir()) == []
        assert (await machine.wait_gone()).kind.value == "frozen"
        assert await leftovers_of(world) == []


async def test_frozen_machine_may_take_longer_to_close_its_disks_than_one_that_is_killed(
    world: QemuWorld, driver: QemuDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its system wrote belongs to the seed."""
    monkeypatch.setattr(machine_module, "KILL_QUIT_LIMIT_S", 0.0)
    folder = tmp_path / "seed"
    folder.mkdir()
    machine = await driver.define(replace(world.spec("one", Behaviour.SHELL), freezable=True))
    await machine.start_paused()
    await machine.freeze(folder)
    assert (await machine.wait_gone()).kind is ExitKind.FROZEN


async def test_cancelled_freeze_ends_the_machine_and_empties_the_folder(
    world: QemuWorld, driver: QemuDriver, tmp_path: Path
) -> None:
    for number, turns in enumerate((1, 5, 30, 60)):
        folder = tmp_path / f"seed{number}"
        folder.mkdir()
        machine = await driver.define(replace(world.spec(f"after{turns}", Behaviour.SHELL), freezable=True))
        await machine.start_paused()
        freezing = asyncio.create_task(machine.freeze(folder))
        for _ in range(turns):
            await asyncio.sleep(0)
        freezing.cancel()
        results = await asyncio.gather(freezing, return_exceptions=True)
        await machine.kill()
        assert isinstance(results[0], asyncio.CancelledError)
        assert list(folder.iterdir()) == []
    assert await leftovers_of(world) == []


async def test_daemon_killed_while_freezing_leaves_no_usable_seed(
    world: QemuWorld, driver: QemuDriver, tmp_path: Path
) -> None:
    folder = tmp_path / "seed"
    folder.mkdir()
    spec = replace(world.spec("one", Behaviour.SHELL), freezable=True)
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(
            """
            import asyncio, os, pickle, signal, sys
            from pathlib import Path
            from insula.hal.qemu import seed_files
            from insula.hal.qemu.driver import QemuDriver

            async def main():
                driver = await QemuDriver.open()
                machine = await driver.define(pickle.loads(bytes.fromhex(sys.argv[1])))
                await machine.start_paused()
                # The state is written last before the manifest.
                write = seed_files._write_file
                def killed(path, *rest):
                    digest = write(path, *rest)
                    if path.name == seed_files.STATE_NAME:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return digest
                seed_files._write_file = killed
                await machine.freeze(Path(sys.argv[2]))

            asyncio.run(main())
            """
        ),
        pickle.dumps(spec).hex(),
        str(folder),
    )
    async with asyncio.timeout(GUEST_LIMIT_S):
        assert await daemon.wait() == -signal.SIGKILL
    await driver.discard(spec.runtime_dir)
    assert sorted(path.name for path in folder.iterdir()) == [MEMORY_NAME, STATE_NAME]
    with pytest.raises(SeedUnusable, match="no complete seed"):
        await driver.load_seed(folder)
    assert await leftovers_of(world) == []


async def test_freezable_machine_of_an_earlier_daemon_cannot_be_frozen(
    world: QemuWorld, driver: QemuDriver, tmp_path: Path
) -> None:
    folder = tmp_path / "seed"
    folder.mkdir()
    first = await driver.define(replace(world.spec("one"), freezable=True))
    await first.start_paused()
    await driver.close()
    second = await driver.adopt(first.spec, first.record())
    assert second is not None
    with pytest.raises(DriverError, match="earlier daemon"):
        await second.freeze(folder)
    assert list(folder.iterdir()) == []
    await second.kill()


async def test_unloading_while_loading_ends_the_load(driver: QemuDriver, copy: Path) -> None:
    loading = asyncio.create_task(driver.load_seed(copy))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    driver.unload_seed(copy)
    results = await asyncio.gather(loading, return_exceptions=True)
    assert results[0] is None or isinstance(results[0], SeedUnusable)
    await driver.load_seed(copy)
