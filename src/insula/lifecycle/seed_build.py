"""Making a seed: boot a template's system without an owner, wait until it rests, freeze it. The steps, in order.

The machine has the shape of the qubes that will be forked from it and nothing of theirs: its private and volatile
disks are empty placeholders, its agent is told that it is a seed (``/insula-seed``) and waits. It runs in the same
sandbox as any qube.
"""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from insula.hal.driver import Disk, Machine, MachineSpec
from insula.hal.errors import HalError
from insula.lifecycle import nobody
from insula.lifecycle.host import Host, keep_console
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.seeds import MACHINE, ROOT_LAYER, SeedKey
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
BOOT_LIMIT_S = 600.0
"""For its agent to be there and to find the system booted, of which it gives up the second part after 150 s. Nobody
waits for what has failed: a machine that ends, or stands still, is noticed at once."""


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
                runtime = nobody.empty_runtime_folder(host, name, undo)
                machine = await _define(host, plan, name, folder, runtime, undo)
                undo.callback(keep_console, machine, host.console_folder)
                undo.push_async_callback(machine.kill)
                await machine.start_paused()
                async with nobody.session_of(host, machine, seed_keys()) as session:
                    await machine.resume()
                    await nobody.wait_for_hello(machine, session, BOOT_LIMIT_S)
                # The agent has noticed that nobody listens before the machine is frozen: forks meet it waiting.
                await nobody.wait_until_at_rest(machine)
                await machine.pause()
                await machine.freeze(folder / MACHINE)
        except (nobody.NoAnswer, HalError, StorageError, OSError, TimeoutError) as e:
            raise SeedFailed(f"no seed of {key.template} could be made: {e or type(e).__name__}") from e


async def _define(host: Host, plan: StartPlan, name: str, folder: Path, runtime: Path, undo: AsyncExitStack) -> Machine:
    disks: list[Disk] = []
    for volume in plan.volumes:
        if volume.name == "root":
            source = await _root(host, volume, folder, undo)
        else:
            source = nobody.placeholder(runtime / f"{volume.name}.raw", volume.size)
        disks.append(Disk(volume.name, source))
    return await host.driver.define(
        MachineSpec(
            name=name,
            uuid=uuid.uuid4(),
            qid=SEED_QID,
            memory_mib=plan.memory_mib,
            vcpus=plan.vcpus,
            kernel=plan.own_kernel.image,
            initrd=plan.own_kernel.initrd,
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
