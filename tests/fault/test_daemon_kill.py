"""``kill -9`` of the daemon, of a VMM, of a session process, with real guests: the state after is the one before or
the one after, nothing is orphaned, what runs is found again (MC-62, MC-99).

One daemon and one qube for the module: that they go on after each of these is the point. A qube that runs already
is not started anew, since that is what takes long.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from insula.hal.qemu.descriptors import STATUS_FILE
from insula.model.errors import QubesVMNotStartedError
from insula.rpc.client import RpcError
from insula.storage.volume_folder import SCRATCH
from insula.testing.daemon import DaemonProcess, processes_under
from insula.testing.guest import build_template, create_app_qube, install, run, sh

APP = "test-app"
PATIENCE_S = 180.0
NOTICE_S = 5.0
"""Within which the end of a VMM is known: at once, but for a busy machine."""
NOTICE_STEP_S = 0.05


@pytest.fixture(scope="module")
def shared() -> Iterator[DaemonProcess]:
    daemon = DaemonProcess()

    async def begin() -> None:
        built = await build_template()
        await daemon.__aenter__()
        await install(daemon.client, built)
        await create_app_qube(daemon.client, APP)

    asyncio.run(begin())
    yield daemon
    asyncio.run(daemon.__aexit__(None, None, None))


@pytest.fixture
async def daemon(shared: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """The daemon, running; its log is printed where a test fails."""
    yield shared
    assert shared.process is not None
    if shared.process.poll() is not None:
        await shared.start()
    print(*(line for line in shared.log().splitlines()[-200:] if "CurrentState" not in line), sep="\n")


async def power_state(daemon: DaemonProcess) -> str:
    return (await daemon.client.current_state(APP)).power_state


def vmm_pid(daemon: DaemonProcess) -> int:
    """The VMM as the daemon's own record has it (bubblewrap's report), checked against what runs there."""
    _uuid, report, *_ = (daemon.paths.qube(APP) / STATUS_FILE).read_text().splitlines()
    pid = int(json.loads(report)["child-pid"])
    assert f"guest={APP}".encode() in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    return pid


def session_pids(daemon: DaemonProcess) -> list[int]:
    """Descendants of this daemon that are a session; the daemon has one qube."""
    assert daemon.process is not None
    return [pid for pid in descendants(daemon.process.pid) if command_line(pid).startswith(b"insula-session ")]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def machines(daemon: DaemonProcess) -> list[int]:
    """Every VMM of this daemon's qubes, known or orphaned: it has a socket or a disk of its folders open."""
    folders = (daemon.paths.runtime / "qubes", daemon.paths.default_pool)
    lines = [line for folder in folders for line in processes_under(folder)]
    return sorted({int(line.partition(":")[0]) for line in lines} - own_pids(daemon))


def own_pids(daemon: DaemonProcess) -> set[int]:
    return {daemon.process.pid} if daemon.process is not None else set()


def scratch_files(daemon: DaemonProcess) -> list[Path]:
    """Overlays and other files that exist only while a machine or an operation runs."""
    return [path for path in daemon.paths.default_pool.rglob("*") if path.is_file() and SCRATCH in path.parts]


async def killed_at(daemon: DaemonProcess, line: str) -> None:
    """``kill -9`` the daemon as soon as its log says ``line`` (again)."""
    begin = daemon.log_file.stat().st_size
    starting = asyncio.create_task(daemon.client.start(APP))
    async with asyncio.timeout(PATIENCE_S):
        while line.encode() not in daemon.log_file.read_bytes()[begin:]:
            await asyncio.sleep(0.001)
    daemon.kill()
    await asyncio.gather(starting, return_exceptions=True)


