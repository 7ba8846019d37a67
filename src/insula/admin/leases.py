"""Disposables that belong to a connection: gone when their user is gone, however he went.

``insula.disposable.Open`` makes a disposable, starts it and keeps the connection open; :class:`Leases` is what happens
meanwhile. Whatever ends the connection (the client closes it, is killed, the daemon ends) ends the disposable and
removes it; so do its limits on time. A disposable that is leased carries :data:`LEASED`, so that a daemon that starts
after a crash knows which ones have lost their user (MC-69).

Disposables are made from a *disposable template*. If a template is named instead, :func:`disposable_template` finds or
makes one for it: an app qube without network and without anything of a user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.events.bus import EventBus, Listener, TooManyListeners
from insula.events.types import Event
from insula.hal.errors import HalError
from insula.lifecycle.engine import CreateRequest, Engine
from insula.model.errors import (
    InsulaError,
    ProtocolError,
    QubesException,
    QubesNoTemplateError,
    QubesVMInUseError,
    QubesVMNotFoundError,
    QubesVMNotStartedError,
)
from insula.model.klass import Klass
from insula.model.names import MAX_QUBE_NAME, QubeName, parse_qube_name
from insula.model.properties import allows_disposables, definition, parse_value, resolve, set_property, view
from insula.model.qube import Qube
from insula.model.state import PowerState
from insula.model.system import MAX_DISPID, System

READY = "disposable-ready"
"""First event of a lease: ``rpc_socket`` is where commands are run."""
ENDED = "disposable-ended"
"""Last event: ``reason`` is one of :data:`STOPPED`, :data:`LIFETIME`, :data:`CPU_TIME`."""
STOPPED = "stopped"
LIFETIME = "lifetime"
CPU_TIME = "cpu-time"

LEASED = "insula-leased"
"""Feature of a disposable whose user holds a connection of this daemon, or of one that died."""
TEMPLATE_TAG = "disposable-template"
"""Tag of the disposable templates that were made because somebody named a template."""
TEMPLATE_SUFFIX = "-dvm"
INTERNAL = "internal"
"""Published feature: not to be shown in menus."""

MAX_LEASES = 128
"""Leases at a time. Each holds one of the server's connections; the others stay free for everybody else."""
MAX_SECONDS = 366 * 24 * 3600.0
CPU_POLL_S = 0.5
"""How often used CPU time is looked at: a limit is overrun by at most this much on each virtual CPU."""

_OPTIONS = frozenset({"memory_mib", "vcpus", "netvm", "lifetime_s", "cpu_time_s"})
_MAX_NUMBER = 10**9

_log = logging.getLogger("insula.admin")


class Configuration(Protocol):
    @property
    def system(self) -> System: ...


