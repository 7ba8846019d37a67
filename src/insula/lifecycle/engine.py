"""The interface between the Admin API and what is done with qubes.

Handlers call these and nothing else to make things happen; everything here is safe to call concurrently (one
operation a qube at a time, the rest wait or are refused as stated).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from insula.hal.driver import MachineStats
from insula.lifecycle.plan import StartPlan
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.storage.pool import Pool, PoolUsage, Revision


@dataclass(frozen=True)
class CreateRequest:
    """A qube to be made; parsed but not yet checked against the system."""

    klass: str
    name: QubeName
    label: str
    template: QubeName | None = None
    pool: str | None = None
    pools: Mapping[str, str] = field(default_factory=dict)
    """Volume name → pool."""
    created_by: str = "dom0"
    disposable: bool = False
    """A DispVM that nobody named (it is called ``dispN``, N its number): it is gone when it ends (``auto_cleanup``)."""
    features: Mapping[str, str] = field(default_factory=dict)
    disposables: bool = False
    """An AppVM that disposables are made from, from its first moment on (``template_for_dispvms``)."""


class Engine(Protocol):
    def power_state(self, name: QubeName) -> PowerState: ...

    async def create(self, request: CreateRequest) -> None:
        """:raise QubesVMAlreadyExistsError, QubesVMNotFoundError, QubesLabelNotFoundError, QubesException:"""

    async def create_disposable(
        self, template: QubeName, created_by: QubeName, features: Mapping[str, str] | None = None
    ) -> QubeName:
        """A disposable that nobody named: one held ready, which runs, or a new one, halted. It is gone when it ends.

        ``features``: those it has from the first moment.

        :raise QubesException: the template may not be used so.
        """

    async def preload_disposables(self, template: QubeName) -> None:
        """See to it that as many disposables of the template are held ready as it says."""

    async def remove(self, name: QubeName) -> None:
        """:raise QubesVMInUseError: it runs, or something refers to it."""

    def start_plan(self, name: QubeName) -> StartPlan:
        """What :meth:`start` would do now. :raise QubesException: it would be refused, and why."""

    async def start(self, name: QubeName, cd: Path | None = None) -> None:
        """Returns when the agent answered. Starting or started already: waits for that start, succeeds.

        ``cd``: the image of a CD that is put in, for a qube that boots by itself; one that runs is refused then.

        :raise QubesException: what went wrong; the qube is halted and everything undone.
        """

    async def shutdown(self, name: QubeName, *, force: bool, wait: bool) -> None: ...

    async def kill(self, name: QubeName) -> None: ...

    async def pause(self, name: QubeName) -> None: ...

    async def unpause(self, name: QubeName) -> None: ...

    async def show_windows(self, name: QubeName, desktop: Mapping[str, str] | None) -> None:
        """Have the windows of a running qube shown on a desktop, which a few variables of an environment name; None: on
        the last one.

        :raise QubesException: there is no desktop, or the qube has no windows.
        """

    async def stats(self, name: QubeName) -> MachineStats | None:
        """None when it does not run."""

    def start_time(self, name: QubeName) -> float | None:
        """Unix time of the last start; None when it does not run."""

    # volumes: named by qube and volume name, both known to exist

    async def volume_usage(self, qube: QubeName, volume: str) -> int: ...

    async def volume_is_outdated(self, qube: QubeName, volume: str) -> bool: ...

    async def volume_revisions(self, qube: QubeName, volume: str) -> list[Revision]: ...

    async def volume_revert(self, qube: QubeName, volume: str, revision: str) -> None: ...

    async def volume_resize(self, qube: QubeName, volume: str, size: int) -> None: ...

    async def volume_clear(self, qube: QubeName, volume: str) -> None: ...

    async def volume_clone(self, source: tuple[QubeName, str], target: tuple[QubeName, str]) -> None: ...

    async def volume_import(
        self, qube: QubeName, volume: str, data: AsyncIterable[bytes], size: int | None
    ) -> None: ...

    async def volume_set(self, qube: QubeName, volume: str, field_name: str, value: int | bool) -> None:
        """``revisions_to_keep``, ``rw`` or ``ephemeral``."""

    # pools

    def pool(self, name: str) -> Pool: ...

    async def pool_usage(self, name: str) -> PoolUsage: ...

    async def pool_add(self, name: str, driver: str, options: Mapping[str, str]) -> None: ...

    async def pool_remove(self, name: str) -> None: ...

    def ended_cleanly(self, qube: QubeName) -> bool:
        """Whether the last machine of a qube was shut down by its guest, so that what is kept of it is."""

    async def firewall_changed(self, qube: QubeName) -> None:
        """Have the rules of a qube carried out as they are now, if it has a network."""

    # properties that a running qube must learn of at once

    async def property_changed(self, qube: QubeName | None, name: str) -> None:
        """Apply to the running machine what can be applied (memory, network); else at the next start.

        ``qube``: None for a global property.

        :raise QubesException: what holds for the qube now is not what was set.
        """
