"""What a handler gets and what a method is: the words ``api``, ``dispatch`` and ``handlers`` share.

A handler is an async function of :class:`Context` and :class:`Call`. It reads ``context.store.system`` (one
immutable value), makes a new one and commits it *without awaiting in between*: there is one loop, so nothing
else can change the system meanwhile and no lock is needed. What takes time goes through ``context.engine``.

The commit itself (one SQLite transaction of the few rows that changed) is done on the loop: it is the only
blocking call, it is short, and doing it in a thread would mean that reads could see a state not yet kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from insula.admin.application_lists import ApplicationLists
from insula.admin.changes import announcements
from insula.admin.leases import Leases
from insula.admin.microphone import Microphone
from insula.admin.tokens import CopyTokens
from insula.admin.uploads import Uploads
from insula.events.bus import EventBus
from insula.events.types import Event
from insula.lifecycle.engine import Engine
from insula.lifecycle.seeds import Seed
from insula.lifecycle.standby import StandbyCount
from insula.lifecycle.template import TemplateImage
from insula.model.names import QubeName
from insula.model.property_types import Runtime
from insula.model.qube import Qube
from insula.model.system import System


class SystemStore(Protocol):
    """The part of the store that handlers use."""

    @property
    def system(self) -> System: ...

    def commit(self, system: System) -> None:
        """Keep ``system`` from now on; all or nothing."""


class DaemonControl(Protocol):
    """What the daemon says about itself and lets be done to it."""

    def status(self) -> Mapping[str, object]:
        """JSON values: version, pid, driver, capabilities, host."""

    async def shut_down(self) -> None:
        """Stop every qube; returns when they are stopped, the daemon ends right after."""


class TemplateService(Protocol):
    async def install(self, image: TemplateImage) -> None:
        """Make or renew the template's qube from files. :raise QubesException: nothing was changed."""

    def seeds(self) -> Sequence[Seed]:
        """Every seed there is, the one used last first."""

    async def in_waiting(self) -> Mapping[str, StandbyCount]:
        """Machines in waiting, by the name of the seed they are forks of."""

    async def build_seed(self, name: QubeName) -> Seed:
        """The seed for a qube, or for app qubes of a template; made if there is none. :raise QubesException:"""

    def drop_seed(self, seed: str) -> bool:
        """Remove a seed by its name; whether there was one."""


@dataclass(frozen=True)
class Context:
    """Everything handlers may touch."""

    store: SystemStore
    engine: Engine
    bus: EventBus
    daemon: DaemonControl
    templates: TemplateService
    host: Callable[[], Runtime]
    """Facts of the host now (kernels come and go); without a machine."""
    rpc_socket: Callable[[QubeName], Path]
    """Where a running qube's session listens."""
    uploads: Uploads
    """Data of ``ImportBegin`` until its ``ImportEnd``."""
    applications: ApplicationLists
    """What qubes told of their applications."""
    tokens: CopyTokens = field(default_factory=CopyTokens)
    """One-use tokens of ``CloneFrom``."""
    leases: Leases = field(default_factory=Leases)
    """Disposables that belong to a connection."""
    microphone: Microphone = field(default_factory=Microphone)
    """Who has it."""

    def runtime(self, qube: QubeName) -> Runtime:
        """What default rules and computed properties of this qube may look at."""
        start_time = self.engine.start_time(qube)
        if start_time is None:
            return self.host()
        return replace(self.host(), start_time=start_time, xid=self.store.system.get(qube).qid)

    def commit(self, system: System) -> None:
        """Keep ``system`` and publish what changed by it."""
        told = announcements(self.store.system, system)
        for event in told.before:
            self.bus.publish(event)
        self.store.commit(system)
        for event in told.after:
            self.bus.publish(event)

    def publish(self, subject: str, name: str, /, **kwargs: object) -> None:
        """Report an event under its published name; values become text as published (admin-api §6)."""
        self.bus.publish(Event(subject, name, {key: str(value) for key, value in kwargs.items()}))


@dataclass(frozen=True)
class Call:
    """One call whose qubes are known and whose form was checked against its method."""

    method: str
    source: Qube
    dest: Qube
    untrusted_arg: str
    """Printable ASCII without spaces."""
    untrusted_payload: bytes


class Presence(StrEnum):
    """Whether an argument or a payload is given."""

    NONE = "–"
    REQUIRED = "+"
    OPTIONAL = "?"


class Destination(StrEnum):
    ADMIN = "dom0"
    ANY = "vm"
    NOT_ADMIN = "!dom0"


class Scope(StrEnum):
    """Which of the published policy includes a method belongs to (admin-api §2)."""

    LOCAL = "L"
    GLOBAL = "G"
    INTERNAL = "I"
    """Ours: not for qubes at all."""


class Right(StrEnum):
    READ = "r"
    WRITE = "w"
    EXECUTE = "x"


@dataclass(frozen=True)
class Answer:
    """A method that answers once: text, UTF-8 on the wire."""

    run: Callable[[Context, Call], Awaitable[str]]


@dataclass(frozen=True)
class Stream:
    """A method that answers with events until one side hangs up."""

    run: Callable[[Context, Call], AsyncGenerator[Event, None]]


@dataclass(frozen=True)
class Upload:
    """A method whose payload is a stream of any length; it answers once."""

    run: Callable[[Context, Call, AsyncIterator[bytes]], Awaitable[str]]


@dataclass(frozen=True)
class Method:
    """One line of the table in :mod:`insula.admin.api`."""

    name: str
    dest: Destination
    arg: Presence
    payload: Presence
    scope: Scope
    right: Right
    action: Answer | Stream | Upload
    summary: str
