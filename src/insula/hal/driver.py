"""The interface every hypervisor driver implements.

A driver turns a :class:`MachineSpec` (a frozen value, complete: no defaults are looked up elsewhere) into a
:class:`Machine`. ``define`` has no side effects outside the driver's run-time folder; ``start_paused``
starts the virtual machine monitor; ``resume`` lets the guest run. A machine is used once: after it ended,
define a new one.

States of a machine::

    defined ── start_paused ──► paused ◄── pause / resume ──► running ──► gone
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID

from insula.hal.capabilities import Capability
from insula.model.block import BlockSource
from insula.model.pci import PciAddress

RPC_CHANNEL = "insula.rpc"
"""Byte channel to the agent (multiplexed, ``insula_proto.mux``)."""
GUI_CHANNEL = "insula.gui"
"""Byte channel of the windows."""


def link_mac(number: int) -> str:
    """Address of the provider's end of a link before its guest gives it another: it tells the guest which one it is."""
    return f"fe:ff:ff:00:{number >> 8:02x}:{number & 0xFF:02x}"


MAX_HOST_NUMBER = 20_000
"""10 000 qubes, the machine that is being made into a seed, and machines that were started for nobody."""


class MachineState(StrEnum):
    DEFINED = "defined"
    PAUSED = "paused"
    RUNNING = "running"
    GONE = "gone"


class ExitKind(StrEnum):
    SHUTDOWN = "shutdown"
    """The guest powered itself off: its file systems are clean."""
    KILLED = "killed"
    """Ended by :meth:`Machine.kill`."""
    FROZEN = "frozen"
    """Ended by :meth:`Machine.freeze`."""
    CRASHED = "crashed"
    """The guest panicked or its monitor died."""


@dataclass(frozen=True)
class MachineExit:
    kind: ExitKind
    detail: str = ""
    """For the log and the user; host text only, no guest output."""


@dataclass(frozen=True)
class Disk:
    name: str
    """``root``, ``private``, ``volatile``…: the guest finds it as the virtio serial of that name."""
    source: BlockSource


@dataclass(frozen=True)
class Nic:
    """The network interface of a machine. Nothing is behind it until :meth:`Driver.link`."""

    mac: str
    """Address it begins with, ``00:16:3e:5e:6c:00``."""


@dataclass(frozen=True)
class MachineSpec:
    """Everything about a virtual machine. All text in it is host text (no guest wrote it)."""

    name: str
    uuid: UUID
    qid: int
    """1…10001, unique on this host; drivers derive run-time ids (host uid, domain id) from it."""
    memory_mib: int
    vcpus: int
    kernel: Path | None
    """None: it boots from its first disk that can be booted, as any PC."""
    initrd: Path | None
    """With a kernel only."""
    cmdline: str
    """Kernel command line, printable ASCII."""
    disks: tuple[Disk, ...]
    """In order: the guest sees vda, vdb, vdc…"""
    runtime_dir: Path
    """Existing folder of this machine alone, owned by the daemon, mode 0700: sockets, console log."""
    channels: tuple[str, ...] = (RPC_CHANNEL, GUI_CHANNEL)
    nic: Nic | None = None
    """None: the machine has no network interface at all (MC-82)."""
    links: int = 0
    """How many clients can be linked to this machine at a time."""
    devices: tuple[PciAddress, ...] = ()
    """Devices of this host that the machine has for itself, behind an IOMMU. Needs Capability.PCI_PASSTHROUGH. Such a
    machine can neither be frozen nor be a fork: the devices would not be."""
    strict_reset: bool = True
    """Whether a device that cannot be reset is refused."""
    host_number: int | None = None
    """What run-time ids are derived from in place of the qid: of a machine that was started for nobody
    (:meth:`Machine.become`) and keeps them. Unique like a qid; at most :data:`MAX_HOST_NUMBER`."""
    has_display: bool = False
    """A screen, a keyboard and a pointer, as any PC has: for systems without agent. Needs Capability.DISPLAY. Such a
    machine can neither be frozen nor be a fork."""
    cd: BlockSource | None = None
    """In a drive of its own, read-only; the machine boots from it first. Only with a screen and
    without a kernel."""
    debug: bool = False
    freezable: bool = False
    """Whether :meth:`Machine.freeze` can be used: the machine's memory is a file of its own from the start."""
    seed: Path | None = None
    """Start as a fork of the machine frozen into this folder (:meth:`Machine.freeze`) instead of booting. Memory,
    vcpus, kernel, command line, channels, interfaces and the names and order of the disks must be those of the frozen
    machine; what the disks hold is the fork's own, where the root's chain ends in the layers the frozen one wrote."""


