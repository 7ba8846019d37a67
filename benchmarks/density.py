"""What one more idle app qube costs: proportional memory of its machine monitor and of its other processes.

Twelve app qubes are started one after another, all forks of one seed; after each, once it is idle, the proportional set
sizes of everything below the daemon are added up. Shared pages count in equal parts, so the sum is what the host really
holds, and the difference to the sum before is what the n-th qube added. The seed itself is one file in memory that all
of them share; pages of it that no qube has touched are in no process, so it is reported whole. None is in waiting
meanwhile; at the end one more is, which tells what that costs.

How many fit 8 GiB: that less the host's 2 GiB, less the seed and one in waiting, divided by one more qube.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys

import insula
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, hold_in_waiting, install
from processes import Memory, measure
from report import Case, publish

QUBES = 12
IDLE_S = 8.0
"""Until a qube that was just started is at rest."""
BAR_MONITOR_MIB = 64.0
BAR_OTHERS_MIB = 16.0
SMALL_HOST_MIB = 8192
HOST_OWN_MIB = 2048


async def main() -> None:
    built = await build_template()
    measured: list[Memory] = []
    async with DaemonProcess() as daemon:
        os.environ.update(daemon.environment)
        assert daemon.process is not None
        await install(daemon.client, built)
        await hold_in_waiting(daemon.client, 0)
        seed = await daemon.client.build_seed(TEMPLATE)
        for number in range(QUBES):
            await create_app_qube(daemon.client, f"bench-{number}")
            qube = insula.qube(f"bench-{number}")
            await qube.start()
            await qube.run(["true"], check=True)
            await asyncio.sleep(IDLE_S)
            measured.append(measure(daemon.process.pid))
            print(f"{number + 1}: {measured[-1]}", file=sys.stderr)
        await hold_in_waiting(daemon.client, 1)
        await asyncio.sleep(IDLE_S)
        with_one_waiting = measure(daemon.process.pid)
    waiting = (with_one_waiting.monitors - measured[-1].monitors) / 1024
    seed_mib = float(seed["size"]) / (1 << 20)
    monitor = statistics.median(more(measured, "monitors"))
    others = statistics.median(more(measured, "others"))
    fit = int((SMALL_HOST_MIB - HOST_OWN_MIB - seed_mib - waiting) // (monitor + others))
    first = measured[0].monitors / 1024
    publish(
        "density",
        [
            Case(
                "density: machine monitor of one more qube", monitor, "MiB", first, "the first one's",
                f"≤ {BAR_MONITOR_MIB:g} MiB", monitor <= BAR_MONITOR_MIB, QUBES - 1,
            ),
            Case(
                "density: other processes of one more qube", others, "MiB", None, "",
                f"≤ {BAR_OTHERS_MIB:g} MiB", others <= BAR_OTHERS_MIB, QUBES - 1,
            ),
            Case("density: one in waiting", waiting, "MiB", monitor, "one more qube's monitor", "reported", None, 1),
            Case("density: the seed they share", seed_mib, "MiB", None, "", "reported", None, 1),
            Case("density: idle qubes that fit 8 GiB", fit, "qubes", None, "", "reported", None, 1),
        ],
    )  # fmt: skip


def more(measured: list[Memory], what: str) -> list[float]:
    """MiB by which each sum is larger than the one before."""
    sums = [getattr(memory, what) / 1024 for memory in measured]
    return [later - earlier for earlier, later in itertools.pairwise(sums)]


if __name__ == "__main__":
    asyncio.run(main())