class Room(Protocol):
    """The part of :class:`insula.admin.call.Context` that is used here."""

    @property
    def store(self) -> Configuration: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def bus(self) -> EventBus: ...
    @property
    def rpc_socket(self) -> Callable[[QubeName], Path]: ...
    def commit(self, system: System) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a disposable should be like; None is what its template says."""

    memory_mib: int | None = None
    vcpus: int | None = None
    netvm: str | None = None
    """Name of the net qube, empty for none."""
    lifetime_s: float | None = None
    """Seconds after which it is ended, counted from the moment it is ready."""
    cpu_time_s: float | None = None
    """Seconds of CPU time of the host after which it is ended."""

    @property
    def properties(self) -> dict[str, str]:
        """Properties to set, as they are written."""
        values = {"memory": self.memory_mib, "vcpus": self.vcpus, "netvm": self.netvm}
        return {name: str(value) for name, value in values.items() if value is not None}


def parse_options(untrusted_payload: bytes) -> Options:
    """Options from a JSON object with some of the fields of :class:`Options`; empty: none.

    ``netvm: null`` is no network; a field that is not there is what the template says.

    :raise ProtocolError: anything else.
    """
    if not untrusted_payload:
        return Options()
    try:
        untrusted = json.loads(untrusted_payload.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("The payload must be a JSON object in ASCII") from error
    if not isinstance(untrusted, dict):
        raise ProtocolError("The payload must be a JSON object")
    unknown = untrusted.keys() - _OPTIONS
    if unknown:
        raise ProtocolError(f"Unknown field in the payload: {min(unknown)[:64]!a}")
    return Options(
        memory_mib=_whole(untrusted, "memory_mib"),
        vcpus=_whole(untrusted, "vcpus"),
        netvm=_net_qube(untrusted),
        lifetime_s=_seconds(untrusted, "lifetime_s"),
        cpu_time_s=_seconds(untrusted, "cpu_time_s"),
    )


def _whole(untrusted: dict[str, object], name: str) -> int | None:
    value = untrusted.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_NUMBER:
        raise ProtocolError(f"{name} must be a whole number from 1 on")
    return value


def _seconds(untrusted: dict[str, object], name: str) -> float | None:
    value = untrusted.get(name)
    if value is None:
        return None
    # A comparison that is false for "not a number" as well.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_SECONDS:
        raise ProtocolError(f"{name} must be a number of seconds above 0 and at most {MAX_SECONDS:g}")
    return float(value)


def _net_qube(untrusted: dict[str, object]) -> str | None:
    if "netvm" not in untrusted:
        return None
    value = untrusted["netvm"]
    if value is not None and not isinstance(value, str):
        raise ProtocolError("netvm must be the name of a qube or null")
    return value or ""


class Leases:
    """The leased disposables of one daemon."""

    def __init__(self) -> None:
        self._count = 0
        self._making_template = asyncio.Lock()

    async def recover(self, context: Room) -> None:
        """End the disposables whose users an earlier daemon lost. Before anybody can open new ones."""
        for qube in context.store.system.sorted_qubes():
            if LEASED in qube.features and qube.klass is Klass.DISPVM and qube.properties.get("auto_cleanup"):
                _log.info("%s: its user is gone with the last daemon", qube.name)
                await _remove(context, qube.name)

    async def hold(self, context: Room, source: Qube, wanted: Qube, options: Options) -> AsyncGenerator[Event, None]:
        """Make a disposable for ``source``, start it, say :data:`READY`, wait for its end, say :data:`ENDED`.

        Closing the generator at any point ends the disposable; it is gone when the generator is.

        :raise InsulaError, HalError: it could not be made or started; nothing is left.
        """
        if self._count >= MAX_LEASES:
            raise QubesException(f"{MAX_LEASES} disposables are held by programs already")
        self._count += 1
        try:
            template = await self._template(context, source, wanted)
            async with _made(context, source, template, options) as name:
                with _listening(context) as events:
                    await context.engine.start(name)
                    yield Event(name, READY, {"rpc_socket": str(context.rpc_socket(name))})
                    reason = await _end_of(context, name, options, events)
                    _log.info("%s: ended: %s", name, reason)
                    yield Event(name, ENDED, {"reason": reason})
        finally:
            self._count -= 1

    def made(
        self, context: Room, source: Qube, template: QubeName, options: Options
    ) -> contextlib.AbstractAsyncContextManager[QubeName]:
        """A disposable of a disposable template for ``source``, running or halted, gone at the end of the block.

        :raise InsulaError, HalError: entering; nothing is left.
        """
        return _made(context, source, template, options)

    async def _template(self, context: Room, source: Qube, wanted: Qube) -> QubeName:
        """:raise QubesException: no disposable can be made from what was named."""
        if wanted.is_admin:
            wanted = _default_template(context.store.system, source)
        if wanted.klass is Klass.TEMPLATEVM:
            async with self._making_template:
                return await disposable_template(context, wanted)
        if not allows_disposables(context.store.system, wanted):
            raise QubesException(f"{wanted.name} does not have template_for_dispvms set")
        return wanted.name


def _default_template(system: System, source: Qube) -> Qube:
    """The caller's ``default_dispvm``, else the default template. :raise QubesNoTemplateError:"""
    chosen = view(system, source).vm("default_dispvm") or resolve(system, None, "default_template").value
    if not chosen:
        raise QubesNoTemplateError("There is neither a default_dispvm nor a default template to make a disposable of")
    return system.get(str(chosen))


async def disposable_template(context: Room, template: Qube) -> QubeName:
    """The disposable template that belongs to a template; made if it is not there. One at a time.

    It is removed like any other qube; the next disposable makes it again.

    :raise QubesException: a qube has its name and is something else.
    """
    name = parse_qube_name(template.name[: MAX_QUBE_NAME - len(TEMPLATE_SUFFIX)] + TEMPLATE_SUFFIX)
    existing = context.store.system.qubes.get(name)
    if existing is not None:
        if existing.template != template.name or not allows_disposables(context.store.system, existing):
            raise QubesException(
                f"{name} is not a disposable template of {template.name}; set its template_for_dispvms,"
                f" or name the disposable template to use"
            )
        return name
    await context.engine.create(CreateRequest(Klass.APPVM, name, template.label, template=template.name))
    system = context.store.system
    system = set_property(system, name, "template_for_dispvms", True, context.engine.power_state)
    system = set_property(system, name, "netvm", None, context.engine.power_state)
    qube = system.get(name).with_feature(INTERNAL, "1").with_tags([TEMPLATE_TAG])
    context.commit(system.with_qube(qube))
    return name