@dataclass(frozen=True)
class MachineStats:
    cpu_time_ms: int
    """CPU time used by the monitor and the guest since start."""
    memory_kib: int
    """Memory of the host really used (proportional where the host can tell)."""
    memory_assigned_kib: int
    """What the guest may use now (balloon target)."""
    vcpus: int


class Machine(Protocol):
    """One virtual machine. All methods are for one asyncio loop; a call after the end raises MachineGone."""

    @property
    def spec(self) -> MachineSpec: ...

    @property
    def state(self) -> MachineState: ...

    async def start_paused(self) -> None:
        """Start the monitor with the guest not running yet.

        :raise DriverError: nothing was left behind.
        :raise SeedUnusable: the spec's seed cannot be forked; a start without it may work.
        """

    async def freeze(self, folder: Path) -> None:
        """End a paused, freezable machine and keep its memory and devices in ``folder`` as a *seed* for forks.

        The machine is gone after it (:attr:`ExitKind.FROZEN`). ``folder`` must exist and be empty; what is written
        there is checked when it is used: another version of the hypervisor, another Insula whose machines look
        different, a truncated or altered file are refused (:exc:`insula.hal.errors.SeedUnusable`).

        :raise DriverError: the machine is not paused or not freezable, or the folder is not empty: nothing was done.
            Or writing failed: the machine is gone, the folder empty again.
        :raise Unsupported: no Capability.FORK.
        """

    async def become(self, spec: MachineSpec) -> None:
        """Give a paused fork that was started for nobody to whom ``spec`` describes.

        It gets the disks and the run-time folder of ``spec`` (which exists and is empty) and is from then on what
        ``spec`` says, except for the uuid and the host number, which it keeps: :attr:`spec` tells both. The seed and
        all that a fork has from it must be the same. A disk whose lower layers are those the machine has now goes on
        *on top of* what was written to it so far; any other takes the place of the old one, which nothing in the guest
        may have open.

        :raise DriverError: the machine may have some of the disks of ``spec`` by now and is of no use; kill it.
        """

    async def resume(self) -> None: ...

    async def pause(self) -> None: ...

    async def request_shutdown(self) -> None:
        """Press the power button; the guest may take its time or ignore it."""

    async def kill(self) -> None:
        """End the machine now; returns when it is gone. Idempotent."""

    async def wait_gone(self) -> MachineExit:
        """Return once the machine has ended, however; may be awaited by many."""

    async def open_channel(self, name: str) -> socket.socket:
        """Connect to a byte channel of the spec; non-blocking socket, owned by the caller.

        One connection at a time and channel: a second one is refused until the first is closed.
        """

    async def open_frames(self) -> int:
        """The machine's frame memory (:mod:`insula.hal.frames`), given to it when it is first asked for.

        Return a descriptor, the caller's, the same memory each time, also of a machine that was adopted. Its guest
        sees a PCI device of that memory (``ivshmem``) appear, or has something else its agent knows of.

        :raise DriverError: it cannot be given any. :raise Unsupported: no Capability.FRAMES.
        """

    async def open_display(self) -> socket.socket:
        """A connection to the machine's own screen, speaking RFB 3.8 without password, the caller's. Who connects last
        has it.

        :raise DriverError: it has none (:attr:`MachineSpec.has_display`). :raise Unsupported: no Capability.DISPLAY.
        """

    async def has_frames(self) -> bool:
        """Whether it was ever given frame memory. :raise HalError: it cannot be told."""

    async def open_bulk_memory(self) -> int:
        """Memory that the machine shares with its session (:mod:`insula_proto.bulk`); it gets it when first asked for.

        Return a descriptor, the caller's, sealed, the same memory each time, also of a machine that was adopted. Its
        guest sees a PCI device of that memory (``ivshmem``) appear, or has something else its agent knows of.

        :raise DriverError: it cannot be given any. :raise Unsupported: no Capability.BULK_MEMORY.
        """

    async def set_memory(self, mib: int) -> None:
        """Move the balloon. :raise Unsupported:"""

    async def resize_disk(self, disk: str, size: int) -> None:
        """Tell the guest that a disk has ``size`` bytes now. :raise Unsupported:"""

    async def stats(self) -> MachineStats: ...

    def record(self) -> Mapping[str, str | int]:
        """What :meth:`Driver.adopt` needs to find this machine after the daemon was restarted."""

    @property
    def console_log(self) -> Path:
        """Guest console output: untrusted bytes, size-limited; escape before showing (MC-103)."""


