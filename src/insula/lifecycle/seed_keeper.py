"""Which seeds there are, which are wanted, and when they are made: one at a time, in the background.

A start asks :meth:`SeedKeeper.for_start`. If the seed it could use is being made, it waits for it (that is quicker
than booting beside it). If there is none, ``start_mode`` decides: ``warm`` has it made first, ``auto`` boots and has
it made for the next time. A seed that cannot be used is dropped and not tried again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import msgspec

from insula.hal.capabilities import Capability
from insula.hal.errors import HalError
from insula.lifecycle.create import plan_create
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.host import Host, log
from insula.lifecycle.kernels import Kernel
from insula.lifecycle.plan import StartMode, StartPlan, plan_start
from insula.lifecycle.seed_build import SeedFailed, build_seed
from insula.lifecycle.seeds import MACHINE, Seed, SeedKey, SeedStore, plan_eviction
from insula.model.errors import QubesException
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.system import System

QUIET_S = 3.0
"""A wanted seed is made once no start was asked for in that time: people come first."""
RETRY_S = 600.0
"""After a seed could not be made, before it is tried again for a start."""
LOADED_LIMIT = 3
"""Seeds held in memory, of which each takes what its system uses (about 200 MiB, once for all of its forks)."""


_NOBODY = UUID(int=2**128 - 1)
"""Identifier of the qube that is only planned (the "max" of RFC 9562)."""


@dataclass
class _Build:
    """A seed that is wanted or being made."""

    task: asyncio.Task[Seed]
    hurry: asyncio.Event
    """Set once somebody waits for it."""


class SeedKeeper:
    """Belongs to one daemon and its event loop."""

    def __init__(self, host: Host, store: SeedStore) -> None:
        self._host = host
        self._store = store
        self._one_at_a_time = asyncio.Lock()
        self._builds: dict[str, _Build] = {}
        """By the seed's name."""
        self._failed_at: dict[str, float] = {}
        """When one could not be made, or not be used again."""
        self._unusable_at: dict[str, float] = {}
        self._whole: set[str] = set()
        """Names of seeds whose layer of the root was checked."""
        self._loaded: list[Path] = []
        """Machine folders of seeds the driver may hold in memory, least recently used first."""
        self._last_start = float("-inf")
        self.on_drop: Callable[[str], None] = lambda _name: None
        """Told the name of each seed that is dropped."""
        self.on_made: Callable[[StartPlan, Seed], None] = lambda _plan, _seed: None
        """Told of each seed that was made, and for what."""

    async def open(self) -> None:
        """Clear up after a daemon that was interrupted."""
        for name in await asyncio.to_thread(self._store.tidy):
            log.info("seed %s: removed, it was not complete", name)

    async def close(self) -> None:
        """Break off what is being made."""
        tasks = [build.task for build in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _can_fork(self) -> bool:
        return Capability.FORK in self._host.driver.capabilities

    # -- for starts

    async def for_start(self, plan: StartPlan) -> Seed | None:
        """The seed to fork ``plan``'s qube from; None: boot it."""
        self._last_start = asyncio.get_running_loop().time()
        if not plan.may_fork or not self._can_fork:
            return None
        key = await self.key_of(plan)
        seed = self._store.find(key)
        if seed is None:
            seed = await self._missing(plan, key)
        elif not await self._is_root_whole(seed):
            self.unusable(seed, "what its system wrote to the root is damaged")
            seed = None
        if seed is not None:
            self._store.touch(seed)
            self._note_loaded(seed.machine)
        return seed

    async def find(self, plan: StartPlan) -> Seed | None:
        """The seed that a start like ``plan`` would use, if there is one now."""
        if not plan.may_fork or not self._can_fork:
            return None
        return self._store.find(await self.key_of(plan))

    async def _is_root_whole(self, seed: Seed) -> bool:
        """Looked at once; its memory is, when the driver loads it."""
        name = seed.folder.name
        if name not in self._whole and await asyncio.to_thread(self._store.is_root_whole, seed):
            self._whole.add(name)
        return name in self._whole

    async def _missing(self, plan: StartPlan, key: SeedKey) -> Seed | None:
        failed_at = self._failed_at.get(key.name)
        if failed_at is not None and asyncio.get_running_loop().time() - failed_at < RETRY_S:
            return None
        is_being_made = key.name in self._builds and self._builds[key.name].hurry.is_set()
        build = self._want(plan, key)
        if plan.start_mode is StartMode.AUTO and not is_being_made:
            return None
        build.hurry.set()
        try:
            return await asyncio.shield(build.task)
        except QubesException:
            # Logged where it happened.
            return None

    def unusable(self, seed: Seed, why: str) -> None:
        """A start from it failed: drop it, so that the next one does not try it.

        The first time, what is on the disk is at fault, and a new one will do; if that fails soon after, it waits.
        """
        name = seed.folder.name
        log.warning("seed %s of %s is dropped, the start goes on without it: %s", name, seed.key.template, why)
        now = asyncio.get_running_loop().time()
        if now - self._unusable_at.get(name, float("-inf")) < RETRY_S:
            self._failed_at[name] = now
        self._unusable_at[name] = now
        self.drop(name)

    # -- for people, and after changes

    def all(self) -> list[Seed]:
        """Every seed there is, the one used last first."""
        return self._store.all()

    def in_making(self) -> list[str]:
        """Names of those wanted or being made."""
        return sorted(self._builds)

    async def build(self, plan: StartPlan) -> Seed:
        """The seed for starts like ``plan``, made now if there is none. :raise SeedFailed:"""
        if not self._can_fork:
            raise SeedFailed(f"hypervisor driver {self._host.driver.name!r} cannot fork machines")
        if plan.root_owner is None:
            raise SeedFailed(f"{plan.name} has a root of its own, so there is nothing to fork it from")
        key = await self.key_of(plan)
        self._failed_at.pop(key.name, None)
        seed = self._store.find(key)
        if seed is None:
            build = self._want(plan, key)
            build.hurry.set()
            seed = await asyncio.shield(build.task)
        return seed

    async def want(self, plan: StartPlan) -> None:
        """Have the seed for starts like ``plan`` made in the background, if it is missing."""
        if not plan.may_fork or not self._can_fork:
            return
        key = await self.key_of(plan)
        if self._store.find(key) is None:
            self._want(plan, key)

    def drop(self, name: str) -> bool:
        """Remove a seed; whether there was one. Running forks are not touched."""
        self._host.driver.unload_seed(self._store.folder / name / MACHINE)
        self._whole.discard(name)
        self.on_drop(name)
        return self._store.drop(name)

    async def root_changed(self, plans: Iterable[StartPlan]) -> None:
        """The root that these starts snapshot has a new content: renew the seeds they had.

        ``plans``: how qubes of the template would be started now.
        """
        for plan in plans:
            if not plan.may_fork or not self._can_fork:
                continue
            key = await self.key_of(plan)
            old = [
                seed for seed in self._store.all() if seed.key != key and seed.key == replace_root(key, seed.key.root)
            ]
            for seed in old:
                log.info("seed %s of %s is dropped: the template has changed", seed.folder.name, key.template)
                self.drop(seed.folder.name)
            if old:
                self._want(plan, key)

    async def key_of(self, plan: StartPlan) -> SeedKey:
        """What a seed for ``plan`` must be made of."""
        root = next(volume for volume in plan.volumes if volume.name == "root")
        revision = await self._host.pool_of(root).revision_key(root)
        return SeedKey(
            template=str(plan.root_owner),
            root=revision,
            kernel=_build_of(plan.own_kernel),
            cmdline=plan.seed_cmdline,
            memory_mib=plan.memory_mib,
            vcpus=plan.vcpus,
            disks=tuple(volume.name for volume in plan.volumes),
            hypervisor=self._host.driver.name,
            nic="" if plan.nic is None else plan.nic.mac,
            links=plan.links,
        )

    # -- making them

    def _want(self, plan: StartPlan, key: SeedKey) -> _Build:
        build = self._builds.get(key.name)
        if build is None:
            hurry = asyncio.Event()
            task = asyncio.create_task(self._make(plan, key, hurry), name=f"seed {key.name} of {key.template}")
            build = self._builds[key.name] = _Build(task, hurry)
            task.add_done_callback(lambda done: self._made(key, done))
        return build

    def _made(self, key: SeedKey, task: asyncio.Task[Seed]) -> None:
        self._builds.pop(key.name, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._failed_at[key.name] = asyncio.get_running_loop().time()
            log.warning("%s", error, exc_info=None if isinstance(error, QubesException) else error)

    async def _make(self, plan: StartPlan, key: SeedKey, hurry: asyncio.Event) -> Seed:
        await self._wait_for_quiet(hurry)
        async with self._one_at_a_time:
            hurry.set()
            begin = asyncio.get_running_loop().time()
            log.info("seed %s of %s: being made", key.name, key.template)
            try:
                with self._store.staging(key) as folder:
                    await build_seed(self._host, plan, key, folder)
            except OSError as e:
                raise SeedFailed(f"no seed of {key.template} could be made: {e}") from e
            seed = self._store.find(key)
            if seed is None or (await self.key_of(plan)) != key:
                self.drop(key.name)
                raise SeedFailed(f"no seed of {key.template} could be made: it changed meanwhile")
            took = asyncio.get_running_loop().time() - begin
            log.info("seed %s of %s: made in %.1f s, %d MiB", key.name, key.template, took, seed.size >> 20)
        self._make_room(keep=key.name)
        await self._load(seed)
        self.on_made(plan, seed)
        return seed

    async def _wait_for_quiet(self, hurry: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not hurry.is_set() and (wait := self._last_start + QUIET_S - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await hurry.wait()

    def _make_room(self, keep: str) -> None:
        for name in plan_eviction(self._store.all(), self._store.limit, frozenset({keep})):
            log.info(
                "seed %s is dropped: seeds may take %d MiB, it was used longest ago", name, self._store.limit >> 20
            )
            self.drop(name)

    async def _load(self, seed: Seed) -> None:
        """Check it and have it at hand for the first fork."""
        try:
            await self._host.driver.load_seed(seed.machine)
        except HalError as e:
            self.drop(seed.folder.name)
            raise SeedFailed(f"the seed of {seed.key.template} cannot be used: {e}") from e
        self._note_loaded(seed.machine)

    def _note_loaded(self, machine: Path) -> None:
        self._loaded = [*(folder for folder in self._loaded if folder != machine), machine]
        while len(self._loaded) > LOADED_LIMIT:
            self._host.driver.unload_seed(self._loaded.pop(0))


def plan_app_of(
    system: System, template: QubeName, kernel_of: Callable[[str], Kernel], *, emulated: bool = False
) -> StartPlan:
    """How an app qube of ``template`` with nothing set would be started. Pure. :raise QubesException:"""
    number = itertools.count(1)
    name = next(name for name in (QubeName(f"app-{n}") for n in number) if name not in system.qubes)
    label = next(iter(system.labels.values())).name
    request = CreateRequest(klass=Klass.APPVM, name=name, label=label, template=template)
    return plan_start(plan_create(system, request, _NOBODY), name, kernel_of, emulated=emulated)


def replace_root(key: SeedKey, root: str) -> SeedKey:
    """The key with another revision of the root."""
    return msgspec.structs.replace(key, root=root)


def _build_of(kernel: Kernel) -> str:
    """Version, and which build of it: a version can be installed anew with other content."""
    files = [path.stat() for path in (kernel.image, kernel.initrd)]
    return " ".join([kernel.version, *(f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}" for status in files)])
