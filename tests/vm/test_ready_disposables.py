"""A disposable that is held ready: what its users find has booted, is theirs alone, and has nothing left to do."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

from insula.model.errors import QubesVMNotFoundError, QubesVMNotStartedError
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import create_app_qube, sh

BASE = "test-ready"
PATIENCE_S = 120.0
"""For one to be made on a busy machine."""
CLOCK_TOLERANCE_S = 1.0
WAITED_S = 8.0
WATCHED_S = 1.0
MAX_CPU_S = 0.25
"""In that time, by one that has only been woken: 0.02 s under emulation. One that boots on takes all it gets."""


async def held_ready(daemon: DaemonProcess) -> str:
    """The name of the one that is ready, once there is."""
    async with asyncio.timeout(PATIENCE_S):
        while not (name := (await daemon.client.get_features(BASE)).get("preload-dispvm")):
            await asyncio.sleep(0.05)
    return name


def cpu_seconds(daemon: DaemonProcess, qube: str) -> float:
    """Used by its VMM so far, all threads."""
    status = daemon.paths.qube(qube) / "vmm.status"
    pid = int(json.loads(status.read_text().splitlines()[1])["child-pid"])
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum([int(task.read_text().split()[0]) for task in tasks]) / 1e9


async def test_held_ready_it_has_booted_rehearsed_and_nothing_left_to_do(daemon: DaemonProcess) -> None:
    client = daemon.client
    await create_app_qube(client, BASE)
    await client.set_property("template_for_dispvms", "True", BASE)
    await client.set_feature("dom0", "preload-dispvm-delay", "60")
    try:
        await client.set_feature(BASE, "preload-dispvm-max", "1")
        name = await held_ready(daemon)
        # Not a wait for something to happen: the time that the guest misses.
        await asyncio.sleep(WAITED_S)

        taken = time.time()
        assert await client.create_disposable(BASE) == name
        before = cpu_seconds(daemon, name)
        await asyncio.sleep(WATCHED_S)
        assert cpu_seconds(daemon, name) - before < MAX_CPU_S
        clock = float(await sh(daemon, name, "echo $EPOCHREALTIME"))
        # It was told the time when it was taken, and obeyed on a machine that may be busy.
        assert taken - CLOCK_TOLERANCE_S < clock < time.time() + CLOCK_TOLERANCE_S
        assert await sh(daemon, name, "hostname; systemctl is-system-running") == f"{name}\nrunning"
        # Of the rehearsal nothing runs on, and nothing is in the home that was not in the template's.
        running = Counter((await sh(daemon, name, "ps -u user -o comm=")).split())
        # (The X server, and the agent that waits in it, are the seed's: decision 021.)
        assert running.keys() <= {"bash", "ps", "Xvfb", "python3"}
        assert (running["Xvfb"], running["python3"]) == (1, 1)
        assert await sh(daemon, name, "diff <(ls -A ~) <(ls -A /etc/skel) && echo same") == "same"
        await client.kill(name)
    finally:
        await client.set_feature(BASE, "preload-dispvm-max", "0")
        await client.call("admin.vm.feature.Remove", arg="preload-dispvm-delay")
        await remove(daemon)


async def remove(daemon: DaemonProcess) -> None:
    """The disposables of the base, and it."""
    for row in await daemon.client.list_qubes():
        if row.klass == "DispVM":
            try:
                await daemon.client.kill(row.name)
            except (QubesVMNotStartedError, QubesVMNotFoundError):
                continue
    await daemon.client.remove(BASE)
