"""Warm start of an app qube: from the call to the answer of a first command, with its private volume and its identity.

Each run starts a new app qube, forked from the template's seed, which is there before. The baseline is measured in the
same run: plain QEMU that boots the same kernel and root cold until the agent's HELLO, as in ``cold_start``. That boot
is itself trimmed; "40 times as fast as an untrimmed cold start" was promised of a boot that takes too long to repeat
here, so the ratio to the trimmed one is reported and only the time is judged.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import insula
from guest_boot import agent_seconds, qcow2
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, install
from report import Case, publish

RUNS = 9
COLD_RUNS = 3
BAR_S = 0.25


async def warm_seconds(daemon: DaemonProcess, name: str) -> tuple[float, float]:
    """Seconds until the start is answered, and until the first command is."""
    await create_app_qube(daemon.client, name)
    qube = insula.qube(name)
    begin = time.perf_counter()
    await qube.start()
    started = time.perf_counter() - begin
    result = await qube.run(["hostname"])
    seconds = time.perf_counter() - begin
    assert result.text == name, f"a fork that takes itself for {result}"
    await qube.kill()
    await daemon.client.remove(name)
    return started, seconds


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        os.environ.update(daemon.environment)
        await install(daemon.client, built)
        await daemon.client.build_seed(TEMPLATE)
        await warm_seconds(daemon, "bench-warm-up")
        runs = [await warm_seconds(daemon, f"bench-{number}") for number in range(RUNS)]
    with tempfile.TemporaryDirectory(prefix="insula-bench-") as temporary:
        cold = [
            agent_seconds(built, Path(temporary), qcow2(Path(temporary) / f"{number}.qcow2", "2G"), console=False)[
                "hello"
            ]
            for number in range(COLD_RUNS)
        ]
    print(f"warm {[f'{seconds:.3f}' for _, seconds in runs]} cold {cold}", file=sys.stderr)
    value, base = statistics.median([seconds for _, seconds in runs]), statistics.median(cold)
    started = statistics.median([seconds for seconds, _ in runs])
    what = "plain QEMU booting the same trimmed system cold"
    publish(
        "warm_start",
        [
            Case(
                "warm_start: call to first command's answer", value, "s", base, what,
                f"≤ {BAR_S:g} s", value <= BAR_S, RUNS,
            ),
            Case("warm_start: the start alone", started, "s", base, what, "reported", None, RUNS),
            Case(
                "warm_start: times as fast as a trimmed cold start", base / value, "×", None, "",
                "reported (≥ 40 × promised of an untrimmed one)", None, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
