"""A driver without a hypervisor: for tests of everything above ``hal`` and for dry runs. Deterministic and scriptable.

Machines live in a :class:`FakeHost`, as real ones live on a computer: a second :class:`FakeDriver` on the same host
can adopt what the first one started. A test plays the guest through :class:`FakeGuest` (power off, panic, use the
channels) and makes the next call of a kind fail or wait through :class:`Script`. No time passes and nothing runs;
each call yields to the loop once, so that callers cannot rely on it being atomic.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from insula.hal import frames
from insula.hal.capabilities import Capability
from insula.hal.driver import ExitKind, Machine, MachineExit, MachineSpec, MachineState, MachineStats
from insula.hal.errors import DriverError, MachineGone, SeedUnusable, Unsupported
from insula.hal.preconditions import check_become, check_freeze
from insula_proto import limits

ALL_CAPABILITIES = frozenset(
    {
        Capability.PAUSE,
        Capability.BALLOON,
        Capability.RESIZE_DISK,
        Capability.ADOPT,
        Capability.FORK,
        Capability.LINKS,
        Capability.FRAMES,
        Capability.DISPLAY,
        Capability.BULK_MEMORY,
    }
)
CONSOLE_NAME = "console.log"
NOTE_NAME = "fake.machine"
"""File in the run-time folder while the machine lives."""
SEED_NAMES = ("memory", "state", "seed.json")
"""What a frozen machine leaves: two files of a few bytes, and what both must hash to."""


class Script:
    """What the next calls do, by the method's name (``"start_paused"``, ``"open_channel"``…)."""

    def __init__(self) -> None:
        self._failures: dict[str, list[Exception]] = {}
        self._gates: dict[str, list[asyncio.Event]] = {}
        self.calls: list[tuple[str, str]] = []
        """``(machine name, method)`` of every call so far."""

    def fail_next(self, method: str, error: Exception | None = None) -> None:
        """The next call of ``method`` on any machine raises; several calls of this queue up."""
        failure = DriverError(f"scripted failure of {method}") if error is None else error
        self._failures.setdefault(method, []).append(failure)

    def hold_next(self, method: str) -> asyncio.Event:
        """The next call of ``method`` waits until the returned event is set."""
        gate = asyncio.Event()
        self._gates.setdefault(method, []).append(gate)
        return gate

    async def step(self, machine: str, method: str) -> None:
        """Called by the fake at the start of each method."""
        self.calls.append((machine, method))
        await asyncio.sleep(0)
        if gates := self._gates.get(method):
            await gates.pop(0).wait()
        if failures := self._failures.get(method):
            raise failures.pop(0)


@dataclass
class FakeGuest:
    """A machine as its host sees it; survives its driver. Tests play the guest with its methods."""

    spec: MachineSpec
    number: int
    state: MachineState = MachineState.PAUSED
    memory_kib: int = 0
    disk_sizes: dict[str, int] = field(default_factory=dict)
    shutdown_requests: int = 0
    powers_off_when_asked: bool = True
    """Whether :meth:`FakeMachine.request_shutdown` is obeyed."""
    mac: str | None = None
    """Of its interface; None: it has none."""
    linked_to: tuple[int, int] | None = None
    """Number of the provider, and of its link."""
    is_outside: bool = False
    """Whether it is joined to the host's network."""
    is_fork: bool = False
    """Whether it began as a fork of a seed instead of booting."""
    frames: int | None = None
    """Its frame memory, once the host has asked for it; the fake closes it when the machine ends."""
    screen: socket.socket | None = None
    """The machine's end of the connection to its screen."""
    bulk_memory: int | None = None
    """The memory it shares with its session, likewise."""
    exit: MachineExit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _host_ends: dict[str, int] = field(default_factory=dict)
    _guest_ends: dict[str, socket.socket] = field(default_factory=dict)

    def power_off(self) -> None:
        self.end(MachineExit(ExitKind.SHUTDOWN))

    def panic(self) -> None:
        self.end(MachineExit(ExitKind.CRASHED, "the guest's kernel panicked"))

    def die(self) -> None:
        """The monitor is killed from outside."""
        self.end(MachineExit(ExitKind.CRASHED, "the VMM died"))

    def print(self, text: bytes) -> None:
        """Write to the console."""
        with (self.spec.runtime_dir / CONSOLE_NAME).open("ab") as log:
            log.write(text)

    def channel(self, name: str) -> socket.socket:
        """The guest's end of a channel that the host has opened; the fake closes it when the machine ends.

        :raise KeyError: nobody has opened it.
        """
        return self._guest_ends[name]

    def connect(self, name: str) -> socket.socket:
        """Open a channel as the host does; the host's end. :raise DriverError: in use."""
        if (old := self._guest_ends.get(name)) is not None:
            if not _is_closed(old):
                raise DriverError(f"channel {name!r} of machine {self.spec.name!r} is in use")
            old.close()
        host_end, guest_end = socket.socketpair()
        for end in (host_end, guest_end):
            end.setblocking(False)
        self._guest_ends[name] = guest_end
        return host_end

    def end(self, ending: MachineExit) -> None:
        """However it ends; the first time counts."""
        if self.exit is not None:
            return
        self.exit = ending
        self.state = MachineState.GONE
        for guest_end in self._guest_ends.values():
            guest_end.close()
        if self.screen is not None:
            self.screen.close()
        for memory in (self.frames, self.bulk_memory):
            if memory is not None:
                os.close(memory)
        with suppress(FileNotFoundError):
            (self.spec.runtime_dir / NOTE_NAME).unlink()
        self.ended.set()


