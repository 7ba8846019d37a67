"""What lifecycle works with: the rooms it joins, handed in once, so that tests can hand in others."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from insula.events.bus import EventBus
from insula.events.types import Event
from insula.hal.driver import Driver, Machine, MachineSpec
from insula.lifecycle.kernels import Kernels
from insula.lifecycle.memory import MemoryLedger
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.seeds import Seed
from insula.model.block import VolumeSpec
from insula.model.errors import QubesPoolNotFoundError
from insula.model.names import QubeName
from insula.storage.pool import Pool
from insula.store.store import Store

log = logging.getLogger("insula.lifecycle")


class Session(Protocol):
    """The process that talks to one qube's agent (``insula.rpc``)."""

    async def wait_ready(self) -> None:
        """Return once the agent said hello. :raise ConnectionError: the session ended first."""

    async def wait_closed(self) -> str:
        """Return why the session process ended, once it has."""

    async def set_key(self, path: str, value: bytes) -> None:
        """Tell the qube a key that is new or has changed. :raise OSError: the session is gone."""

    async def remove_key(self, path: str) -> None:
        """Tell the qube that a key is gone. :raise OSError: the session is gone."""

    async def tell_service(self, service: str, words: bytes, user: str = "root") -> None:
        """Have the qube run one of its services with this input; return when that is over. What it says is not read.

        ``user``: whose rights it has; empty: the default user's.

        :raise OSError: there is nobody to tell. :raise TimeoutError: it takes too long.
        """

    async def close(self) -> None:
        """End it; idempotent."""


class SessionLauncher(Protocol):
    async def __call__(
        self,
        *,
        name: str,
        qid: int,
        channel: socket.socket,
        rpc_socket: Path,
        keys: Mapping[str, str],
        open_memory: Callable[[], Awaitable[int | None]] | None = None,
    ) -> Session:
        """Start a session process; takes over ``channel``. ``open_memory`` returns memory that the machine shares with
        it, a descriptor of the caller's, when it wants some; None where it cannot have any.

        :raise OSError: it could not be started.
        """


class Network(Protocol):
    """What starts ask (:class:`insula.lifecycle.links.Links`)."""

    async def begin(self, client: QubeName, machine: Machine) -> None:
        """Link a qube that is being started. :raise QubesException: HalError: it must not start."""

    async def end(self, name: QubeName) -> None:
        """Its machine is gone."""

    def note_of(self, client: QubeName) -> tuple[str, int] | None:
        """What it is linked to, for its record."""

    def keys_of(self, provider: QubeName) -> dict[str, str]:
        """What a net qube is told of its clients."""


class Windows(Protocol):
    """Who shows windows (:class:`insula.daemon.windows.Windows`)."""

    @property
    def are_used(self) -> bool:
        """Whether somebody has wanted to see some."""

    async def show(
        self, name: QubeName, machine: Machine, session: Session, desktop: Mapping[str, str] | None = None
    ) -> None:
        """Have those of a running qube shown. :raise QubesException: they cannot be."""

    async def show_again(self, name: QubeName, machine: Machine, session: Session) -> None:
        """It runs again, or for another daemon: have them shown if they were. Never fails."""

    async def adopt(self, name: QubeName, machine: Machine) -> None:
        """An earlier daemon started its machine. :raise HalError:"""

    async def hide(self, name: QubeName) -> None:
        """It stands still."""

    async def end(self, name: QubeName) -> None:
        """Its machine is gone."""

    async def changed(self, name: QubeName) -> None:
        """Its label has another colour."""

    def keys_of(self, name: QubeName) -> dict[str, str]:
        """What the qube is told of its windows."""


class Seeds(Protocol):
    """What a start asks (:class:`insula.lifecycle.seed_keeper.SeedKeeper`)."""

    async def for_start(self, plan: StartPlan) -> Seed | None:
        """The seed to fork from; None: boot."""

    def unusable(self, seed: Seed, why: str) -> None:
        """A start from it failed."""


class Standby(Protocol):
    """What a start asks (:class:`insula.lifecycle.standby.Standby`)."""

    def note_start(self, plan: StartPlan, seed: Seed) -> None:
        """A qube is about to be started from this seed."""

    async def become(self, seed: Seed, spec: MachineSpec) -> Machine | None:
        """A machine that waited, turned into this one, paused; None: there is none."""

    async def shed(self) -> bool:
        """Memory is short: end all that wait; whether there was one."""

    def drop(self, seed_name: str) -> None:
        """The machines made from this seed cannot be trusted."""

    async def provide(self, plan: StartPlan, seed: Seed) -> None:
        """Have one that waits, now, if any are wanted."""


@dataclass
class Host:
    """The rooms of one daemon."""

    store: Store
    bus: EventBus
    driver: Driver
    kernels: Kernels
    launch_session: SessionLauncher
    runtime_folder: Callable[[str], Path]
    """Name of a qube → its run-time folder."""
    console_folder: Path
    """Console logs of ended machines are kept here, the last one of each qube."""
    memory: MemoryLedger = field(default_factory=MemoryLedger)
    pools: dict[str, Pool] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    seeds: Seeds | None = None
    """None: every start boots."""
    links: Network | None = None
    """None: no qube has a network."""
    windows: Windows | None = None
    """None: no qube has windows."""
    standby: Standby | None = None
    """None: every fork is made when it is asked for."""

    def pool_of(self, volume: VolumeSpec) -> Pool:
        """:raise QubesPoolNotFoundError: the pool of the volume is not configured, or could not be opened."""
        try:
            return self.pools[volume.pool]
        except KeyError:
            raise QubesPoolNotFoundError(f"Pool {volume.pool!r} of volume {volume.vid} cannot be used now") from None

    def publish(self, subject: str, name: str, /, **kwargs: str) -> None:
        self.bus.publish(Event(subject, name, kwargs))


def keep_console(machine: Machine, folder: Path) -> None:
    """Copy the machine's console log to where it outlives the run-time folder (the last one of each qube)."""
    if machine.console_log.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(machine.console_log, folder / f"{machine.spec.name}.console.log")


def host_timezone() -> str:
    """Zone name of the host (``Europe/Vienna``); UTC where it cannot be told."""
    try:
        target = Path("/etc/localtime").resolve(strict=True)
    except OSError:
        return "UTC"
    _, _, zone = str(target).partition("/zoneinfo/")
    return zone or "UTC"
