"""``kill -9`` of the daemon, of a VMM, of a session process, with real guests: the state after is the one before or
the one after, nothing is orphaned, what runs is found again (MC-62, MC-99)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.templates.build import BuiltTemplate
from insula.testing.daemon import DaemonProcess, processes_under
from insula.testing.guest import build_template, create_app_qube, install, run, sh


@pytest.fixture(scope="module")
def built_template() -> BuiltTemplate:
    return asyncio.run(build_template())


@pytest.fixture
async def daemon(built_template: BuiltTemplate) -> AsyncIterator[DaemonProcess]:
    async with DaemonProcess() as running:
        await install(running.client, built_template)
        await create_app_qube(running.client, "test-app")
        yield running


async def power_state(daemon: DaemonProcess) -> str:
    return (await daemon.client.current_state("test-app")).power_state


def pids_with(daemon: DaemonProcess, word: str) -> list[int]:
    """Processes of the daemon's qubes whose command line has ``word``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if word.encode() in command and str(daemon.paths.runtime).encode() in command:
            found.append(int(entry.name))
    return found


async def test_daemon_killed_while_a_qube_runs_finds_it_again(daemon: DaemonProcess) -> None:
    await daemon.client.start("test-app")
    await sh(daemon, "test-app", "echo before > /tmp/mark; echo home > ~/mark; sync")
    daemon.kill()
    await daemon.start()
    assert await power_state(daemon) == "Running"
    assert await sh(daemon, "test-app", "cat /tmp/mark") == "before"
    await daemon.client.shutdown("test-app", wait=True)
    assert await power_state(daemon) == "Halted"
    await daemon.client.start("test-app")
    assert await sh(daemon, "test-app", "cat ~/mark") == "home"


async def test_qube_that_ended_while_no_daemon_ran_is_halted_and_keeps_its_home(daemon: DaemonProcess) -> None:
    await daemon.client.start("test-app")
    await sh(daemon, "test-app", "echo home > ~/mark; sync")
    vmm = vmm_pid(daemon)
    daemon.kill()
    os.kill(vmm, signal.SIGKILL)
    await daemon.start()
    assert await power_state(daemon) == "Halted"
    await daemon.client.start("test-app")
    assert await sh(daemon, "test-app", "cat ~/mark") == "home"


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.6, 1.5])
async def test_daemon_killed_during_a_start_leaves_no_machine_and_no_open_volume(
    daemon: DaemonProcess, delay_s: float
) -> None:
    starting = asyncio.create_task(daemon.client.start("test-app"))
    await asyncio.sleep(delay_s)
    daemon.kill()
    await asyncio.gather(starting, return_exceptions=True)
    await daemon.start()
    assert await power_state(daemon) in ("Halted", "Running")
    if await power_state(daemon) == "Halted":
        assert processes_under(daemon.paths.runtime / "qubes") == []
    await daemon.client.start("test-app")
    assert await sh(daemon, "test-app", "echo well") == "well"


async def test_killed_vmm_is_noticed_at_once_and_the_qube_starts_again(daemon: DaemonProcess) -> None:
    await daemon.client.start("test-app")
    ended = asyncio.create_task(daemon.client.wait_for(["domain-shutdown"], "test-app"))
    await asyncio.sleep(0)
    await sh(daemon, "test-app", "echo home > ~/mark; sync")
    os.kill(vmm_pid(daemon), signal.SIGKILL)
    async with asyncio.timeout(5):
        await ended
    assert await power_state(daemon) == "Halted"
    await daemon.client.start("test-app")
    assert await sh(daemon, "test-app", "cat ~/mark") == "home"


async def test_killed_session_process_is_replaced_and_commands_work_again(daemon: DaemonProcess) -> None:
    await daemon.client.start("test-app")
    for _ in range(2):
        for pid in session_pids(daemon):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    result = await run(daemon, "test-app", "echo back")
                except (ConnectionError, FileNotFoundError):
                    continue
                if result.text == "back":
                    break
    assert await power_state(daemon) == "Running"


def vmm_pid(daemon: DaemonProcess) -> int:
    raise AssertionError(pids_with(daemon, "qemu"))


def session_pids(daemon: DaemonProcess) -> list[int]:
    return pids_with(daemon, "session")
