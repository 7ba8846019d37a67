"""Machines in waiting: forks that were made, and have rehearsed, before anybody asks for them (docs/decisions/015).

::

    forked, rehearses, rests, paused ──► waits ──► taken by a start: is that qube from then on
                                          └► ended: its seed is dropped or was not used for long, memory is short,
                                             fewer are wanted, the daemon ends

They are made one at a time, when no start was asked for in a while, for seeds that qubes were started from lately. How
many for each seed is the feature ``machines-in-waiting`` of the template, else of dom0. They cost what an idle qube
costs; what they may cost is bounded by what the host has to spare, and the first start that finds no memory ends them.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

from insula.events.bus import Overrun
from insula.hal.capabilities import Capability
from insula.hal.driver import MAX_HOST_NUMBER, Disk, Machine, MachineSpec, MachineState
from insula.hal.errors import HalError, MachineGone, SeedUnusable
from insula.lifecycle import nobody
from insula.lifecycle.host import Host, keep_console, log
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.reconcile import WAITING_PREFIX
from insula.lifecycle.seeds import Seed
from insula.lifecycle.waiting import require_wanted
from insula.model.block import BlockSource, VolumeSpec
from insula.model.errors import InsulaError, QubesException
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.property_defaults import DEFAULT_MAC
from insula.model.qube import MAX_QID
from insula.model.qubesdb_keys import RANDOM_SEED_BYTES, rehearsal_keys
from insula.model.system import System
from insula.storage.ext4 import NotFormatted, format_disk
from insula.storage.pool import StorageError

FEATURE = "machines-in-waiting"
MAX_WAITING = 8
"""Of one seed: a number that is no slip of the keyboard."""
MAX_KINDS = 3
"""Seeds whose machines wait at a time: those used last, as many as are held in memory."""
DEFAULT_EMULATED = 1
DEFAULT_HARDWARE = 0
"""Where guests run on the CPU a fork is quick without a rehearsal."""
FIRST_NUMBER = MAX_QID + 2
"""After the qubes and the machine that is being made into a seed."""
RUNTIME_NAME = WAITING_PREFIX + "{}"
"""Run-time folder; no qube's name has a dot at that place."""
KEPT_S = 3600.0
"""After the last start from its seed."""
QUIET_S = 3.0
"""Without a start, before one is made: people come first."""
RETRY_S = 600.0
"""After one could not be made."""
LOOK_S = 30.0
"""Between looks at the host's memory while there are some."""
ROOM_MIB = 1024
"""What the host must have to spare, besides what the machine could use, for one to be made."""
SHORT_MIB = 768
"""With less available, those that wait are ended."""
REHEARSALS = 2
"""After the first one it stands still for the first time. What a machine that goes on does, with other disks and a host
that has come back, is played by the second. A window belongs to the first, where windows are used, so that a start is
what was played last."""
ANSWER_LIMIT_S = 60.0
"""For the rehearsal, at most 20 s for a start and 30 for a window: two seconds on an idle machine."""


@dataclass(eq=False)
class _Waiting:
    """One machine, paused, nobody's."""

    machine: Machine
    let_go: AsyncExitStack
    """Gives back what it holds of the host once it is somebody's, or gone."""


@dataclass(eq=False)
class _Kind:
    """A seed that qubes were started from lately."""

    seed: Seed
    plan: StartPlan
    used_at: float
    """On the loop's clock."""
    failed_at: float = float("-inf")
    machines: list[_Waiting] = field(default_factory=list)
    taken: int = 0
    """Starts that found one."""


@dataclass(frozen=True)
class StandbyCount:
    """What people are told of a seed's machines."""

    waiting: int
    memory_kib: int
    """Proportional."""
    taken: int


def wanted(system: System, template: QubeName, *, is_emulated: bool) -> int:
    """How many machines of a template's seed should wait. Pure."""
    default = DEFAULT_EMULATED if is_emulated else DEFAULT_HARDWARE
    for holder in (system.qubes.get(template), system.get(ADMIN_NAME)):
        text = "" if holder is None else holder.features.get(FEATURE, "")
        if text.isdecimal():
            return min(int(text), MAX_WAITING)
    return default


