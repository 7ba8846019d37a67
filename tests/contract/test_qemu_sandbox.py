"""What surrounds a running VMM: nothing of the host but /usr, no rights, its own descriptors (decision 003, MC-103)."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.hal.driver import Disk, ExitKind, Machine
from insula.hal.errors import DriverError
from insula.hal.hostinfo import HostInfo, Tool, probe
from insula.hal.qemu.console import OLD_LOG_NAME
from insula.hal.qemu.descriptors import STATUS_FILE
from insula.hal.qemu.driver import QemuDriver
from insula.hal.qemu.process import VMM_NICENESS
from insula.hal.qemu.sandbox import VMM_FILES_LIMIT, vmm_uid
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat
from insula.testing import tiny_guest
from insula.testing.daemon import open_files
from insula.testing.hypervisors import (
    DISK_SIZE,
    GUEST_LIMIT_S,
    POLL_S,
    QemuWorld,
    leftovers_of,
    make_overlay,
    processes_of,
    wait_for_console,
)
from insula.testing.tiny_guest import READY_LINE, Behaviour, TinyGuest

pytestmark = pytest.mark.qemu

FLOOD_SIZE = 48 * 1024
"""Bytes of console output that make a flood here: more than one portion of the reader."""


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
async def machine(world: QemuWorld) -> AsyncIterator[Machine]:
    """Started and paused, with a disk of two layers."""
    made = await world.driver().define(world.spec("one"))
    await made.start_paused()
    yield made
    await made.kill()
    assert await leftovers_of(world) == []


def proc(machine: Machine) -> Path:
    return Path("/proc", str(machine.record()["pid"]))


def status(machine: Machine) -> dict[str, str]:
    lines = (proc(machine) / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# What it sees


def test_vmm_root_has_only_usr_and_kernel_file_systems(machine: Machine, host: HostInfo) -> None:
    names = {path.name for path in (proc(machine) / "root").iterdir()}
    assert names == {"usr", "proc", "dev"} | set(host.root_links)


def test_vmm_mounts_are_read_only_but_for_device_nodes(machine: Machine) -> None:
    writable = []
    for line in (proc(machine) / "mountinfo").read_text().splitlines():
        fields = line.split()
        mount_point, options = fields[4], fields[5].split(",")
        if "rw" in options:
            writable.append(mount_point)
    # The terminals' file system, /proc itself, and single device nodes: nothing a file could be made in.
    devices = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
    assert set(writable) <= devices | {"/proc", "/dev/pts"}


def test_vmm_sees_no_device_of_the_host(machine: Machine, host: HostInfo) -> None:
    names = {path.name for path in (proc(machine) / "root/dev").iterdir()}
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "console", "core"}
    standard_streams = {"fd", "stdin", "stdout", "stderr"}
    kvm = {"kvm"} if host.accelerator.is_hardware else set()
    assert names <= harmless | standard_streams | kvm


@pytest.mark.parametrize("kind", ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup"])
def test_vmm_has_its_own_namespace(machine: Machine, kind: str) -> None:
    assert (proc(machine) / "ns" / kind).readlink() != Path("/proc/self/ns", kind).readlink()


def test_vmm_is_alone_in_its_namespace(machine: Machine) -> None:
    assert status(machine)["NSpid"].split()[-1] == "1"
    pids = [path.name for path in (proc(machine) / "root/proc").iterdir() if path.name.isdigit()]
    assert pids == ["1"]


def test_vmm_has_no_network_interface_but_loopback(machine: Machine) -> None:
    lines = (proc(machine) / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


# What it may do


def test_vmm_runs_as_a_host_user_of_its_own_not_root(machine: Machine, host: HostInfo) -> None:
    expected = vmm_uid(machine.spec.qid) if host.daemon_is_root else os.getuid()
    assert status(machine)["Uid"].split() == [str(expected)] * 4
    assert status(machine)["Gid"].split()[0] != "0"
    if host.daemon_is_root:
        assert status(machine)["Groups"].split() == [str(group) for group in host.vmm_groups]


def test_vmm_has_no_capability_and_cannot_gain_one(machine: Machine) -> None:
    fields = status(machine)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_vmm_is_under_a_seccomp_filter(machine: Machine) -> None:
    assert status(machine)["Seccomp"] == "2"


def test_vmm_environment_is_empty_of_host_values(machine: Machine) -> None:
    words = (proc(machine) / "environ").read_bytes().split(b"\0")
    assert [word for word in words if word and not word.startswith(b"PWD=")] == []


def test_vmm_resources_are_limited(machine: Machine, host: HostInfo) -> None:
    limits = (proc(machine) / "limits").read_text().splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max open files"] == [str(host.files_limit)] * 2
    assert host.files_limit <= VMM_FILES_LIMIT


# What it gets of the CPU


def test_every_thread_of_the_vmm_yields_to_the_daemon(machine: Machine) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    threads = [int(task.name) for task in (proc(machine) / "task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {min(own + VMM_NICENESS, 19)}


def test_vmm_is_not_in_the_daemons_process_group(machine: Machine) -> None:
    assert os.getpgid(int(machine.record()["pid"])) != os.getpgid(0)


def test_vmm_has_no_terminal(machine: Machine) -> None:
    # Fields after the command name: state, ppid, pgrp, session, tty_nr (proc(5)).
    fields = (proc(machine) / "stat").read_text().rpartition(")")[2].split()
    assert fields[4] == "0"


# What it holds


def test_vmm_holds_only_its_own_files(machine: Machine) -> None:
    links = list(open_files(proc(machine)).values())
    files = {link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/memfd:"))}
    layers = {str(layer.path) for disk in machine.spec.disks for layer in disk.source.layers}
    assert files <= layers | {str(machine.spec.kernel), str(machine.spec.initrd)}
    assert layers <= files
    sockets = [link for link in links if link.startswith("socket:")]
    # Listening: monitor, console, two channels, the network end; connected: monitor and console.
    assert len(sockets) == 7


def test_vmm_writes_only_to_the_top_layer(machine: Machine) -> None:
    writable = set()
    for number, link in open_files(proc(machine)).items():
        info = (proc(machine) / "fdinfo" / str(number)).read_text()
        flags = int(info.split("flags:")[1].split()[0], 8)
        if flags & os.O_ACCMODE != os.O_RDONLY and link.startswith("/") and not link.startswith(("/dev/", "/memfd:")):
            writable.add(link)
    assert writable == {str(machine.spec.disks[0].source.layers[0].path)}


async def test_killed_sandbox_process_does_not_end_the_machine(machine: Machine) -> None:
    (outer,) = (pid for pid in processes_of(machine.spec.uuid) if str(pid) != str(machine.record()["pid"]))
    os.kill(outer, 9)
    async with asyncio.timeout(GUEST_LIMIT_S):
        while Path(f"/proc/{outer}").exists():
            await asyncio.sleep(POLL_S)
    await machine.resume()
    assert (await machine.stats()).vcpus == 1


# Starts that must not happen


async def test_without_sandbox_nothing_starts(world: QemuWorld, host: HostInfo) -> None:
    for broken in (replace(host, sandbox_problem="no user namespaces"), replace(host, bwrap=Tool(None))):
        with pytest.raises(DriverError, match=r"sandbox|bubblewrap"):
            await QemuDriver(broken).define(world.spec("one"))


async def test_broken_sandbox_tool_starts_nothing(world: QemuWorld, host: HostInfo) -> None:
    broken = replace(host, bwrap=Tool("/usr/bin/false", (0, 8)))
    machine = await QemuDriver(broken).define(world.spec("one"))
    with pytest.raises(DriverError, match="sandbox"):
        await machine.start_paused()
    assert await leftovers_of(world) == []


async def test_broken_disk_is_refused_with_qemus_words_and_the_log_kept(world: QemuWorld) -> None:
    spec = world.spec("one")
    spec.disks[0].source.layers[0].path.write_bytes(b"not qcow2" * 1000)
    machine = await world.driver().define(spec)
    with pytest.raises(DriverError) as caught:
        await machine.start_paused()
    assert "qcow2" in caught.value.detail
    assert machine.console_log.exists()
    assert await leftovers_of(world) == []


async def test_disk_in_use_is_refused_to_a_second_machine(world: QemuWorld, machine: Machine) -> None:
    second = await world.driver().define(replace(world.spec("two"), disks=machine.spec.disks))
    with pytest.raises(DriverError) as caught:
        await second.start_paused()
    assert "lock" in caught.value.detail


async def test_folder_of_a_living_machine_is_refused_and_stays_usable(world: QemuWorld, machine: Machine) -> None:
    second = await world.driver().define(replace(world.spec("two"), runtime_dir=machine.spec.runtime_dir))
    with pytest.raises(DriverError, match="already"):
        await second.start_paused()
    (await machine.open_channel(machine.spec.channels[0])).close()


# Disks as the guest sees them


async def test_guest_finds_disks_by_serial_in_order(world: QemuWorld, tmp_path: Path) -> None:
    private, plain = tmp_path / "private.qcow2", tmp_path / "plain.raw"
    make_overlay(private, 2 * DISK_SIZE)
    plain.write_bytes(bytes(MIB))
    spec = world.spec("one", Behaviour.LIST_DISKS)
    disks = (
        *spec.disks,
        Disk("private", BlockSource((BlockLayer(private, LayerFormat.QCOW2),), 2 * DISK_SIZE, writable=True)),
        Disk("plain", BlockSource((BlockLayer(plain, LayerFormat.RAW),), MIB, writable=False)),
    )
    machine = await world.driver().define(replace(spec, disks=disks))
    await machine.start_paused()
    await machine.resume()
    log = await wait_for_console(machine, b"disk vdc")
    await machine.kill()
    found = [line for line in log.decode().splitlines() if line.startswith("disk ")]
    assert found == [
        f"disk vda root {DISK_SIZE // 512} 0",
        f"disk vdb private {2 * DISK_SIZE // 512} 0",
        f"disk vdc plain {MIB // 512} 1",
    ]


async def test_guest_writes_reach_the_top_layer_only(world: QemuWorld) -> None:
    spec = world.spec("one", Behaviour.WRITE_DISK)
    top, base = (layer.path for layer in spec.disks[0].source.layers)
    machine = await world.driver().define(spec)
    await machine.start_paused()
    await machine.resume()
    await wait_for_console(machine, b"written")
    await machine.kill()
    assert b"W" * 65536 in top.read_bytes()
    assert base.read_bytes() == bytes(DISK_SIZE)


# Values that look like something else (MC-101)


async def test_odd_paths_and_command_line_arrive_unchanged(world: QemuWorld, tmp_path: Path) -> None:
    folder = tmp_path / "a,b=c\"d'e%s\nf;$(g)"
    folder.mkdir()
    spec = world.spec("one")
    top = folder / "top,file.filename=passwd"
    spec.disks[0].source.layers[0].path.rename(top)
    kernel = folder / "kernel,append=x"
    assert spec.kernel is not None
    kernel.write_bytes(spec.kernel.read_bytes())
    text = 'a,b="c" \'d\' %s ${e} -S ,,id=x \\ {"f":1}'
    odd = replace(
        spec,
        kernel=kernel,
        cmdline=f"{text} {spec.cmdline}",
        disks=(Disk("root", BlockSource((BlockLayer(top, LayerFormat.QCOW2),), DISK_SIZE, writable=True)),),
    )
    machine = await world.driver().define(odd)
    await machine.start_paused()
    await machine.resume()
    log = await wait_for_console(machine, READY_LINE)
    await machine.kill()
    assert f"cmdline {odd.cmdline}" in log.decode().splitlines()


# The console


async def test_console_flood_is_printable_and_does_not_stall_the_daemon(world: QemuWorld) -> None:
    loop = asyncio.get_running_loop()
    machine = await world.driver().define(world.spec("one", Behaviour.FLOOD))
    await machine.start_paused()
    await machine.resume()
    await wait_for_console(machine, READY_LINE)
    turns = []
    async with asyncio.timeout(GUEST_LIMIT_S):
        while machine.console_log.stat().st_size < FLOOD_SIZE:
            before = loop.time()
            await asyncio.sleep(0)
            turns.append(loop.time() - before)
            await asyncio.sleep(POLL_S)
    await machine.kill()
    assert set(machine.console_log.read_bytes()) <= set(range(0x20, 0x7F)) | set(b"\t\n")
    # Typical turn of the loop, not the worst: other programs run on this machine, too.
    assert sorted(turns)[len(turns) // 2] < 0.01


async def test_next_machine_in_the_folder_keeps_the_last_ones_console(world: QemuWorld) -> None:
    spec = world.spec("one", Behaviour.IDLE)
    spec.runtime_dir.joinpath("console.log").write_bytes(b"last words\n")
    machine = await world.driver().define(spec)
    await machine.start_paused()
    await machine.kill()
    assert (spec.runtime_dir / OLD_LOG_NAME).read_bytes() == b"last words\n"


# The daemon dies


async def test_shutdown_unseen_by_any_daemon_is_told_to_the_next(world: QemuWorld) -> None:
    driver = world.driver()
    first = await driver.define(world.spec("one", Behaviour.POWER_OFF))
    await first.start_paused()
    await first.resume()
    await driver.close()
    cpu_stat = proc(first) / "stat"
    async with asyncio.timeout(GUEST_LIMIT_S):
        # The guest has ended when the VMM uses no more CPU time; nothing else of it can be seen from here.
        before, same = "", 0
        while same < 20:
            now = cpu_stat.read_text().split()[13]
            before, same = now, same + 1 if now == before else 0
            await asyncio.sleep(0.05)
    machine = await world.driver().adopt(first.spec, first.record())
    assert machine is not None
    assert (await machine.wait_gone()).kind is ExitKind.SHUTDOWN
    assert await leftovers_of(world) == []


async def test_daemon_killed_during_a_start_leaves_a_machine_that_its_folder_finds(world: QemuWorld) -> None:
    spec = world.spec("one")
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(
            """
                import asyncio, os, pickle, signal, sys
                from insula.hal.qemu.driver import QemuDriver

                async def main():
                    driver = await QemuDriver.open()
                    machine = await driver.define(pickle.loads(bytes.fromhex(sys.argv[1])))
                    await machine.start_paused()
                    os.kill(os.getpid(), signal.SIGKILL)

                asyncio.run(main())
                """
        ),
        pickle.dumps(spec).hex(),
    )
    async with asyncio.timeout(GUEST_LIMIT_S):
        assert await daemon.wait() == -9
    assert (spec.runtime_dir / STATUS_FILE).exists()
    assert processes_of(spec.uuid) != []
    assert await world.driver().discard(spec.runtime_dir) is True
    async with asyncio.timeout(GUEST_LIMIT_S):
        while processes_of(spec.uuid):
            await asyncio.sleep(POLL_S)
    assert await leftovers_of(world) == []
