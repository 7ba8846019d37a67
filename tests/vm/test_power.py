"""Starting, stopping, pausing and failing, with real guests."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from insula.admin.client import AdminClient
from insula.model.errors import QubesException, QubesVMNotRunningError, QubesVMNotStartedError
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import RUN_TIMEOUT_S, run, sh

FREED_MIB = 120
GIVEN_BACK_S = 120.0
"""Linux reports what has been free for two seconds, in blocks of 2 MiB (page_reporting.c); so it is not all."""


async def state(client: AdminClient, name: str) -> str:
    return (await client.current_state(name)).power_state


async def test_two_starts_at_once_make_one_machine(daemon: DaemonProcess, halted_qube: str) -> None:
    """MC-56: both succeed, one machine runs."""
    await asyncio.gather(daemon.client.start(halted_qube), daemon.client.start(halted_qube))
    assert await sh(daemon, halted_qube, "echo one") == "one"
    await daemon.client.kill(halted_qube)
    assert await state(daemon.client, halted_qube) == "Halted"


async def test_paused_qube_stands_still_and_goes_on(daemon: DaemonProcess, qube: str) -> None:
    await daemon.client.pause(qube)
    assert await state(daemon.client, qube) == "Paused"
    with pytest.raises(QubesVMNotRunningError):
        await daemon.client.shutdown(qube)
    answer = asyncio.create_task(run(daemon, qube, "echo late"))
    done, _ = await asyncio.wait({answer}, timeout=1)
    assert not done
    await daemon.client.unpause(qube)
    assert (await answer).text == "late"
    assert await state(daemon.client, qube) == "Running"


async def test_killed_qube_is_halted_and_cannot_be_killed_again(daemon: DaemonProcess, qube: str) -> None:
    await daemon.client.kill(qube)
    assert await state(daemon.client, qube) == "Halted"
    with pytest.raises(QubesVMNotStartedError):
        await daemon.client.kill(qube)


async def test_guest_that_powers_itself_off_is_halted_with_its_data_kept(daemon: DaemonProcess, qube: str) -> None:
    stopped = asyncio.create_task(daemon.client.wait_for(["domain-shutdown"], qube))
    await sh(daemon, qube, "echo kept > ~/file")
    await run(daemon, qube, "systemctl poweroff", user="root")
    async with asyncio.timeout(RUN_TIMEOUT_S):
        await stopped
    await daemon.client.start(qube)
    assert await sh(daemon, qube, "cat ~/file") == "kept"


async def test_agent_that_never_answers_is_a_clear_timeout_with_the_console_kept(
    daemon: DaemonProcess, halted_qube: str
) -> None:
    """MC-98: the start fails in time, the machine is gone, the log says what the guest printed."""
    name = halted_qube
    await daemon.client.set_property("kernelopts", "console=ttyS0 loglevel=7 systemd.unit=emergency.target", name)
    await daemon.client.set_property("qrexec_timeout", "12", name)
    begin = time.monotonic()
    with pytest.raises(QubesException, match=r"agent did not answer within 12 s.*console log"):
        await daemon.client.start(name)
    # And not after the minutes that a machine under emulation has otherwise.
    assert time.monotonic() - begin < 100
    assert await state(daemon.client, name) == "Halted"
    assert (daemon.paths.logs / f"{name}.console.log").stat().st_size > 0
    await daemon.client.reset_property("kernelopts", name)
    await daemon.client.reset_property("qrexec_timeout", name)
    await daemon.client.start(name)
    assert await sh(daemon, name, "echo well") == "well"


async def test_private_volume_grown_while_running_is_larger_in_the_guest(daemon: DaemonProcess, qube: str) -> None:
    before = int(await sh(daemon, qube, "cat $(readlink -f /sys/class/block/vdb)/size"))
    await daemon.client.volume_resize(qube, "private", 3 * 1024**3)
    assert int(await sh(daemon, qube, "cat $(readlink -f /sys/class/block/vdb)/size")) == 3 * 1024**3 // 512 > before
    await daemon.client.shutdown(qube, wait=True)
    await daemon.client.start(qube)
    assert int(await sh(daemon, qube, "df -B1 --output=size /rw | tail -1")) > 2.8 * 1024**3


async def memory_mib(client: AdminClient, name: str) -> float:
    """What the machine's monitor takes of the host, proportionally."""
    async with aclosing(client.stats(name)) as records:
        async for record in records:
            if record.name == "vm-stats":
                return int(record.kwargs["memory_kb"]) / 1024
    raise AssertionError("the statistics end")


@pytest.mark.parametrize("mode", ["warm", "cold"])
async def test_memory_that_programs_free_goes_back_to_the_host(
    daemon: DaemonProcess, halted_qube: str, mode: str
) -> None:
    await daemon.client.set_property("start_mode", mode, halted_qube)
    await daemon.client.start(halted_qube)
    # A boot still takes memory after the agent has come.
    await run(daemon, halted_qube, "systemctl is-system-running --wait", user="root")
    await sh(daemon, halted_qube, f"head -c {FREED_MIB}M /dev/urandom > /dev/shm/large", user="root")
    full = await memory_mib(daemon.client, halted_qube)
    await sh(daemon, halted_qube, "rm /dev/shm/large", user="root")
    left = full
    begin = time.monotonic()
    while left > full - FREED_MIB / 2:
        assert time.monotonic() - begin < GIVEN_BACK_S, f"{left:.0f} MiB of {full:.0f} are still taken"
        left = await memory_mib(daemon.client, halted_qube)
    # What it takes again is its own, and empty.
    taken = f"head -c {FREED_MIB}M /dev/zero > /dev/shm/again && tr -d '\\0' < /dev/shm/again | wc -c"
    assert await sh(daemon, halted_qube, taken, user="root") == "0"
