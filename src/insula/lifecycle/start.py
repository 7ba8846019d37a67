"""Starting a qube: the steps, in order, each undone if a later one fails.

Nothing else in the project makes a qube run. The order is what makes it safe: the volumes are ours before a machine
has them, the machine is paused until its keys and its channel are there, the record is on disk before the guest runs
its first instruction. What it says while its session process is being made, it says to a socket nobody reads yet.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

from insula.hal.capabilities import Capability
from insula.hal.driver import RPC_CHANNEL, Disk, Machine, MachineSpec
from insula.hal.errors import DriverError, HalError, SeedUnusable
from insula.lifecycle.host import Host, Session, Standby, host_timezone, keep_console, log
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.running import RunningQube
from insula.lifecycle.seeds import Seed
from insula.lifecycle.waiting import first_of
from insula.model.block import BlockSource, VolumeSpec
from insula.model.errors import InsulaError, QubesException, QubesMemoryError
from insula.model.names import QubeName
from insula.model.qubesdb_keys import boot_keys
from insula.storage.pool import StorageError

FORK_LIMIT_S = 60
"""For a fork's agent to answer: a tenth of a second; 11 s were seen with four at once beside 14 busy processes on two
cores. A good seed is not to be dropped for that."""
RANDOM_SEED_BYTES = 64
"""Size of ``/qubes-random-seed`` before base64 (agent-services §11)."""


class StartFailed(QubesException):
    """A start that was undone. ``step`` says how far it came; the cause is chained."""

    def __init__(self, name: str, step: str, cause: str) -> None:
        super().__init__(f"Could not start {name}: {step}: {cause}")
        self.step = step

    @property
    def wire_name(self) -> str:
        return "QubesException"


class _Steps:
    """Remembers which step is under way, for the error message and the log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current = "preparing"

    def begin(self, step: str) -> None:
        self.current = step
        log.debug("%s: %s", self.name, step)


class _NotFromSeed(Exception):
    """The seed is at fault; booting may work."""


class _NotInWaiting(Exception):
    """A machine in waiting is at fault; a new fork of its seed may work."""


async def start_qube(host: Host, plan: StartPlan) -> tuple[RunningQube, Session]:
    """Carry out a plan; returns when the agent has answered.

    A seed that does not work out costs time, never the start: it is dropped, and the qube boots.

    :raise StartFailed: everything was undone, the qube is as before; the console log was kept.
    :raise QubesMemoryError: refused before anything was done.
    """
    with await _promise(host, plan):
        seed = None if host.seeds is None else await host.seeds.for_start(plan)
        if host.seeds is not None and seed is not None:
            try:
                return await _fork(host, plan, seed)
            except _NotFromSeed as e:
                host.seeds.unusable(seed, str(e))
        return await _start(host, plan, None)


async def _promise(host: Host, plan: StartPlan) -> AbstractContextManager[None]:
    """The memory of a start; machines that only wait make room for it. :raise QubesMemoryError:"""
    try:
        host.memory.require(plan.name, plan.memory_mib)
    except QubesMemoryError:
        if host.standby is None or not await host.standby.shed():
            raise
    return host.memory.promise(plan.name, plan.memory_mib)


async def _fork(host: Host, plan: StartPlan, seed: Seed) -> tuple[RunningQube, Session]:
    """:raise _NotFromSeed: the seed does not work out."""
    if host.standby is not None:
        host.standby.note_start(plan, seed)
        try:
            return await _start(host, plan, seed, host.standby)
        except _NotInWaiting as e:
            log.warning("%s: the machine that was in waiting failed, the start goes on without it: %s", plan.name, e)
            host.standby.drop(seed.folder.name)
    return await _start(host, plan, seed)