@contextlib.asynccontextmanager
async def _made(context: Room, source: Qube, template: QubeName, options: Options) -> AsyncIterator[QubeName]:
    """A disposable, running or halted, which is removed at the end of the block."""
    making = asyncio.ensure_future(_make(context, source, template, options))
    try:
        name = await asyncio.shield(making)
    except asyncio.CancelledError:
        # Whoever asked is gone; what is half made is finished first, so that it can be found and removed.
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            await _remove(context, making.result())
        raise
    try:
        yield name
    finally:
        await _remove(context, name)


async def _make(context: Room, source: Qube, template: QubeName, options: Options) -> QubeName:
    system = context.store.system
    # Leased from the first moment: a daemon that dies in between leaves none that nobody ends.
    features = {LEASED: "1"}
    if _as_template_says(system, template, options):
        return await context.engine.create_disposable(template, source.name, features)
    name = await _create_halted(context, source, template, features)
    try:
        system, qube = context.store.system, context.store.system.get(name)
        for key, text in options.properties.items():
            value = parse_value(definition(qube.klass, key), text, system, qube)
            system = set_property(system, name, key, value, context.engine.power_state)
        context.commit(system)
    except BaseException:
        await _remove(context, name)
        raise
    return name


def _as_template_says(system: System, template: QubeName, options: Options) -> bool:
    """Whether nothing has to be set: then one that is held ready will do."""
    here = view(system, system.get(template))
    return all((
        options.memory_mib in (None, here.number("memory")),
        options.vcpus in (None, here.number("vcpus")),
        options.netvm is None or options.netvm == (here.vm("netvm") or ""),
    ))  # fmt: skip


async def _create_halted(context: Room, source: Qube, template: QubeName, features: Mapping[str, str]) -> QubeName:
    """A disposable of which nothing runs yet, whatever is held ready."""
    system = context.store.system
    name = QubeName(f"disp{system.free_dispid(secrets.randbelow(MAX_DISPID + 1))}")
    label = system.get(template).label
    await context.engine.create(
        CreateRequest(Klass.DISPVM, name, label, template, created_by=source.name, disposable=True, features=features)
    )
    return name


async def _remove(context: Room, name: QubeName) -> None:
    """End it and remove it; its machine's end removes it already if it had one."""
    try:
        if context.engine.power_state(name) is not PowerState.HALTED:
            with contextlib.suppress(QubesVMNotStartedError):
                await context.engine.kill(name)
        with contextlib.suppress(QubesVMInUseError):  # its end is under way and removes it
            await context.engine.remove(name)
    except QubesVMNotFoundError:
        return
    except (InsulaError, HalError) as error:
        _log.error("%s: a disposable could not be removed: %s", name, error)


@contextlib.contextmanager
def _listening(context: Room) -> Iterator[Listener]:
    """:raise QubesException: too many listen."""
    try:
        listener = context.bus.listen()
    except TooManyListeners as error:
        raise QubesException(str(error)) from error
    with listener:
        yield listener


async def _end_of(context: Room, name: QubeName, options: Options, events: Listener) -> str:
    """Wait until the disposable has ended or has to end; returns why."""
    watches = [asyncio.create_task(_stopped(name, events), name=f"end of {name}")]
    if options.lifetime_s is not None:
        watches.append(asyncio.create_task(_lived(options.lifetime_s), name=f"lifetime of {name}"))
    if options.cpu_time_s is not None:
        watches.append(asyncio.create_task(_computed(context, name, options.cpu_time_s), name=f"CPU time of {name}"))
    try:
        done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        return min(task.result() for task in done)
    finally:
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def _stopped(name: QubeName, events: Listener) -> str:
    async for event in events:
        if event.subject == name and event.name == "domain-shutdown":
            break
    return STOPPED


async def _lived(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return LIFETIME


async def _computed(context: Room, name: QubeName, seconds: float) -> str:
    """Returns when the machine has used so much CPU time. Every machine begins at 0, one held ready has used little."""
    while True:
        stats = None
        with contextlib.suppress(HalError):  # not to be measured now; a machine that is gone is told otherwise
            stats = await context.engine.stats(name)
        if stats is not None and stats.cpu_time_ms >= seconds * 1000:
            return CPU_TIME
        await asyncio.sleep(CPU_POLL_S)