def _is_closed(guest_end: socket.socket) -> bool:
    """Whether the host closed its end (unread bytes of it do not matter any more)."""
    try:
        return guest_end.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def unlink_tops(spec: MachineSpec) -> None:
    """Remove what is thrown away, as soon as a machine has it open."""
    for disk in spec.disks:
        if disk.source.unlink_top:
            disk.source.layers[0].path.unlink()


class FakeHost:
    """The computer the machines live on."""

    def __init__(self) -> None:
        self.guests: dict[int, FakeGuest] = {}
        """By number; ended ones stay for inspection."""
        self.script = Script()
        self._numbers = itertools.count(1)

    def start(self, spec: MachineSpec) -> FakeGuest:
        """:raise DriverError: a file of the spec is missing."""
        boot = [path for path in (spec.kernel, spec.initrd) if path is not None]
        media = [*(disk.source for disk in spec.disks), *([] if spec.cd is None else [spec.cd])]
        files = [*boot, *(layer.path for source in media for layer in source.layers)]
        for path in files:
            if not path.is_file():
                raise DriverError(f"machine {spec.name!r}: cannot use {path}: no such file")
        unlink_tops(spec)
        number = next(self._numbers)
        (spec.runtime_dir / NOTE_NAME).write_text(f"{number}\n", encoding="ascii")
        (spec.runtime_dir / CONSOLE_NAME).write_bytes(b"")
        guest = FakeGuest(spec, number, memory_kib=spec.memory_mib * 1024)
        guest.disk_sizes = {disk.name: disk.source.size for disk in spec.disks}
        guest.mac = None if spec.nic is None else spec.nic.mac
        guest.is_fork = spec.seed is not None
        self.guests[number] = guest
        return guest

    def living(self) -> list[FakeGuest]:
        return [guest for guest in self.guests.values() if guest.exit is None]

    def guest(self, name: str) -> FakeGuest:
        """The newest machine of that name. :raise KeyError: there was none."""
        for guest in reversed(self.guests.values()):
            if guest.spec.name == name:
                return guest
        raise KeyError(name)


def _shape(spec: MachineSpec) -> str:
    """What a fork and its seed must have in common."""
    disks = [[disk.name, disk.source.writable] for disk in spec.disks]
    files = [str(spec.kernel), str(spec.initrd)]
    nic = None if spec.nic is None else spec.nic.mac
    return json.dumps([spec.memory_mib, spec.vcpus, files, spec.cmdline, spec.channels, disks, nic, spec.links])


def write_seed(folder: Path, spec: MachineSpec) -> None:
    """Freeze a machine that looks like ``spec``."""
    memory, state, manifest = (folder / name for name in SEED_NAMES)
    memory.write_bytes(b"memory of a fake machine")
    state.write_bytes(b"its devices")
    manifest.write_text(json.dumps({"shape": _shape(spec), "sha256": _sum(memory, state, _shape(spec))}))