async def _start(
    host: Host, plan: StartPlan, seed: Seed | None, standby: Standby | None = None
) -> tuple[RunningQube, Session]:
    steps = _Steps(plan.name)
    async with AsyncExitStack() as undo:
        try:
            result = await _run_steps(host, plan, seed, standby, steps, undo)
        except SeedUnusable as e:
            raise _NotFromSeed(f"{e}. {e.detail}".strip()) from e
        except InsulaError as e:
            raise StartFailed(plan.name, steps.current, str(e)) from e
        except DriverError as e:
            if e.detail:
                # Of any length and in the words of other programs: for the log.
                log.error("%s: %s: %s: %s", plan.name, steps.current, e, e.detail)
            more = " (the daemon's log says more)" if e.detail else ""
            raise StartFailed(plan.name, steps.current, f"{e}{more}") from e
        except (HalError, StorageError, OSError) as e:
            raise StartFailed(plan.name, steps.current, str(e)) from e
        undo.pop_all()
        return result


async def _run_steps(
    host: Host, plan: StartPlan, seed: Seed | None, standby: Standby | None, steps: _Steps, undo: AsyncExitStack
) -> tuple[RunningQube, Session]:
    steps.begin("preparing its run-time folder")
    folder = host.runtime_folder(plan.name)
    _make_empty(folder)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)

    sources = await _activate(host, plan, steps, undo)
    if seed is not None:
        if sources["root"].revision != seed.key.root:
            raise _NotFromSeed("the template's root changed while the start began")
        sources["root"] = seed.under(sources["root"])

    steps.begin("starting the machine")
    if plan.card is not None and Capability.PCI_PASSTHROUGH not in host.driver.capabilities:
        raise QubesException(f"it cannot have network card {plan.card}: no IOMMU of this computer would guard it")
    if plan.kernel is None and Capability.DISPLAY not in host.driver.capabilities:
        raise QubesException("it cannot boot by itself: this hypervisor has no screen to show it on")
    host.publish(plan.name, "domain-pre-spawn", start_guid="None")
    spec = MachineSpec(
        name=plan.name,
        uuid=plan.uuid,
        qid=plan.qid,
        memory_mib=plan.memory_mib,
        vcpus=plan.vcpus,
        kernel=None if plan.kernel is None else plan.kernel.image,
        initrd=None if plan.kernel is None else plan.kernel.initrd,
        has_display=plan.kernel is None,
        cd=plan.cd,
        cmdline=plan.cmdline if seed is None else seed.key.cmdline,
        disks=tuple(Disk(volume.name, sources[volume.name]) for volume in plan.volumes),
        runtime_dir=folder,
        nic=plan.nic,
        links=plan.links,
        devices=() if plan.card is None else (plan.card,),
        strict_reset=plan.strict_reset,
        debug=plan.debug,
        seed=None if seed is None else seed.machine,
    )
    waited = None if standby is None or seed is None else await standby.become(seed, spec)
    machine = waited or await host.driver.define(spec)
    undo.callback(keep_console, machine, host.console_folder)
    undo.push_async_callback(machine.kill)
    if waited is None:
        await machine.start_paused()
    running = RunningQube(machine, plan.volumes, time.time())
    # Lost with the host's power it says what it says: the volumes are as before this start.
    host.store.put_machine(plan.name, running.record(host.driver.name, ready=False).to_json(), is_synced=False)
    undo.callback(host.store.remove_machine, plan.name)
    for prop in ("xid", "stubdom_xid", "start_time"):
        host.publish(plan.name, f"property-reset:{prop}", name=prop)
    host.publish(plan.name, "domain-spawn", start_guid="None")

    steps.begin("starting its session process")
    session = await open_session(host, machine, partial(_let_run, host, plan, machine, steps, undo))
    undo.push_async_callback(session.close)

    steps.begin("waiting for its agent")
    if plan.kernel is None:
        pass  # nobody in it would answer
    elif seed is None:
        await _wait_for_agent(machine, session, plan.agent_timeout_s)
    else:
        try:
            await _wait_for_agent(machine, session, min(plan.agent_timeout_s, FORK_LIMIT_S))
        except QubesException as e:
            raise (_NotFromSeed if waited is None else _NotInWaiting)(str(e)) from e
    link = None if host.links is None else host.links.note_of(plan.name)
    host.store.put_machine(
        plan.name,
        running.record(host.driver.name, ready=True, link=link).to_json(),
        # Without it what was written is thrown away after a loss of power; so it is waited for where anything is kept.
        is_synced=any(volume.save_on_stop for volume in plan.volumes),
    )
    return running, session