async def test_daemon_killed_while_a_qube_runs_finds_it_again(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    await sh(daemon, APP, "echo before > /tmp/mark")
    vmm = vmm_pid(daemon)
    daemon.kill()
    await daemon.start()
    assert await power_state(daemon) == "Running"
    assert vmm_pid(daemon) == vmm
    assert await sh(daemon, APP, "cat /tmp/mark") == "before"


async def test_daemon_killed_during_a_shutdown_keeps_what_was_written(daemon: DaemonProcess) -> None:
    """The guest has heard of the shutdown or not: it ends, or runs on as before and can be asked again."""
    await daemon.client.start(APP)
    await sh(daemon, APP, "echo shutdown > ~/mark")
    await daemon.client.shutdown(APP)
    daemon.kill()
    await daemon.start()
    with suppress(QubesVMNotStartedError):
        await daemon.client.shutdown(APP, wait=True)
    assert await power_state(daemon) == "Halted"
    assert machines(daemon) == []
    await daemon.client.start(APP)
    assert await sh(daemon, APP, "cat ~/mark") == "shutdown"


async def test_killed_session_process_is_replaced_and_commands_work_again(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    for _ in range(2):
        killed = session_pids(daemon)
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while set(killed) & set(session_pids(daemon)) or not await answers(daemon):
                await asyncio.sleep(0.05)
        assert not set(killed) & set(session_pids(daemon))
    assert await power_state(daemon) == "Running"


async def answers(daemon: DaemonProcess) -> bool:
    try:
        return (await run(daemon, APP, "echo back")).text == "back"
    except (RpcError, OSError):
        return False


async def test_killed_vmm_is_noticed_at_once_and_the_qube_starts_again(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    await sh(daemon, APP, "echo watched > ~/mark; sync")
    heard: list[str] = []
    listening = asyncio.create_task(hear(daemon, heard))
    await until(lambda: bool(heard))  # the first says that it listens
    gone = os.pidfd_open(vmm_pid(daemon))
    try:
        signal.pidfd_send_signal(gone, signal.SIGKILL)
        # The kernel takes its memory apart first; then the promise begins.
        assert (await asyncio.to_thread(select.select, [gone], [], [], PATIENCE_S))[0]
    finally:
        os.close(gone)
    # In steps, which are longer where this machine has no time for us; nor has it for the daemon then.
    for _ in range(int(NOTICE_S / NOTICE_STEP_S)):
        if "domain-stopped" in heard:
            break
        await asyncio.sleep(NOTICE_STEP_S)
    assert "domain-stopped" in heard, f"not noticed within {NOTICE_S:g} s"
    await until(lambda: "domain-shutdown" in heard)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert await power_state(daemon) == "Halted"
    await daemon.client.start(APP)
    assert await sh(daemon, APP, "cat ~/mark") == "watched"


async def hear(daemon: DaemonProcess, names: list[str]) -> None:
    """Note the events of the qube as they come."""
    async with aclosing(daemon.client.stream("admin.Events", APP)) as events:
        async for event in events:
            names.append(event.name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_qube_that_ended_while_no_daemon_ran_is_halted_and_keeps_its_home(daemon: DaemonProcess) -> None:
    await daemon.client.start(APP)
    await sh(daemon, APP, "echo unwatched > ~/mark; sync")
    vmm = vmm_pid(daemon)
    daemon.kill()
    os.kill(vmm, signal.SIGKILL)
    await daemon.start()
    assert await power_state(daemon) == "Halted"
    assert machines(daemon) == []
    await daemon.client.start(APP)
    assert await sh(daemon, APP, "cat ~/mark") == "unwatched"


async def test_daemon_killed_during_a_start_leaves_no_machine_and_no_open_volume(daemon: DaemonProcess) -> None:
    """At each of its steps."""
    with suppress(QubesVMNotStartedError):
        await daemon.client.kill(APP)
    before = await daemon.client.volume_revisions(APP, "private")
    for step in (
        "preparing its run-time folder",
        "activating volume root",
        "activating volume private",
        "starting the machine",
        "starting its session process",
        "waiting for its agent",
    ):
        await killed_at(daemon, f"{APP}: {step}")
        await daemon.start()
        assert await power_state(daemon) == "Halted", step
        assert machines(daemon) == [], step
        assert scratch_files(daemon) == [], step
        assert list((daemon.paths.runtime / "qubes").iterdir()) == [], step
        assert await daemon.client.volume_revisions(APP, "private") == before, step
    await daemon.client.start(APP)
    assert await sh(daemon, APP, "echo well") == "well"
