"""Streams of events: what happens, and how much the running qubes use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from insula.admin.call import Call, Context
from insula.events.bus import TooManyListeners
from insula.events.types import Event
from insula.hal.driver import MachineStats
from insula.hal.errors import HalError
from insula.model.errors import QubesException
from insula.model.names import QubeName
from insula.model.properties import view

ESTABLISHED = Event("", "connection-established")
"""First record of every stream: clients drop what they have cached when they see it."""

_log = logging.getLogger("insula.admin")

_NOT_SENT = ("admin-permission:", "device-get:", "device-list:", "device-list-attached:", "domain-is-fully-usable")
"""Events of the published system that never leave it (admin-api §6)."""


async def events(context: Context, call: Call) -> AsyncGenerator[Event, None]:
    """Everything that happens; with a destination other than dom0 only what happens to that qube."""
    try:
        subscription = context.bus.listen()
    except TooManyListeners as error:
        raise QubesException(str(error)) from error
    with subscription as listener:
        yield ESTABLISHED
        async for event in listener:
            if _is_wanted(event, call):
                yield event


def _is_wanted(event: Event, call: Call) -> bool:
    if event.name.startswith(_NOT_SENT):
        return False
    return call.dest.is_admin or event.subject == call.dest.name


@dataclass(frozen=True)
class Sample:
    """What a machine had used at a moment."""

    time: float
    """Seconds of a monotonic clock."""
    stats: MachineStats


async def stats(context: Context, call: Call) -> AsyncGenerator[Event, None]:
    """``vm-stats`` of each running qube (or of the destination) at once, then every ``stats_interval`` seconds."""
    yield ESTABLISHED
    clock = asyncio.get_running_loop().time
    last: dict[QubeName, Sample] = {}
    while True:
        current: dict[QubeName, Sample] = {}
        for name in _watched(context, call):
            try:
                measured = await context.engine.stats(name)
            except HalError as error:
                _log.warning("no statistics of %s: %s", name, error)
                continue
            if measured is not None:
                current[name] = Sample(clock(), measured)
                yield Event(name, "vm-stats", stats_values(current[name], last.get(name)))
        last = current
        await asyncio.sleep(view(context.store.system, None, context.host()).number("stats_interval"))


def _watched(context: Context, call: Call) -> list[QubeName]:
    names = context.store.system.qubes if call.dest.is_admin else [call.dest.name]
    qubes = context.store.system.qubes
    return [name for name in names if name in qubes and qubes[name].klass.has_machine]


def stats_values(sample: Sample, earlier: Sample | None) -> dict[str, str]:
    """Values of one ``vm-stats`` record; ``cpu_usage`` is percent of the qube's vcpus since ``earlier``."""
    stats = sample.stats
    usage = 0
    if earlier is not None and sample.time > earlier.time:
        used_s = max(0, stats.cpu_time_ms - earlier.stats.cpu_time_ms) / 1000
        usage = round(100 * used_s / (sample.time - earlier.time) / max(1, stats.vcpus))
    return {
        "memory_kb": str(stats.memory_kib),
        "memory_assigned_total": str(stats.memory_assigned_kib),
        "memory_assigned_usable": str(stats.memory_assigned_kib),
        "memory_with_swap_used": str(stats.memory_kib),
        "cpu_time": str(stats.cpu_time_ms),
        "cpu_usage": str(usage),
        "online_vcpus": str(stats.vcpus),
    }
