"""Making a seed: boot a template's system without an owner, wait until it rests, freeze it. The steps, in order.

The machine has the shape of the qubes that will be forked from it and nothing of theirs: its private and volatile
disks are empty placeholders, its agent is told that it is a seed (``/insula-seed``) and waits. It runs in the same
sandbox as any qube.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from insula.hal.driver import RPC_CHANNEL, Disk, Machine, MachineSpec, MachineState
from insula.hal.errors import HalError
from insula.lifecycle.host import Host, Session, keep_console, log
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.seeds import MACHINE, ROOT_LAYER, SeedKey
from insula.lifecycle.waiting import first_of
from insula.model.block import BlockLayer, BlockSource, LayerFormat, VolumeSpec
from insula.model.errors import QubesException
from insula.model.qube import MAX_QID
from insula.model.qubesdb_keys import seed_keys
from insula.storage.pool import StorageError
from insula.storage.qcow2_image import write_overlay

SEED_QID = MAX_QID + 1
"""Number of the one machine that is being made into a seed; no qube has it."""
RUNTIME_NAME = "seed.{}"
"""Run-time folder while it boots; no qube's name has a dot at that place."""
BOOT_LIMIT_S = 180.0
REST_LIMIT_S = 20.0
"""How long a booted system may take to come to rest."""
REST_STEP_S = 0.25
REST_SHARE = 0.1
"""Share of a CPU that a system at rest uses at most, over REST_STEP_S."""


class SeedFailed(QubesException):
    """No seed was made; nothing is left of the attempt."""

    @property
    def wire_name(self) -> str:
        return "QubesException"


async def build_seed(host: Host, plan: StartPlan, key: SeedKey, folder: Path) -> None:
    """Fill ``folder`` (of :meth:`SeedStore.staging`) with a seed for qubes that start like ``plan``.

    :raise SeedFailed: what went wrong.
    :raise QubesMemoryError: refused, the host's memory does not bear it now.
    """
    name = RUNTIME_NAME.format(key.name)
    with host.memory.promise(f"a seed of {key.template}", plan.memory_mib):
        try:
            async with AsyncExitStack() as undo:
                runtime = _runtime_folder(host, name, undo)
                machine = await _define(host, plan, name, folder, runtime, undo)
                undo.callback(keep_console, machine, host.console_folder)
                undo.push_async_callback(machine.kill)
                await machine.start_paused()
                async with _session(host, machine) as session:
                    await machine.resume()
                    await _wait_until_booted(machine, session)
                # The agent has noticed that nobody listens before the machine is frozen: forks meet it waiting.
                await _wait_until_at_rest(machine)
                await machine.pause()
                await machine.freeze(folder / MACHINE)
        except (HalError, StorageError, OSError, TimeoutError) as e:
            raise SeedFailed(f"no seed of {key.template} could be made: {e or type(e).__name__}") from e


def _runtime_folder(host: Host, name: str, undo: AsyncExitStack) -> Path:
    runtime = host.runtime_folder(name)
    shutil.rmtree(runtime, ignore_errors=True)
    runtime.mkdir(mode=0o700, parents=True)
    undo.callback(shutil.rmtree, runtime, ignore_errors=True)
    return runtime


async def _define(host: Host, plan: StartPlan, name: str, folder: Path, runtime: Path, undo: AsyncExitStack) -> Machine:
    disks: list[Disk] = []
    for volume in plan.volumes:
        if volume.name == "root":
            source = await _root(host, volume, folder, undo)
        else:
            source = _placeholder(runtime / f"{volume.name}.raw", volume.size)
        disks.append(Disk(volume.name, source))
    return await host.driver.define(
        MachineSpec(
            name=name,
            uuid=uuid.uuid4(),
            qid=SEED_QID,
            memory_mib=plan.memory_mib,
            vcpus=plan.vcpus,
            kernel=plan.kernel.image,
            initrd=plan.kernel.initrd,
            cmdline=plan.seed_cmdline,
            disks=tuple(disks),
            runtime_dir=runtime,
            nic=plan.nic,
            links=plan.links,
            freezable=True,
        )
    )


async def _root(host: Host, volume: VolumeSpec, folder: Path, undo: AsyncExitStack) -> BlockSource:
    """The template's root under a layer of the seed's own. Active meanwhile: its layers are kept by the pool."""
    pool = host.pool_of(volume)
    borrowed = replace(volume, vid=f"seeds/{folder.name}/root", ephemeral=False)
    source = await pool.activate(borrowed)
    undo.push_async_callback(pool.deactivate, borrowed, commit=False)
    source.layers[0].path.unlink(missing_ok=True)
    layer = folder / ROOT_LAYER
    write_overlay(layer, source.size)
    return BlockSource((BlockLayer(layer, LayerFormat.QCOW2), *source.layers[1:]), source.size, writable=True)


def _placeholder(path: Path, size: int) -> BlockSource:
    """An empty disk, gone with the machine."""
    with path.open("xb") as file:
        file.truncate(size)
    return BlockSource((BlockLayer(path, LayerFormat.RAW),), size, writable=True, unlink_top=True)


@asynccontextmanager
async def _session(host: Host, machine: Machine) -> AsyncIterator[Session]:
    spec = machine.spec
    channel = await machine.open_channel(RPC_CHANNEL)
    try:
        session = await host.launch_session(
            name=spec.name,
            qid=spec.qid,
            channel=channel,
            rpc_socket=spec.runtime_dir / "rpc.sock",
            keys=seed_keys(),
        )
    except BaseException:
        channel.close()
        raise
    try:
        yield session
    finally:
        await session.close()


async def _wait_until_booted(machine: Machine, session: Session) -> None:
    async def machine_ended() -> None:
        end = await machine.wait_gone()
        raise SeedFailed(f"the seed's machine ended while booting ({end.kind.value}). {end.detail}".strip())

    async def machine_stands_still() -> None:
        while True:
            await asyncio.sleep(REST_STEP_S)
            if machine.state is MachineState.PAUSED:
                raise SeedFailed("the seed's machine was stopped while booting: its disk has no room, or fails")

    try:
        async with asyncio.timeout(BOOT_LIMIT_S):
            await first_of(session.wait_ready, machine_ended, machine_stands_still)
    except TimeoutError:
        raise SeedFailed(f"the seed's system was not up within {BOOT_LIMIT_S:.0f} s") from None


async def _wait_until_at_rest(machine: Machine) -> None:
    """A system that is frozen while it is busy goes on being busy in every fork."""
    deadline = asyncio.get_running_loop().time() + REST_LIMIT_S
    before = (await machine.stats()).cpu_time_ms
    while True:
        await asyncio.sleep(REST_STEP_S)
        now = (await machine.stats()).cpu_time_ms
        if now - before <= REST_SHARE * REST_STEP_S * 1000:
            return
        if asyncio.get_running_loop().time() > deadline:
            log.warning("%s: still busy after %.0f s, frozen nevertheless", machine.spec.name, REST_LIMIT_S)
            return
        before = now
