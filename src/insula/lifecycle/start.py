"""Starting a qube: the steps, in order, each undone if a later one fails.

Nothing else in the project makes a qube run. The order is what makes it safe: the volumes are ours before a machine
has them, the machine is paused until its session process and its keys are there, the record is on disk before the
guest runs its first instruction.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from insula.hal.driver import RPC_CHANNEL, Disk, Machine, MachineSpec
from insula.hal.errors import DriverError, HalError
from insula.lifecycle.host import Host, Session, log
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.running import RunningQube
from insula.model.block import BlockSource, VolumeSpec
from insula.model.errors import InsulaError, QubesException
from insula.model.names import QubeName
from insula.model.qubesdb_keys import boot_keys
from insula.storage.pool import StorageError

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


async def start_qube(host: Host, plan: StartPlan) -> tuple[RunningQube, Session]:
    """Carry out a plan; returns when the agent has answered.

    :raise StartFailed: everything was undone, the qube is as before; the console log was kept.
    :raise QubesMemoryError: refused before anything was done.
    """
    steps = _Steps(plan.name)
    with host.memory.promise(plan.name, plan.memory_mib):
        async with AsyncExitStack() as undo:
            try:
                result = await _run_steps(host, plan, steps, undo)
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


async def _run_steps(host: Host, plan: StartPlan, steps: _Steps, undo: AsyncExitStack) -> tuple[RunningQube, Session]:
    steps.begin("preparing its run-time folder")
    folder = host.runtime_folder(plan.name)
    _make_empty(folder)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)

    sources: list[tuple[VolumeSpec, BlockSource]] = []
    for volume in plan.volumes:
        steps.begin(f"activating volume {volume.name}")
        pool = host.pool_of(volume)
        source = await pool.activate(volume)
        # Only what is ours is undone: a volume that somebody else left open is not discarded.
        undo.push_async_callback(pool.deactivate, volume, commit=False)
        sources.append((volume, source))

    steps.begin("starting the machine")
    host.publish(plan.name, "domain-pre-spawn", start_guid="None")
    machine = await host.driver.define(
        MachineSpec(
            name=plan.name,
            uuid=plan.uuid,
            qid=plan.qid,
            memory_mib=plan.memory_mib,
            vcpus=plan.vcpus,
            kernel=plan.kernel.image,
            initrd=plan.kernel.initrd,
            cmdline=plan.cmdline,
            disks=tuple(Disk(volume.name, source) for volume, source in sources),
            runtime_dir=folder,
            debug=plan.debug,
        )
    )
    undo.callback(keep_console, machine, host.console_folder)
    undo.push_async_callback(machine.kill)
    await machine.start_paused()
    running = RunningQube(machine, plan.volumes, time.time())
    host.store.put_machine(plan.name, running.record(host.driver.name, ready=False).to_json())
    undo.callback(host.store.remove_machine, plan.name)
    for prop in ("xid", "stubdom_xid", "start_time"):
        host.publish(plan.name, f"property-reset:{prop}", name=prop)
    host.publish(plan.name, "domain-spawn", start_guid="None")

    steps.begin("starting its session process")
    session = await open_session(host, machine)
    undo.push_async_callback(session.close)
    host.publish(plan.name, "domain-qdb-create")

    steps.begin("waiting for its agent")
    host.publish(plan.name, "domain-pre-unpaused")
    await machine.resume()
    host.publish(plan.name, "domain-unpaused")
    await _wait_for_agent(machine, session, plan.agent_timeout_s)
    host.store.put_machine(plan.name, running.record(host.driver.name, ready=True).to_json())
    return running, session


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


async def open_session(host: Host, machine: Machine) -> Session:
    """Start the session process of a machine that runs or is about to."""
    spec = machine.spec
    keys = boot_keys(host.store.system, QubeName(spec.name), os.urandom(RANDOM_SEED_BYTES), host_timezone())
    channel = await machine.open_channel(RPC_CHANNEL)
    try:
        return await host.launch_session(
            name=spec.name, qid=spec.qid, channel=channel, rpc_socket=spec.runtime_dir / "rpc.sock", keys=keys
        )
    except BaseException:
        channel.close()
        raise


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


async def first_of(*makers: Callable[[], Awaitable[None]]) -> None:
    """Run all, return or raise what the first one does, cancel the others."""
    tasks = [asyncio.ensure_future(make()) for make in makers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def keep_console(machine: Machine, folder: Path) -> None:
    """Move the machine's console log to where it outlives the run-time folder (the last one of each qube)."""
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