async def _let_run(host: Host, plan: StartPlan, machine: Machine, steps: _Steps, undo: AsyncExitStack) -> None:
    host.publish(plan.name, "domain-qdb-create")
    if host.links is not None and plan.nic is not None:
        steps.begin("linking it to its network")
        undo.push_async_callback(host.links.end, plan.name)
        await host.links.begin(plan.name, machine)
    steps.begin("letting it run")
    host.publish(plan.name, "domain-pre-unpaused")
    await machine.resume()
    host.publish(plan.name, "domain-unpaused")
    steps.begin("starting its session process")


async def _activate(host: Host, plan: StartPlan, steps: _Steps, undo: AsyncExitStack) -> dict[str, BlockSource]:
    """All volumes at the same time, by name; if one fails, the others are undone like every step."""
    tasks: dict[VolumeSpec, asyncio.Task[BlockSource]] = {}
    try:
        for volume in plan.volumes:
            steps.begin(f"activating volume {volume.name}")
            tasks[volume] = asyncio.create_task(host.pool_of(volume).activate(volume))
        await asyncio.wait(tasks.values())
    finally:
        # A start that is cancelled here knows of those that have just succeeded, too.
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for volume, task in tasks.items():
            # Only what is ours is undone: a volume that somebody else left open is not discarded.
            if not task.cancelled() and task.exception() is None:
                undo.push_async_callback(host.pool_of(volume).deactivate, volume, commit=False)
    for volume, task in tasks.items():
        if task.exception() is not None:
            steps.begin(f"activating volume {volume.name}")
    return {volume.name: task.result() for volume, task in tasks.items()}


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


async def open_session(
    host: Host, machine: Machine, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> Session:  # fmt: skip
    """Start the session process of a machine.

    :param meanwhile: is done while the process is being made; the machine's channel is connected then.
    """
    spec = machine.spec
    name = QubeName(spec.name)
    keys = boot_keys(host.store.system, name, os.urandom(RANDOM_SEED_BYTES), host_timezone())
    if host.links is not None:
        keys |= host.links.keys_of(name)
    if host.windows is not None:
        keys |= host.windows.keys_of(name)
    async with AsyncExitStack() as undo:
        channel = await machine.open_channel(RPC_CHANNEL)
        undo.callback(channel.close)
        launch = host.launch_session(
            name=spec.name,
            qid=spec.qid,
            channel=channel,
            rpc_socket=spec.runtime_dir / "rpc.sock",
            keys=keys,
            open_memory=partial(_open_memory, machine),
        )
        launching = asyncio.create_task(launch, name=f"session process of {spec.name}")
        undo.push_async_callback(_give_up, launching)
        if meanwhile is not None:
            await meanwhile()
        session = await launching
        undo.pop_all()
    return session


async def _give_up(launching: asyncio.Task[Session]) -> None:
    launching.cancel()
    for made in await asyncio.gather(launching, return_exceptions=True):
        if not isinstance(made, BaseException):
            await made.close()


async def _open_memory(machine: Machine) -> int | None:
    try:
        return await machine.open_bulk_memory()
    except HalError as error:
        log.info("%s: shares no memory with its session: %s", machine.spec.name, error)
        return None


async def _wait_for_agent(machine: Machine, session: Session, timeout_s: int) -> None:
    async def machine_ended() -> None:
        end = await machine.wait_gone()
        raise QubesException(f"the machine ended ({end.kind.value}) before its agent answered. {end.detail}".strip())

    try:
        async with asyncio.timeout(timeout_s):
            await first_of(session.wait_ready, machine_ended)
    except TimeoutError:
        raise QubesException(
            f"its agent did not answer within {timeout_s} s; it was ended, its console log was kept"
        ) from None
    except ConnectionError as e:
        raise QubesException(f"its session process ended: {e}") from e