class Driver(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    async def define(self, spec: MachineSpec) -> Machine:
        """Check the spec and return the machine, not started. :raise DriverError: a value that cannot work."""

    async def adopt(self, spec: MachineSpec, record: Mapping[str, str | int]) -> Machine | None:
        """Find a machine started by an earlier daemon; None if it is gone. Needs Capability.ADOPT."""

    async def load_seed(self, folder: Path) -> None:
        """Check a seed and have it ready for forks (a start does it by itself if need be). Needs Capability.FORK.

        :raise SeedUnusable: damaged, incomplete, or made by another version.
        """

    def unload_seed(self, folder: Path) -> None:
        """Forget a seed that :meth:`load_seed` or a start loaded; running forks keep what they have. Idempotent."""

    async def discard(self, runtime_dir: Path) -> bool:
        """End a machine of an earlier daemon of which only the run-time folder is known; whether there was one."""

    async def link(self, client: Machine, provider: Machine, number: int) -> None:
        """Join the client's interface to a new one of the provider, its link ``number`` (from 0).

        Both have started, the client is not linked. The provider's guest sees an interface with the address
        :func:`link_mac` appear; that may take it a second. Frames go from one machine to the other and nowhere else.
        Needs Capability.LINKS.

        :raise DriverError: the number is taken (or its guest still holds what was there), or one of them has no
            interface for it; nothing was done.
        """

    async def unlink(self, provider: Machine, number: int) -> None:
        """Part what :meth:`link` has joined: no frame passes any more when this returns. Idempotent."""

    async def links(self, provider: Machine) -> frozenset[int]:
        """Numbers that cannot be linked now: those in use, and those whose interface its guest still holds."""

    async def plug_nic(self, client: Machine, mac: str) -> None:
        """Give a machine its interface, if it has none. Needs Capability.LINKS.

        :raise DriverError: it cannot be given one, or its guest still holds one that was taken away; nothing was done.
        """

    async def unplug_nic(self, client: Machine) -> None:
        """Take its interface away; it was parted before. Its guest may take a moment to let go. Idempotent."""

    async def link_outside(self, client: Machine) -> None:
        """Join the client's interface to the network of this host, as far as an ordinary program reaches it.

        What is found there has the addresses of :mod:`insula.model.uplink`.

        Nothing on the host can reach the machine, and the machine does not reach the host's loopback (MC-88). While the
        machine is not released, a way out that is lost is replaced; its guest then has the same interface, and new
        connections. Idempotent: call it for an adopted machine, too. Ends with the machine. Needs Capability.LINKS.

        :raise DriverError: it cannot be joined; nothing was done.
        """

    async def close(self) -> None:
        """Let go of all machines without ending them; where Capability.ADOPT is missing, they end.

        Waiting calls of theirs raise HalError, later ones MachineGone.
        """
