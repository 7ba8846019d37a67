"""One face for all hypervisor drivers, so that one contract suite runs against each.

A :class:`World` is a computer with one driver's hypervisor on it: it makes specs of machines that can start there,
plays the guest or lets a real one do what its kernel command line says, and looks for what a test left behind.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

from insula.hal.driver import RPC_CHANNEL, Disk, Driver, ExitKind, Machine, MachineExit, MachineSpec
from insula.hal.fake import FakeDriver, FakeHost
from insula.hal.hostinfo import HostInfo
from insula.hal.qemu.driver import QemuDriver
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat
from insula.testing.tiny_guest import READY_LINE, Behaviour, TinyGuest

GUEST_LIMIT_S = 90.0
"""For a guest to boot and do its thing; 2 s on an idle machine."""
POLL_S = 0.01
LEFTOVERS_LIMIT_S = 60.0
"""For processes that were ended to be gone from the process table, on a busy machine."""
DISK_SIZE = 16 * MIB


class World(Protocol):
    name: str

    def driver(self) -> Driver:
        """A new driver, as a daemon that has just started has one."""

    def spec(self, name: str, behaviour: Behaviour = Behaviour.IDLE) -> MachineSpec: ...

    async def act(self, machine: Machine) -> None:
        """After ``resume``: the guest does what the spec's behaviour says; returns when it has begun to."""

    async def answer(self, machine: Machine) -> bytes:
        """What a running guest with :attr:`Behaviour.SHELL` says to ``echo alive``."""

    async def destroy(self, machine: Machine) -> None:
        """Kill the machine from outside, not through its driver."""

    def leftovers(self) -> list[str]:
        """What runs or exists of this world's machines, a line each; empty after every machine is gone."""


class _Folders:
    """Run-time folders and disks of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.specs: list[MachineSpec] = []
        self._qids = itertools.count(1)

    def spec(self, name: str, behaviour: Behaviour, guest: TinyGuest, disks: tuple[Disk, ...]) -> MachineSpec:
        # A path longer than the 107 bytes of a socket's address, as a deep home directory has.
        folder = self.root / ("run-time-folder-" * 6) / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = MachineSpec(
            name=name,
            uuid=uuid4(),
            qid=next(self._qids),
            memory_mib=128,
            vcpus=1,
            kernel=guest.kernel,
            initrd=guest.initrd,
            cmdline=behaviour.cmdline,
            disks=disks,
            runtime_dir=folder,
        )
        self.specs.append(spec)
        return spec

    def leftovers(self) -> Iterator[str]:
        for spec in self.specs:
            for path in spec.runtime_dir.glob("*"):
                if not path.name.startswith("console.log"):
                    yield f"file {path.name} of {spec.name}"


async def leftovers_of(world: World) -> list[str]:
    """What is left of a world's machines once there was time to end: the kernel and bubblewrap need a moment each."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LEFTOVERS_LIMIT_S):
            while world.leftovers():
                await asyncio.sleep(POLL_S)
    return world.leftovers()


def behaviour_of(spec: MachineSpec) -> Behaviour:
    return Behaviour(spec.cmdline.rsplit(" ", 1)[-1])


class FakeWorld:
    """Machines of :mod:`insula.hal.fake`; the guest is played here."""

    name = "fake"

    def __init__(self, root: Path) -> None:
        self.host = FakeHost()
        self._folders = _Folders(root)
        self._guest = TinyGuest(root / "vmlinuz", root / "initrd")
        self._guest.kernel.write_bytes(b"kernel")
        self._guest.initrd.write_bytes(b"initrd")

    def driver(self) -> Driver:
        return FakeDriver(self.host)

    def spec(self, name: str, behaviour: Behaviour = Behaviour.IDLE) -> MachineSpec:
        top = self._folders.root / f"{name}-root.qcow2"
        top.write_bytes(b"disk")
        source = BlockSource((BlockLayer(top, LayerFormat.QCOW2),), DISK_SIZE, writable=True)
        return self._folders.spec(name, behaviour, self._guest, (Disk("root", source),))

    async def act(self, machine: Machine) -> None:
        guest = self.host.guest(machine.spec.name)
        guest.print(READY_LINE + b"\n")
        match behaviour_of(machine.spec):
            case Behaviour.POWER_OFF:
                guest.power_off()
            case Behaviour.REBOOT:
                guest.end(MachineExit(ExitKind.SHUTDOWN, "reboot"))
            case Behaviour.PANIC:
                guest.panic()
            case Behaviour.ECHO:
                loop = asyncio.get_running_loop()
                end = guest.channel(RPC_CHANNEL)
                await loop.sock_sendall(end, await loop.sock_recv(end, 65536))

    async def answer(self, machine: Machine) -> bytes:
        with await machine.open_channel(RPC_CHANNEL) as channel:
            self.host.guest(machine.spec.name).channel(RPC_CHANNEL).send(b"alive\n")
            return channel.recv(64)

    async def destroy(self, machine: Machine) -> None:
        self.host.guest(machine.spec.name).die()

    def leftovers(self) -> list[str]:
        living = [f"machine {guest.spec.name}" for guest in self.host.living()]
        return [*living, *self._folders.leftovers()]


