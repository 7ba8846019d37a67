"""From a key press on the host to the changed window on the host's screen, with a real guest: a terminal whose program
turns its ground from dark to light with each key, and back. The part that is ours is the CPU time of what passes keys
and pictures on: the process that shows windows, and the agent in the qube.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from pathlib import Path

import report
from gui_latency import PRESSES, WARM_UP, is_painted, measure
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, Window, desktop
from insula.testing.guest import build_template, create_app_qube, install, sh

BENCHMARK = "gui_latency_guest"
NAME = "latency"
TURN = r"""while :; do for c in 000000 ffffff; do printf '\033]11;#'$c'\007'; read -rsn1; done; done"""
XTERM = ["xterm", "-geometry", "130x44+0+0", "-fn", "fixed", "-T", "turns", "-e", "bash", "-c", TURN]
INSULA = str(Path(sys.executable).with_name("insula"))
AGENT = "for d in /proc/[0-9]*; do if grep -qs python $d/comm && grep -qs gui $d/cmdline; then cat $d/stat; fi; done"
"""The processes of the qube's agent of windows, as lines of proc(5)."""
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
SHOWN_S = 120.0


def ticks(stat: str) -> int:
    """User and system time of all lines of /proc/PID/stat."""
    fields = [line.rpartition(")")[2].split() for line in stat.splitlines()]
    return sum(int(words[11]) + int(words[12]) for words in fields)


def host_ticks() -> int:
    title = f"insula-gui {NAME}".encode()
    folders = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if path.read_bytes().startswith(title)]
    return ticks("".join((folder / "stat").read_text() for folder in folders))


async def shown(screen: Desktop) -> Window:
    async with asyncio.timeout(SHOWN_S):
        while not (windows := screen.windows("turns")):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.1)
    return windows[0]


async def main() -> None:
    built = await build_template()
    with desktop(1280, 800) as screen:
        async with DaemonProcess() as daemon:
            await install(daemon.client, built)
            await create_app_qube(daemon.client, NAME)
            command = await asyncio.create_subprocess_exec(
                *(INSULA, "run", "--gui", NAME, *XTERM),
                env={**os.environ, **daemon.environment, **screen.environment},
                stdin=asyncio.subprocess.DEVNULL,
            )
            window = await shown(screen)
            centre = (window.x + window.width // 2, window.y + window.height * 3 // 4)
            await asyncio.to_thread(screen.wait, lambda: is_painted(screen, centre), "the terminal is not drawn")
            before = host_ticks(), ticks(await sh(daemon, NAME, AGENT, user="root"))
            times = await asyncio.to_thread(measure, screen, window, centre, [])
            after = host_ticks(), ticks(await sh(daemon, NAME, AGENT, user="root"))
            command.terminate()
            await command.wait()
    host, guest = (TICK_MS * (new - old) / (PRESSES + WARM_UP) for old, new in zip(before, after, strict=True))
    whole = statistics.median(times)
    if min(host, guest) <= 0:
        raise RuntimeError(f"the processes that are ours were not found: {host} and {guest} ms")
    parts = {"our part on the host (CPU)": host, "our part in the qube (CPU, emulated)": guest}
    cases = [report.Case(f"{BENCHMARK}: key to changed window", whole, "ms", None, "", "reported", None, len(times))]
    cases += [
        report.Case(f"{BENCHMARK}: {what}", value, "ms", whole, "the whole", "reported", None, len(times))
        for what, value in parts.items()
    ]
    report.publish(BENCHMARK, cases)


if __name__ == "__main__":
    asyncio.run(main())
