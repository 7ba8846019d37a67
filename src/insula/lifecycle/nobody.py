"""Machines that are nobody's: what making a seed and making a machine in waiting have in common."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from insula.hal.driver import RPC_CHANNEL, Machine, MachineState
from insula.lifecycle.host import Host, Session, log
from insula.lifecycle.waiting import first_of
from insula.model.block import BlockLayer, BlockSource, LayerFormat
from insula.model.errors import QubesException

REST_LIMIT_S = 20.0
"""How long a system may take to come to rest."""
REST_STEP_S = 0.25
REST_SHARE = 0.1
"""Share of a CPU that a system at rest uses at most, over REST_STEP_S."""


class NoAnswer(QubesException):
    """Its agent did not get as far as it should."""

    @property
    def wire_name(self) -> str:
        return "QubesException"


def empty_runtime_folder(host: Host, name: str, undo: AsyncExitStack) -> Path:
    runtime = host.runtime_folder(name)
    shutil.rmtree(runtime, ignore_errors=True)
    runtime.mkdir(mode=0o700, parents=True)
    undo.callback(shutil.rmtree, runtime, ignore_errors=True)
    return runtime


def placeholder(path: Path, size: int) -> BlockSource:
    """An empty disk, gone with the machine."""
    with path.open("xb") as file:
        file.truncate(size)
    return BlockSource((BlockLayer(path, LayerFormat.RAW),), size, writable=True, unlink_top=True)


@asynccontextmanager
async def session_of(host: Host, machine: Machine, keys: Mapping[str, str]) -> AsyncIterator[Session]:
    """A session process for the time of the context."""
    spec = machine.spec
    channel = await machine.open_channel(RPC_CHANNEL)
    try:
        session = await host.launch_session(
            name=spec.name, qid=spec.qid, channel=channel, rpc_socket=spec.runtime_dir / "rpc.sock", keys=keys
        )
    except BaseException:
        channel.close()
        raise
    try:
        yield session
    finally:
        await session.close()


async def wait_for_hello(machine: Machine, session: Session, limit_s: float) -> None:
    """:raise NoAnswer: the machine ended, stands still, or takes too long."""

    async def machine_ended() -> None:
        end = await machine.wait_gone()
        raise NoAnswer(f"the machine ended ({end.kind.value}). {end.detail}".strip())

    async def machine_stands_still() -> None:
        while True:
            await asyncio.sleep(REST_STEP_S)
            if machine.state is MachineState.PAUSED:
                raise NoAnswer("the machine was stopped: its disk has no room, or fails")

    try:
        async with asyncio.timeout(limit_s):
            await first_of(session.wait_ready, machine_ended, machine_stands_still)
    except TimeoutError:
        raise NoAnswer(f"no answer within {limit_s:.0f} s") from None


async def wait_until_at_rest(machine: Machine) -> None:
    """A system that is stopped while it is busy goes on being busy afterwards, in every fork."""
    deadline = asyncio.get_running_loop().time() + REST_LIMIT_S
    before = (await machine.stats()).cpu_time_ms
    while True:
        await asyncio.sleep(REST_STEP_S)
        now = (await machine.stats()).cpu_time_ms
        if now - before <= REST_SHARE * REST_STEP_S * 1000:
            return
        if asyncio.get_running_loop().time() > deadline:
            log.warning("%s: still busy after %.0f s, stopped nevertheless", machine.spec.name, REST_LIMIT_S)
            return
        before = now