class QemuWorld:
    """Real machines with the tiny guest.

    :param host: as probed; one probe serves a whole test run.
    """

    name = "qemu"

    def __init__(self, root: Path, host: HostInfo, guest: TinyGuest) -> None:
        self._folders = _Folders(root)
        self._host = host
        self._guest = guest

    def driver(self) -> Driver:
        return QemuDriver(self._host)

    def spec(self, name: str, behaviour: Behaviour = Behaviour.IDLE) -> MachineSpec:
        base = self._folders.root / f"{name}-base.raw"
        with base.open("wb") as file:
            file.truncate(DISK_SIZE)
        top = self._folders.root / f"{name}-root.qcow2"
        make_overlay(top, DISK_SIZE)
        layers = (BlockLayer(top, LayerFormat.QCOW2), BlockLayer(base, LayerFormat.RAW))
        disk = Disk("root", BlockSource(layers, DISK_SIZE, writable=True))
        return self._folders.spec(name, behaviour, self._guest, (disk,))

    async def act(self, machine: Machine) -> None:
        await wait_for_console(machine, READY_LINE)

    async def answer(self, machine: Machine) -> bytes:
        return await run_in_guest(machine, "echo alive")

    async def destroy(self, machine: Machine) -> None:
        pid = machine.record()["pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        vmms = [f"process {pid}" for spec in self._folders.specs for pid in processes_of(spec.uuid)]
        return [*vmms, *self._folders.leftovers()]


def make_overlay(path: Path, size: int) -> None:
    """An empty qcow2 file; it names no backing file, a machine's chain comes from its spec."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
    subprocess.run(command, check=True, timeout=GUEST_LIMIT_S)


async def run_in_guest(machine: Machine, script: str) -> bytes:
    """Run a line of shell in a running guest with :attr:`Behaviour.SHELL`; its output.

    :raise TimeoutError: no end of it is seen.
    """
    loop = asyncio.get_running_loop()
    end = b"end of output\n"
    output = b""
    async with asyncio.timeout(GUEST_LIMIT_S):
        with await machine.open_channel(RPC_CHANNEL) as channel:
            # Quoted, so that what comes back is no echo of the command itself.
            await loop.sock_sendall(channel, f"{script}; echo 'end of'' output'\n".encode())
            while not output.endswith(end):
                part = await loop.sock_recv(channel, 65536)
                assert part, "the guest closed its channel"
                output += part
    return output.removesuffix(end)


async def freeze(driver: Driver, spec: MachineSpec, world: World, folder: Path) -> MachineSpec:
    """Boot a machine with :attr:`Behaviour.SHELL` until its guest has begun, then freeze it; the spec it had."""
    machine = await driver.define(replace(spec, freezable=True))
    try:
        await machine.start_paused()
        await machine.resume()
        await world.act(machine)
        await machine.pause()
        await machine.freeze(folder)
    finally:
        await machine.kill()
    return machine.spec


async def wait_for_console(machine: Machine, text: bytes) -> bytes:
    """Return the console's log once it contains ``text``. :raise TimeoutError: it never does."""
    async with asyncio.timeout(GUEST_LIMIT_S):
        while text not in (log := machine.console_log.read_bytes()):
            await asyncio.sleep(POLL_S)
    return log


def processes_of(uuid: UUID) -> list[int]:
    """pids of all processes that have a machine's uuid on their command line: its VMM and bubblewrap."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(uuid).encode() in words:
                found.append(int(folder.name))
    return found