class Standby:
    """Belongs to one daemon and its event loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._kinds: dict[str, _Kind] = {}
        """By the seed's name."""
        self._numbers: set[int] = set()
        """Host numbers in use: of machines that wait, and of those that have become qubes."""
        self._making = asyncio.Lock()
        self._wake = asyncio.Event()
        self._last_start = float("-inf")
        self._loops: set[asyncio.Task[None]] = set()
        """Broken off when the daemon ends."""
        self._endings: set[asyncio.Task[None]] = set()
        """Waited for."""

    # -- the daemon's beginning and end

    def open(self) -> None:
        """Begin to hold machines. Those of an earlier daemon that are qubes keep their numbers."""
        for record in self._host.store.machines().values():
            spec = record.get("spec")
            number = spec.get("host_number") if isinstance(spec, dict) else None
            if isinstance(number, int):
                self._numbers.add(number)
        self._spawn(self._tend(), self._loops, "machines in waiting")
        self._spawn(self._listen(), self._loops, "wishes for machines in waiting")

    async def close(self) -> None:
        """End those that wait."""
        for task in list(self._loops):
            task.cancel()
        await asyncio.gather(*self._loops, *self._endings, return_exceptions=True)
        # Seeds are still being made meanwhile.
        for kind in list(self._kinds.values()):
            await self._end_all(kind)

    # -- for starts

    def note_start(self, plan: StartPlan, seed: Seed) -> None:
        """A qube is about to be started from this seed."""
        self._last_start = asyncio.get_running_loop().time()
        self.note_seed(plan, seed)

    def note_seed(self, plan: StartPlan, seed: Seed) -> None:
        """This seed was just made, for starts like ``plan``, or is used by one."""
        now = asyncio.get_running_loop().time()
        kind = self._kinds.setdefault(seed.folder.name, _Kind(seed, plan, now))
        kind.plan, kind.used_at = plan, now
        self._wake.set()

    async def become(self, seed: Seed, spec: MachineSpec) -> Machine | None:
        """A machine that waited, turned into the one that ``spec`` describes, paused; None: there is none.

        ``spec.runtime_dir`` is empty again if it could not be turned.
        """
        kind = self._kinds.get(seed.folder.name)
        while kind is not None and kind.machines:
            waiting = kind.machines.pop(0)
            self._wake.set()
            if waiting.machine.state is not MachineState.PAUSED:
                await self._end(waiting)
                continue
            try:
                await waiting.machine.become(spec)
            except HalError as e:
                log.warning("%s: %s was in waiting, but cannot be used: %s", spec.name, waiting.machine.spec.name, e)
                await self._end(waiting)
                _empty(spec)
                continue
            except BaseException:
                await self._end(waiting)
                raise
            kind.taken += 1
            # The qube has files of its own now.
            self._spawn(_release(waiting), self._endings, f"what {spec.name} waited with")
            return waiting.machine
        return None

    async def shed(self) -> bool:
        """Memory is short: end all that wait; whether there was one."""
        kinds = [kind for kind in self._kinds.values() if kind.machines]
        for kind in kinds:
            log.info("machines in waiting of %s: ended, memory is short", kind.seed.key.template)
            await self._end_all(kind)
        return bool(kinds)

    def drop(self, seed_name: str) -> None:
        """The seed is gone or cannot be trusted: end the machines made from it, and make no more."""
        kind = self._kinds.pop(seed_name, None)
        if kind is not None:
            self._spawn(self._end_all(kind), self._endings, f"end of the machines in waiting from {seed_name}")

    async def provide(self, plan: StartPlan, seed: Seed) -> None:
        """Have one that waits, now, if any are wanted. Best effort."""
        self.note_start(plan, seed)
        kind = self._kinds[seed.folder.name]
        async with self._making:
            if not kind.machines and self._wanted(kind) and self._may_make(kind):
                await self._make_logged(kind)

    # -- for people

    async def counts(self) -> dict[str, StandbyCount]:
        """By the seed's name."""
        counts = {}
        for name, kind in list(self._kinds.items()):
            memory = 0
            for waiting in list(kind.machines):
                with suppress(HalError):
                    memory += (await waiting.machine.stats()).memory_kib
            counts[name] = StandbyCount(len(kind.machines), memory, kind.taken)
        return counts

    # -- keeping them

    def _wanted(self, kind: _Kind) -> int:
        if kind.plan.links or (kind.plan.nic is not None and kind.plan.nic.mac != DEFAULT_MAC):
            # A net qube, which is started once, or a seed of one qube's own, for its interface has that qube's address:
            # what waited would wait for it alone.
            return 0
        if kind not in sorted(self._kinds.values(), key=_used_at, reverse=True)[:MAX_KINDS]:
            return 0
        emulated = Capability.HARDWARE_VIRTUALIZATION not in self._host.driver.capabilities
        return wanted(self._host.store.system, QubeName(kind.seed.key.template), is_emulated=emulated)

    def _may_make(self, kind: _Kind) -> bool:
        return self._host.memory.available_mib() >= kind.plan.memory_mib + ROOM_MIB

    async def _listen(self) -> None:
        while True:
            with suppress(Overrun), self._host.bus.listen() as events:
                async for event in events:
                    if event.name in (f"domain-feature-set:{FEATURE}", f"domain-feature-delete:{FEATURE}"):
                        self._wake.set()
                return

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            await self._end_unwanted(loop.time())
            quiet_in = self._last_start + QUIET_S - loop.time()
            lacking = next(self._lacking(loop.time()), None)
            if lacking is not None and quiet_in <= 0:
                async with self._making:
                    await self._make_logged(lacking)
                continue
            wait = max(quiet_in, 0.01) if lacking is not None else LOOK_S if self._kinds else None
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _lacking(self, now: float) -> Iterator[_Kind]:
        for kind in sorted(self._kinds.values(), key=_used_at, reverse=True):
            is_wanted = len(kind.machines) < self._wanted(kind)
            if is_wanted and now - kind.failed_at >= RETRY_S and self._may_make(kind):
                yield kind

    async def _end_unwanted(self, now: float) -> None:
        if self._host.memory.available_mib() < SHORT_MIB:
            await self.shed()
        for name, kind in list(self._kinds.items()):
            if now - kind.used_at > KEPT_S:
                self._kinds.pop(name, None)
                await self._end_all(kind)
            while len(kind.machines) > self._wanted(kind):
                await self._end(kind.machines.pop())

    async def _end_all(self, kind: _Kind) -> None:
        while kind.machines:
            await self._end(kind.machines.pop())

    async def _end(self, waiting: _Waiting) -> None:
        try:
            await waiting.machine.kill()
        except MachineGone:
            pass
        except HalError as e:
            # It may live: what it has stays its own. The next daemon ends it, by its run-time folder.
            log.error("%s: cannot be ended: %s", waiting.machine.spec.name, e)
            return
        await _release(waiting)

    # -- making one

    async def _make_logged(self, kind: _Kind) -> None:
        begin = asyncio.get_running_loop().time()
        try:
            waiting = await self._make(kind)
        except (InsulaError, HalError, StorageError, NotFormatted, OSError) as e:
            require_wanted()
            if self._kinds.get(kind.seed.folder.name) is not kind:
                # Its seed was dropped meanwhile, and that was told.
                return
            if isinstance(e, SeedUnusable) and self._host.seeds is not None:
                self._host.seeds.unusable(kind.seed, str(e))
                return
            kind.failed_at = asyncio.get_running_loop().time()
            log.warning("no machine of %s can be held in waiting: %s", kind.seed.key.template, e)
            return
        took = asyncio.get_running_loop().time() - begin
        log.info("%s of %s: in waiting after %.1f s", waiting.machine.spec.name, kind.seed.key.template, took)
        if self._kinds.get(kind.seed.folder.name) is not kind:
            await self._end(waiting)
            return
        kind.machines.append(waiting)
        self._spawn(self._watch(kind, waiting), self._loops, f"watch {waiting.machine.spec.name}")

    async def _make(self, kind: _Kind) -> _Waiting:
        host, plan, number = self._host, kind.plan, self._take_number()
        name = RUNTIME_NAME.format(number)
        with host.memory.promise(f"a machine of {kind.seed.key.template} in waiting", plan.memory_mib):
            async with AsyncExitStack() as undo:
                undo.callback(self._numbers.discard, number)
                let_go = await undo.enter_async_context(AsyncExitStack())
                runtime = nobody.empty_runtime_folder(host, name, let_go)
                disks = [Disk(v.name, await self._source(v, kind.seed, number, let_go)) for v in plan.volumes]
                machine = await host.driver.define(
                    MachineSpec(
                        name=name,
                        uuid=uuid.uuid4(),
                        qid=number,
                        memory_mib=plan.memory_mib,
                        vcpus=plan.vcpus,
                        kernel=plan.own_kernel.image,
                        initrd=plan.own_kernel.initrd,
                        cmdline=kind.seed.key.cmdline,
                        disks=tuple(disks),
                        runtime_dir=runtime,
                        nic=plan.nic,
                        host_number=number,
                        seed=kind.seed.machine,
                    )
                )
                undo.callback(keep_console, machine, host.console_folder)
                undo.push_async_callback(machine.kill)
                await machine.start_paused()
                if Capability.FRAMES in host.driver.capabilities:
                    # Plugged now, its guest has seen it long before anybody asks for windows; it takes no memory.
                    os.close(await machine.open_frames())
                for count in range(REHEARSALS):
                    await self._rehearse(machine, has_window=count == 0 and self._are_windows_used())
                undo.pop_all()
        return _Waiting(machine, let_go)

    def _are_windows_used(self) -> bool:
        """Nobody pays for what nobody wants: a window played takes 13 MiB of a machine, and some 20 of its translation
        cache."""
        return self._host.windows is not None and self._host.windows.are_used

    async def _rehearse(self, machine: Machine, *, has_window: bool) -> None:
        """Have it play a start by itself; it is paused before and afterwards."""
        for disk in machine.spec.disks:
            if disk.name != "root":
                # As when disks are exchanged: the guest looks at them again when it goes on.
                await machine.resize_disk(disk.name, disk.source.size)
        keys = rehearsal_keys(os.urandom(RANDOM_SEED_BYTES), has_window=has_window)
        async with nobody.session_of(self._host, machine, keys) as session:
            await machine.resume()
            await nobody.wait_for_hello(machine, session, ANSWER_LIMIT_S)
        await nobody.wait_until_at_rest(machine)
        await machine.pause()

    async def _source(self, volume: VolumeSpec, seed: Seed, number: int, let_go: AsyncExitStack) -> BlockSource:
        """A disk for nobody: the root as every fork has it, placeholders for the others."""
        if volume.name == "root":
            pool = self._host.pool_of(volume)
            borrowed = replace(volume, vid=f"waiting/{number}/root", ephemeral=False)
            source = await pool.activate(borrowed)
            let_go.push_async_callback(pool.deactivate, borrowed, commit=False)
            if source.revision != seed.key.root:
                raise QubesException("the template's root changed meanwhile")
            return seed.under(source)
        path = self._host.runtime_folder(RUNTIME_NAME.format(number)) / f"{volume.name}.raw"
        # As large as those of the qube that this seed was last used for: a guest that is told of another size by an
        # interrupt has to wait for it.
        source = nobody.placeholder(path, volume.size)
        if volume.name == "private":
            await asyncio.to_thread(format_disk, path)
        return source

    def _take_number(self) -> int:
        number = next((n for n in range(FIRST_NUMBER, MAX_HOST_NUMBER + 1) if n not in self._numbers), None)
        if number is None:
            raise QubesException("no number is left for one more machine in waiting")
        self._numbers.add(number)
        return number

    # -- afterwards

    async def _watch(self, kind: _Kind, waiting: _Waiting) -> None:
        """Whatever it is by then: once it is gone, its number is free, and if it still waited, it is no more."""
        number = waiting.machine.spec.host_number
        with suppress(HalError):
            await waiting.machine.wait_gone()
        if waiting in kind.machines:
            kind.machines.remove(waiting)
            await _release(waiting)
            self._wake.set()
        if number is not None:
            self._numbers.discard(number)

    def _spawn(self, work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]], what: str) -> None:
        task = asyncio.create_task(work, name=what)
        tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._loops.discard(task)
        self._endings.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)


def _used_at(kind: _Kind) -> float:
    return kind.used_at


async def _release(waiting: _Waiting) -> None:
    """Give back what it held of the host."""
    try:
        await waiting.let_go.aclose()
    except (StorageError, OSError) as e:
        log.warning("%s: %s", waiting.machine.spec.name, e)


def _empty(spec: MachineSpec) -> None:
    """The run-time folder as the next attempt needs it."""
    spec.runtime_dir.mkdir(mode=0o700, exist_ok=True)
    for path in spec.runtime_dir.iterdir():
        path.unlink()
