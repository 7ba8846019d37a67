"""From ``insula run --gui xterm`` to the first frame on the host: in new disposables and in a cold qube.

The screen is read where the X server keeps it: the frame is there when pixels in the terminal's own colour are. Of a
thousand pixels one is looked at: to look through all of them took 15 ms, hence one of the two CPUs the guest needs.
"Up" is when the qube's agent has answered (``domain-start``); what comes after is frame memory, the X server of the
qube, its agent, the process that shows windows, and the terminal itself. One window before the first measured one has
had the daemon load Qt.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import report
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, desktop
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, hold_in_waiting, install

RUNS = 5
BAR_S = 1.0
COLOUR = 0x2468AC
STRIDE = 1021
"""Of its pixels one in so many is looked at; a prime, so that they do not lie below one another."""
SEEN = 32
"""So many of that colour are the terminal: it has some 150 of them, nothing else has any."""
POLL_S = 0.002
DRAWN_TIMEOUT_S = 120.0
REST_S = 1.0
XTERM = ["xterm", "-bg", f"#{COLOUR:06x}"]
INSULA = str(Path(sys.executable).with_name("insula"))


def look(memory: mmap.mmap) -> int:
    """How many of the pixels that are looked at have the terminal's colour."""
    with memoryview(memory) as untyped, untyped.cast("I") as pixels, pixels[::STRIDE] as some:
        return some.tolist().count(COLOUR)


async def until_drawn(screen: Desktop, *, is_there: bool = True) -> float:
    """The time when the terminal is seen, or is not any more."""
    with screen._frame_buffer.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        async with asyncio.timeout(DRAWN_TIMEOUT_S):
            while (look(memory) >= SEEN) is not is_there:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(POLL_S)
    return time.perf_counter()


async def seconds(daemon: DaemonProcess, screen: Desktop, *where: str) -> tuple[float, float]:
    """From the command to the first frame, and of that what comes after the qube is up."""

    async def up() -> float:
        await daemon.client.wait_for(["domain-start"])
        return time.perf_counter()

    is_up = asyncio.create_task(up())
    await asyncio.sleep(0.1)
    begin = time.perf_counter()
    command = await asyncio.create_subprocess_exec(
        *(INSULA, "run", "--gui", *where, *XTERM),
        env={**daemon.environment, **screen.environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        drawn = await until_drawn(screen)
        return drawn - begin, drawn - await is_up
    finally:
        command.terminate()
        await command.wait()
        await until_drawn(screen, is_there=False)


async def in_disposables(daemon: DaemonProcess, screen: Desktop, *, waiting: int) -> list[tuple[float, float]]:
    times = []
    for _ in range(RUNS):
        await hold_in_waiting(daemon.client, waiting)
        await asyncio.sleep(REST_S)
        times.append(await seconds(daemon, screen, f"--dispvm={TEMPLATE}"))
    return times


async def main() -> None:
    built = await build_template()
    with desktop(1280, 800) as screen:
        async with DaemonProcess() as daemon:
            os.environ.update(daemon.environment)
            await install(daemon.client, built)
            await daemon.client.build_seed(TEMPLATE)
            await hold_in_waiting(daemon.client, 0)
            await seconds(daemon, screen, f"--dispvm={TEMPLATE}")
            forked = await in_disposables(daemon, screen, waiting=0)
            waited = await in_disposables(daemon, screen, waiting=1)
            await create_app_qube(daemon.client, "cold")
            await daemon.client.set_property("start_mode", "cold", "cold")
            cold = await seconds(daemon, screen, "cold")
            await daemon.client.kill("cold")
    print(f"waited {waited}\nforked {forked}\ncold {cold}", file=sys.stderr)
    whole, after = (statistics.median(run[index] for run in waited) for index in (0, 1))
    plain, plain_after = (statistics.median(run[index] for run in forked) for index in (0, 1))
    report.publish(
        "gui_start",
        [
            report.Case(
                "gui_start: disposable, command to first frame", whole, "s", cold[0], "a cold start", "reported", None,
                RUNS,
            ),
            report.Case(
                "gui_start: of that, after the qube is up", after, "s", cold[1], "of a cold start", f"≤ {BAR_S:g} s",
                after <= BAR_S, RUNS,
            ),
            report.Case(
                "gui_start: none in waiting, command to first frame", plain, "s", cold[0], "a cold start", "reported",
                None, RUNS,
            ),
            report.Case(
                "gui_start: none in waiting, after the qube is up", plain_after, "s", cold[1], "of a cold start",
                "reported", None, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
