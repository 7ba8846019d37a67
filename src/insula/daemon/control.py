"""What the daemon says about itself and lets be done to it, for the Admin API's own methods."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from insula import __version__
from insula.lifecycle.host import Host
from insula.lifecycle.manager import LifecycleEngine
from insula.lifecycle.seeds import Seed
from insula.lifecycle.standby import StandbyCount
from insula.lifecycle.template import TemplateImage, install_template, installed_key, provide_default_dispvm
from insula.model.errors import InsulaError
from insula.model.names import QubeName
from insula.model.property_types import Runtime

log = logging.getLogger("insula.daemon")

PAGE = os.sysconf("SC_PAGE_SIZE")


def host_runtime(host: Host) -> Runtime:
    """Facts of the host that default rules of properties look at."""
    return Runtime(
        host_memory_mib=os.sysconf("SC_PHYS_PAGES") * PAGE // (1024 * 1024),
        host_cpus=len(os.sched_getaffinity(0)),
        kernel_options=host.kernels.options(),
    )


class Control:
    """Implements :class:`insula.admin.call.DaemonControl`."""

    def __init__(self, host: Host, engine: LifecycleEngine, stop: asyncio.Event) -> None:
        self._host = host
        self._engine = engine
        self._stop = stop

    def status(self) -> Mapping[str, object]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "driver": self._host.driver.name,
            "capabilities": sorted(self._host.driver.capabilities),
            "kernels": self._host.kernels.versions(),
            # What the user must be told (MC-63).
            "notices": [str(self._host.store.recovery)] if self._host.store.recovery else [],
        }

    async def shut_down(self) -> None:
        await self._engine.stop_all()
        self._stop.set()


class Templates:
    """Implements :class:`insula.admin.call.TemplateService`: templates that were built elsewhere, and their seeds."""

    def __init__(self, host: Host, engine: LifecycleEngine) -> None:
        self._host = host
        self._engine = engine
        self._lock = asyncio.Lock()

    def content_key(self, name: QubeName) -> str | None:
        """Which build is installed under that name; None: none."""
        return installed_key(self._host.store.system, name)

    async def complete(self) -> None:
        """What an installation with a template has, and a new one, or one of an earlier version, has not yet."""
        template = self._host.store.system.properties.get("default_template")
        if not template:
            return
        try:
            await provide_default_dispvm(self._host, self._engine, QubeName(str(template)))
        except InsulaError as error:
            log.warning("nothing is there to make disposables of: %s", error)

    async def install(self, image: TemplateImage) -> None:
        """One at a time. :raise QubesException: nothing was changed."""
        async with self._lock:
            is_known = image.name in self._host.store.system.qubes
            state = self._engine.power_state(image.name) if is_known else None
            await install_template(self._host, image, state)
            await self.complete()
        await self._engine.root_changed(image.name)
        # The first start from a new template is to be as quick as any other.
        await self._engine.want_seed(image.name)

    def seeds(self) -> Sequence[Seed]:
        return [] if self._engine.seeds is None else self._engine.seeds.all()

    async def in_waiting(self) -> Mapping[str, StandbyCount]:
        return {} if self._engine.standby is None else await self._engine.standby.counts()

    async def build_seed(self, name: QubeName) -> Seed:
        return await self._engine.build_seed(name)

    def drop_seed(self, seed: str) -> bool:
        return self._engine.seeds is not None and self._engine.seeds.drop(seed)
