"""Disposables: made on request, and some held ready, booted and paused, for the next request (agent-services §15).

How many are ready is a feature of the disposable template, ``preload-dispvm-max``; for the system's
``default_dispvm`` the one of dom0 wins. Which they are is its feature ``preload-dispvm``. A ready one is an ordinary
disposable that nobody has used: it has the feature ``internal``, runs, and is paused. It is thrown away when what it
was made from has changed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from insula.events.bus import EventBus, Overrun
from insula.events.types import Event
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.host import Host, log
from insula.lifecycle.memory import read_available_mib
from insula.lifecycle.waiting import require_wanted
from insula.model.errors import InsulaError, QubesException, QubesVMNotFoundError, QubesVMNotStartedError
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import allows_disposables, resolve, view
from insula.model.qube import Qube
from insula.model.state import PowerState
from insula.model.system import MAX_DISPID, System
from insula.model.tags import creation_tags

READY = "preload-dispvm"
"""Feature of a disposable template: names of the ready ones, separated by spaces."""
WANTED = "preload-dispvm-max"
DELAY = "preload-dispvm-delay"
THRESHOLD = "preload-dispvm-threshold"
COMPLETED = "preload-dispvm-completed"
INTERNAL = "internal"
DEFAULT_DELAY_S = 3.0
MAX_READY = 20
"""A number that is no slip of the keyboard."""
REFILL_EVENTS = frozenset(
    {
        f"domain-feature-set:{WANTED}",
        f"domain-feature-delete:{WANTED}",
        "domain-unpaused",
        "domain-shutdown",
        "property-set:default_dispvm",
        "property-set:template_for_dispvms",
        "template-postinstall",
    }
)
"""After these the ready ones may be too few, too many, or outdated."""


class Power(Protocol):
    """The part of :class:`insula.lifecycle.manager.LifecycleEngine` that is used here."""

    def power_state(self, name: QubeName) -> PowerState: ...
    async def create(self, request: CreateRequest) -> None: ...
    async def remove(self, name: QubeName) -> None: ...
    async def provide_waiting(self, name: QubeName) -> None: ...
    async def start(self, name: QubeName) -> None: ...
    async def make_ready(self, name: QubeName) -> None: ...
    async def kill(self, name: QubeName) -> None: ...
    async def unpause(self, name: QubeName) -> None: ...
    async def volume_is_outdated(self, qube: QubeName, volume: str) -> bool: ...


def wanted_ready(system: System) -> dict[QubeName, int]:
    """Disposable template → how many to hold ready, for all that have a say about it. Pure."""
    wanted = {
        qube.name: _number(qube.features[WANTED])
        for qube in system.sorted_qubes()
        if WANTED in qube.features and not qube.is_admin and allows_disposables(system, qube)
    }
    of_system = system.get(ADMIN_NAME).features.get(WANTED)
    default = resolve(system, None, "default_dispvm").value
    if of_system is not None and isinstance(default, str) and default in system.qubes:
        wanted[QubeName(default)] = _number(of_system)
    return wanted


def _number(text: str) -> int:
    """A count; 0 for what is none."""
    return min(int(text), MAX_READY) if text.isdecimal() else 0


def ready_of(template: Qube) -> list[QubeName]:
    """Names of the ready disposables of a template, the one to be used first first."""
    return [QubeName(name) for name in template.features.get(READY, "").split()]


def _without_ready(system: System, template: QubeName, name: QubeName) -> Qube:
    """The template without this one, and without those that have ended."""
    holder = system.get(template)
    left = [other for other in ready_of(holder) if other != name and other in system.qubes]
    return holder.with_feature(READY, " ".join(left)) if left else holder.without_feature(READY)


def _taken(
    system: System, template: QubeName, name: QubeName, created_by: QubeName, features: Mapping[str, str]
) -> System:
    """The system once a ready one is its caller's. Pure."""
    used = system.get(name).without_feature(INTERNAL).without_feature(COMPLETED)
    for feature, value in features.items():
        used = used.with_feature(feature, value)
    used = replace(used, tags=used.tags | creation_tags(created_by, disposable=True))
    return system.with_qubes([used, _without_ready(system, template, name)])