def read_seed(folder: Path) -> str:
    """The shape of the machine frozen in a folder. :raise SeedUnusable:"""
    memory, state, manifest = (folder / name for name in SEED_NAMES)
    try:
        note = json.loads(manifest.read_bytes())
        shape, expected = str(note["shape"]), note["sha256"]
        found = _sum(memory, state, shape)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SeedUnusable(f"the seed in {folder} is incomplete", str(error)) from error
    if found != expected:
        raise SeedUnusable(f"the seed in {folder} is damaged")
    return shape


def _sum(memory: Path, state: Path, shape: str) -> str:
    return hashlib.sha256(b"\0".join([memory.read_bytes(), state.read_bytes(), shape.encode()])).hexdigest()


class FakeMachine:
    """See :class:`insula.hal.driver.Machine`."""

    def __init__(self, spec: MachineSpec, driver: FakeDriver, guest: FakeGuest | None = None) -> None:
        self._spec = spec
        self._driver = driver
        self._guest = guest
        self._life = asyncio.Lock()
        self._early_exit: MachineExit | None = None
        """The end of a machine that never ran."""
        self._over = asyncio.Event()
        """Set where there is no guest to wait for: never started, or released."""

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    @property
    def state(self) -> MachineState:
        if self._early_exit is not None:
            return MachineState.GONE
        return MachineState.DEFINED if self._guest is None else self._guest.state

    @property
    def console_log(self) -> Path:
        return self._spec.runtime_dir / CONSOLE_NAME

    @property
    def guest(self) -> FakeGuest:
        """For tests. :raise DriverError: not started."""
        if self._guest is None:
            raise DriverError(f"machine {self._spec.name!r} was not started")
        return self._guest

    def record(self) -> Mapping[str, str | int]:
        return {} if self._guest is None else {"number": self._guest.number}

    async def start_paused(self) -> None:
        async with self._life:
            if self.state is MachineState.GONE:
                raise MachineGone(f"machine {self._spec.name!r} has ended")
            if self._guest is not None:
                raise DriverError(f"machine {self._spec.name!r} was started already")
            try:
                await self._step("start_paused")
                if self._spec.seed is not None:
                    self._driver.require_seed(self._spec.seed, self._spec)
                self._guest = self._driver.host.start(self._spec)
            except BaseException:
                self._end_early(MachineExit(ExitKind.CRASHED, "did not start"))
                raise

    async def become(self, spec: MachineSpec) -> None:
        async with self._life:
            guest = await self.begin("become", Capability.FORK)
            own = self._spec
            check_become(own, guest.state, spec)
            if _shape(spec) != _shape(own):
                raise DriverError(f"machine {spec.name!r} is built differently from the one that waits")
            own.runtime_dir.rename(spec.runtime_dir)
            self._spec = guest.spec = replace(spec, uuid=own.uuid, host_number=own.host_number)
            guest.disk_sizes = {disk.name: disk.source.size for disk in spec.disks}
            unlink_tops(spec)

    async def resume(self) -> None:
        guest = await self.begin("resume")
        guest.state = MachineState.RUNNING

    async def pause(self) -> None:
        guest = await self.begin("pause", Capability.PAUSE)
        guest.state = MachineState.PAUSED

    async def freeze(self, folder: Path) -> None:
        guest = await self.begin("freeze", Capability.FORK)
        check_freeze(self._spec, guest.state, folder)
        write_seed(folder, self._spec)
        guest.end(MachineExit(ExitKind.FROZEN))

    async def request_shutdown(self) -> None:
        guest = await self.begin("request_shutdown")
        guest.shutdown_requests += 1
        if guest.powers_off_when_asked and guest.state is MachineState.RUNNING:
            guest.power_off()

    async def kill(self) -> None:
        async with self._life:
            if self._guest is None:
                self._end_early(MachineExit(ExitKind.KILLED, "never started"))
                return
            if self._guest.exit is None:
                self._require_alive()
                await self._step("kill")
                self._guest.end(MachineExit(ExitKind.KILLED))

    async def wait_gone(self) -> MachineExit:
        waits = [asyncio.ensure_future(self._over.wait())]
        if self._guest is not None:
            waits.append(asyncio.ensure_future(self._guest.ended.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        ending = self._early_exit if self._guest is None else self._guest.exit
        if ending is None:
            raise DriverError(f"machine {self._spec.name!r} was released and is no longer watched")
        return ending

    async def open_channel(self, name: str) -> socket.socket:
        guest = await self.begin("open_channel")
        if name not in self._spec.channels:
            raise DriverError(f"machine {self._spec.name!r} has no channel {name!r}")
        return guest.connect(name)

    async def open_frames(self) -> int:
        guest = await self.begin("open_frames", Capability.FRAMES)
        if self._spec.freezable:
            raise DriverError(f"machine {self._spec.name!r} is to be frozen, and gets no frame memory")
        if guest.frames is None:
            guest.frames = frames.make()
        return os.dup(guest.frames)

    async def open_display(self) -> socket.socket:
        guest = await self.begin("open_display", Capability.DISPLAY)
        if not self._spec.has_display:
            raise DriverError(f"machine {self._spec.name!r} has no screen")
        if guest.screen is not None:
            guest.screen.close()
        ours, guest.screen = socket.socketpair()
        guest.screen.sendall(b"RFB 003.008\n")
        return ours

    async def open_bulk_memory(self) -> int:
        guest = await self.begin("open_bulk_memory", Capability.BULK_MEMORY)
        if self._spec.freezable:
            raise DriverError(f"machine {self._spec.name!r} is to be frozen, and shares no memory")
        if guest.bulk_memory is None:
            guest.bulk_memory = frames.make(limits.BULK_SIZE, frames.BULK_NAME)
        return os.dup(guest.bulk_memory)

    async def has_frames(self) -> bool:
        guest = await self.begin("has_frames")
        return guest.frames is not None

    async def set_memory(self, mib: int) -> None:
        guest = await self.begin("set_memory", Capability.BALLOON)
        if not 0 < mib <= self._spec.memory_mib:
            raise DriverError(f"memory of {mib} MiB is not within 1…{self._spec.memory_mib} MiB")
        guest.memory_kib = mib * 1024

    async def resize_disk(self, disk: str, size: int) -> None:
        guest = await self.begin("resize_disk", Capability.RESIZE_DISK)
        if disk not in guest.disk_sizes:
            raise DriverError(f"machine {self._spec.name!r} has no disk {disk!r}")
        guest.disk_sizes[disk] = size

    async def stats(self) -> MachineStats:
        guest = await self.begin("stats")
        return MachineStats(0, guest.memory_kib // 2, guest.memory_kib, self._spec.vcpus)

    def release(self) -> None:
        """See :meth:`FakeDriver.close`."""
        self._over.set()

    def _end_early(self, ending: MachineExit) -> None:
        if self._early_exit is None:
            self._early_exit = ending
            self._over.set()

    async def _step(self, method: str) -> None:
        await self._driver.host.script.step(self._spec.name, method)

    async def begin(self, method: str, needs: Capability | None = None) -> FakeGuest:
        """What every call on a living machine starts with; the guest, still alive after the call's step."""
        if needs is not None and needs not in self._driver.capabilities:
            raise Unsupported(needs, self._driver.name)
        self._require_alive()
        await self._step(method)
        return self._require_alive()

    def _require_alive(self) -> FakeGuest:
        if self.state is MachineState.GONE or self._over.is_set():
            raise MachineGone(f"machine {self._spec.name!r} has ended")
        return self.guest


class FakeDriver:
    """See :class:`insula.hal.driver.Driver`."""

    def __init__(self, host: FakeHost | None = None, capabilities: frozenset[Capability] = ALL_CAPABILITIES) -> None:
        self.host = FakeHost() if host is None else host
        self._capabilities = capabilities
        self._machines: list[FakeMachine] = []
        self._seeds: dict[Path, str] = {}
        """Seeds in use: the shape of the machines each can start."""

    @property
    def name(self) -> str:
        return "fake"

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    async def define(self, spec: MachineSpec) -> FakeMachine:
        await self.host.script.step(spec.name, "define")
        if not spec.cmdline.isascii() or not spec.cmdline.isprintable():
            raise DriverError("kernel command line must be printable ASCII")
        if not os.access(spec.runtime_dir, os.W_OK):
            raise DriverError(f"run-time folder {spec.runtime_dir} does not exist")
        return self._keep(FakeMachine(spec, self))

    async def adopt(self, spec: MachineSpec, record: Mapping[str, str | int]) -> FakeMachine | None:
        await self.host.script.step(spec.name, "adopt")
        if Capability.ADOPT not in self._capabilities:
            raise Unsupported(Capability.ADOPT, self.name)
        number = record.get("number")
        guest = self.host.guests.get(number) if isinstance(number, int) else None
        if guest is None or guest.exit is not None:
            return None
        if guest.spec.uuid != spec.uuid:
            raise DriverError(f"machine {number} is {guest.spec.uuid}, not {spec.uuid}")
        return self._keep(FakeMachine(spec, self, guest))

    async def link(self, client: Machine, provider: Machine, number: int) -> None:
        ours, theirs = await self._end(client, "link"), await self._end(provider, "linked")
        if ours.mac is None or not 0 <= number < theirs.spec.links or number in self._linked(theirs):
            raise DriverError(f"{ours.spec.name} cannot be link {number} of {theirs.spec.name}")
        ours.linked_to = (theirs.number, number)

    async def unlink(self, provider: Machine, number: int) -> None:
        theirs = await self._end(provider, "unlink")
        for guest in self.host.living():
            if guest.linked_to == (theirs.number, number):
                guest.linked_to = None

    async def links(self, provider: Machine) -> frozenset[int]:
        return self._linked(await self._end(provider, "links"))

    async def plug_nic(self, client: Machine, mac: str) -> None:
        ours = await self._end(client, "plug_nic")
        ours.mac = ours.mac or mac

    async def unplug_nic(self, client: Machine) -> None:
        ours = await self._end(client, "unplug_nic")
        ours.mac = ours.linked_to = None

    async def link_outside(self, client: Machine) -> None:
        ours = await self._end(client, "link_outside")
        if ours.mac is None:
            raise DriverError(f"{ours.spec.name} has no network interface")
        ours.is_outside = True

    async def _end(self, machine: Machine, method: str) -> FakeGuest:
        assert isinstance(machine, FakeMachine)
        return await machine.begin(method, Capability.LINKS)

    def _linked(self, provider: FakeGuest) -> frozenset[int]:
        ends = [guest.linked_to for guest in self.host.living() if guest.linked_to is not None]
        return frozenset(number for owner, number in ends if owner == provider.number)

    async def load_seed(self, folder: Path) -> None:
        await self.host.script.step(folder.name, "load_seed")
        if Capability.FORK not in self._capabilities:
            raise Unsupported(Capability.FORK, self.name)
        if folder not in self._seeds:
            self._seeds[folder] = read_seed(folder)

    def unload_seed(self, folder: Path) -> None:
        self._seeds.pop(folder, None)

    def require_seed(self, folder: Path, spec: MachineSpec) -> None:
        """Called by a machine that starts. :raise SeedUnusable: the seed is damaged or of another shape."""
        if Capability.FORK not in self._capabilities:
            raise Unsupported(Capability.FORK, self.name)
        if folder not in self._seeds:
            self._seeds[folder] = read_seed(folder)
        if self._seeds[folder] != _shape(spec):
            raise SeedUnusable(f"machine {spec.name!r} is built differently from the one frozen in {folder}")

    async def discard(self, runtime_dir: Path) -> bool:
        await self.host.script.step(runtime_dir.name, "discard")
        for guest in self.host.living():
            if guest.spec.runtime_dir == runtime_dir:
                guest.end(MachineExit(ExitKind.KILLED, "discarded"))
                return True
        return False

    async def close(self) -> None:
        for machine in self._machines:
            if Capability.ADOPT not in self._capabilities:
                await machine.kill()
            machine.release()
        self._machines.clear()
        self._seeds.clear()

    def _keep(self, machine: FakeMachine) -> FakeMachine:
        self._machines.append(machine)
        return machine