def refill_delay_s(system: System) -> float | None:
    """Seconds between a use and the refill; None: only when all are used."""
    text = system.get(ADMIN_NAME).features.get(DELAY, "")
    try:
        delay = float(text) if text else DEFAULT_DELAY_S
    except ValueError:
        delay = DEFAULT_DELAY_S
    return None if delay < 0 else delay


class Disposables:
    """Belongs to one daemon."""

    def __init__(self, host: Host, power: Power, available_mib: Callable[[], int] = read_available_mib) -> None:
        self._host = host
        self._power = power
        self._available_mib = available_mib
        self._turns: dict[QubeName, asyncio.Lock] = {}
        self._claimed: set[QubeName] = set()
        """Ready ones that are being taken."""
        self._used_at = float("-inf")
        """When one was taken last, on the loop's clock."""
        self._task: asyncio.Task[None] | None = None

    # -- made on request

    async def create(self, template: QubeName, created_by: QubeName, features: Mapping[str, str]) -> QubeName:
        """A disposable for ``created_by``, with these features: a ready one, running, or a new one, halted.

        :raise QubesException: the template may not be used so.
        """
        system = self._host.store.system
        if not allows_disposables(system, system.get(template)):
            raise QubesException(f"{template} does not have template_for_dispvms set")
        ready = await self._take_ready(template, created_by, features)
        return ready or await self._make(template, created_by, features)

    async def _make(self, template: QubeName, created_by: QubeName, features: Mapping[str, str]) -> QubeName:
        system = self._host.store.system
        dispid = system.free_dispid(secrets.randbelow(MAX_DISPID + 1))
        name = QubeName(f"disp{dispid}")
        await self._power.create(
            CreateRequest(
                klass=Klass.DISPVM,
                name=name,
                label=system.get(template).label,
                template=template,
                created_by=created_by,
                disposable=True,
                features=features,
            )
        )
        return name

    async def _take_ready(
        self, template: QubeName, created_by: QubeName, features: Mapping[str, str]
    ) -> QubeName | None:
        """Does not wait its turn: a refill takes seconds. So nothing is awaited between looking and claiming."""
        store = self._host.store
        for name in ready_of(store.system.get(template)):
            if name in self._claimed or name not in store.system.qubes:
                continue
            if self._power.power_state(name) is not PowerState.PAUSED:
                continue
            self._claimed.add(name)
            self._used_at = asyncio.get_running_loop().time()
            try:
                # The guest wakes up while it is recorded. A daemon that dies before that has one that is not paused
                # and that nobody got: the next one throws it away.
                await self._power.unpause(name)
                store.commit(_taken(store.system, template, name, created_by, features), is_synced=False)
            except QubesException as e:
                log.warning("%s: was held ready, but cannot be used: %s", name, e)
                self._forget_ready(template, name)
                await self._discard(name)
                continue
            except BaseException:
                await self._discard(name)
                raise
            finally:
                self._claimed.discard(name)
            self._host.publish(template, "domain-preload-dispvm-used", dispvm=name, delay="0")
            return name
        return None

    # -- held ready

    async def open(self) -> None:
        """Begin holding disposables ready: those of an earlier daemon are kept if they still can be used."""
        self._task = asyncio.create_task(self._watch(self._host.bus), name="ready disposables")

    async def close(self) -> None:
        """Leave them as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, bus: EventBus) -> None:
        while True:
            with suppress(Overrun), bus.listen() as events:
                await self.refill_all()
                async for event in events:
                    if self._matters(event):
                        await self._let_users_pass()
                        await self.refill_all()
                return

    async def _let_users_pass(self) -> None:
        """What was just taken is waited for: the next one is not made beside it."""
        delay = refill_delay_s(self._host.store.system) or 0.0
        left = self._used_at + delay - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    def _matters(self, event: Event) -> bool:
        return event.name in REFILL_EVENTS or event.name == "domain-preload-dispvm-used"

    async def refill_all(self) -> None:
        """Make the ready ones as many and as fresh as they should be."""
        system = self._host.store.system
        wanted = wanted_ready(system)
        holders = {qube.name for qube in system.qubes.values() if qube.features.get(READY)}
        for template in sorted(wanted.keys() | holders):
            try:
                await self.refill(template, wanted.get(template, 0))
            except (InsulaError, OSError) as e:
                require_wanted()
                log.warning("%s: no disposable can be held ready: %s", template, e)

    async def refill(self, template: QubeName, wanted: int) -> None:
        """Hold ``wanted`` disposables of a template ready. :raise InsulaError, OSError: one could not be made."""
        async with self._turn(template):
            await self._drop_unusable(template, wanted)
            if refill_delay_s(self._host.store.system) is None and ready_of(self._host.store.system.get(template)):
                return
            while len(ready_of(self._host.store.system.get(template))) < wanted and self._may_fill(template):
                await self._add_ready(template)

    async def _drop_unusable(self, template: QubeName, wanted: int) -> None:
        for number, name in enumerate(ready_of(self._host.store.system.get(template))):
            if name in self._claimed:
                continue
            is_ready = (
                name in self._host.store.system.qubes
                and self._power.power_state(name) is PowerState.PAUSED
                and not await self._is_outdated(name)
            )
            if name in self._claimed:
                # Taken meanwhile.
                continue
            if not is_ready or number >= wanted:
                self._forget_ready(template, name)
                if name in self._host.store.system.qubes and self._is_unused(name):
                    await self._discard(name)

    def _is_unused(self, name: QubeName) -> bool:
        return self._host.store.system.get(name).features.get(INTERNAL) == "1"

    async def _is_outdated(self, name: QubeName) -> bool:
        for volume in ("root", "private"):
            if await self._power.volume_is_outdated(name, volume):
                return True
        return False

    def _may_fill(self, template: QubeName) -> bool:
        """Whether memory bears one more."""
        system = self._host.store.system
        memory = int(view(system, system.get(template)).number("memory"))
        text = system.get(ADMIN_NAME).features.get(THRESHOLD, "")
        threshold = int(text) if text.isdecimal() else 0
        free = self._available_mib()
        if free - memory < max(threshold, memory):
            log.info("%s: no disposable is made ready: %d MiB of memory are free", template, free)
            return False
        return True

    async def _add_ready(self, template: QubeName) -> None:
        self._host.publish(template, "domain-preload-dispvm-start", reason="autostart")
        store = self._host.store
        name = await self._make(template, ADMIN_NAME, {INTERNAL: "1"})
        try:
            await self._power.provide_waiting(name)
            await self._power.start(name)
            await self._power.make_ready(name)
        except BaseException:
            await self._discard(name)
            raise
        completed = store.system.get(name).with_feature(COMPLETED, "1")
        holder = store.system.get(template)
        names = [*ready_of(holder), name]
        store.commit(store.system.with_qube(completed).with_qube(holder.with_feature(READY, " ".join(names))))

    def _forget_ready(self, template: QubeName, name: QubeName) -> None:
        store = self._host.store
        store.commit(store.system.with_qube(_without_ready(store.system, template, name)))

    async def _discard(self, name: QubeName) -> None:
        """End it; it is removed with its machine, or here if it has none.

        Raises nothing of its own: whoever calls this while a task is cancelled must not lose that.
        """
        try:
            with suppress(QubesVMNotStartedError):
                await self._power.kill(name)
            await self._power.remove(name)
        except QubesVMNotFoundError:
            # Its end has removed it.
            return
        except (InsulaError, OSError) as e:
            log.error("%s: could not be thrown away: %s", name, e)

    def _turn(self, template: QubeName) -> asyncio.Lock:
        return self._turns.setdefault(template, asyncio.Lock())
