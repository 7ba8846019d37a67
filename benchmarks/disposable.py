"""Disposables: from the call to the first command's output; new ones, held ready, four at once, 50 in a row.

Through the public API (``insula.disposable``), without network. The seed is there before. New ones, and four at once,
are measured with machines in waiting (one, which is what there is by default under emulation; four for the four) and
without. One that is held ready was made from one in waiting, so it has rehearsed. After 50 in a row, none waiting, the
daemon's folders and its processes are compared with before, and its own memory.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import insula
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, hold_in_waiting, install
from processes import measure, pss_kib
from report import Case, publish

RUNS = 9
AT_ONCE = 4
IN_A_ROW = 50
BAR_S = 0.2
BAR_READY_S = 0.03
BAR_AT_ONCE_S = 0.6
BAR_GROWTH_MIB = 4
DVM = f"{TEMPLATE}-dvm"
READY_TIMEOUT_S = 60.0
REST_S = 0.5
"""After machines have come to wait, or wait no more: their processes end a moment later."""


async def first_output_seconds(ends: AsyncExitStack) -> float:
    """Time until the output of a first command; the disposable ends with ``ends``."""
    begin = time.perf_counter()
    qube = await ends.enter_async_context(insula.disposable(TEMPLATE))
    result = await qube.run(["echo", "ready"])
    seconds = time.perf_counter() - begin
    assert result.text == "ready", result
    return seconds


async def one_after_another(daemon: DaemonProcess, count: int, *, waiting: int) -> list[float]:
    times = []
    for _ in range(count):
        await rest_with(daemon, waiting)
        async with AsyncExitStack() as ends:
            times.append(await first_output_seconds(ends))
    return times


async def rest_with(daemon: DaemonProcess, waiting: int) -> None:
    """Have this many machines in waiting, and nothing else to do."""
    await hold_in_waiting(daemon.client, waiting)
    await asyncio.sleep(REST_S)


async def at_once(daemon: DaemonProcess, count: int, *, waiting: int) -> list[float]:
    await rest_with(daemon, waiting)
    async with AsyncExitStack() as ends:
        return await asyncio.gather(*(first_output_seconds(ends) for _ in range(count)))


async def held_ready(daemon: DaemonProcess, count: int) -> list[float]:
    """One is held ready before each call; the next is made after it, so that only one thing is done at a time."""
    await daemon.client.set_feature("dom0", "preload-dispvm-delay", "1")
    await daemon.client.set_feature(DVM, "preload-dispvm-max", "1")
    times = []
    for _ in range(count):
        await until(lambda: is_ready(daemon))
        await rest_with(daemon, 1)
        async with AsyncExitStack() as ends:
            times.append(await first_output_seconds(ends))
    await daemon.client.set_feature(DVM, "preload-dispvm-max", "0")
    await until(lambda: is_at_rest(daemon))
    return times


async def is_ready(daemon: DaemonProcess) -> bool:
    return bool((await daemon.client.get_features(DVM)).get("preload-dispvm"))


async def is_at_rest(daemon: DaemonProcess) -> bool:
    return all(row.klass != "DispVM" for row in await daemon.client.list_qubes())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


def files(daemon: DaemonProcess) -> set[str]:
    """Everything in the daemon's folders but its own log and database, which are meant to grow."""
    roots = (daemon.paths.data, daemon.paths.runtime)
    found = {str(path) for root in roots for path in root.rglob("*")}
    return {path for path in found if "system.db" not in path and not path.endswith("insulad.log")}


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        os.environ.update(daemon.environment)
        assert daemon.process is not None
        await install(daemon.client, built)
        await daemon.client.build_seed(TEMPLATE)
        await one_after_another(daemon, 3, waiting=0)
        forked = await one_after_another(daemon, RUNS, waiting=0)
        many_forked = await at_once(daemon, AT_ONCE, waiting=0)
        one = await one_after_another(daemon, RUNS, waiting=1)
        many = await at_once(daemon, AT_ONCE, waiting=AT_ONCE)
        await rest_with(daemon, 1)
        ready = await held_ready(daemon, RUNS)
        await rest_with(daemon, 0)
        before, files_before = measure(daemon.process.pid), files(daemon)
        own_before = pss_kib(daemon.process.pid)
        row = await one_after_another(daemon, IN_A_ROW, waiting=0)
        after, files_after = measure(daemon.process.pid), files(daemon)
        own_after = pss_kib(daemon.process.pid)
    print(f"one {one} {forked}\nfour {many} {many_forked}\nready {ready}\n50 {row}", file=sys.stderr)
    left_processes = after.processes - before.processes
    left_files = sorted(files_after - files_before)
    print(f"left: {left_processes} processes, files {left_files[:20]}", file=sys.stderr)
    grown = (own_after + after.monitors + after.others - own_before - before.monitors - before.others) / 1024
    value, plain, held = statistics.median(one), statistics.median(forked), statistics.median(ready)
    slowest = max(many)
    publish(
        "disposable",
        [
            Case(
                "disposable: call to first output, with a machine in waiting", value, "s", plain, "without",
                f"≤ {BAR_S:g} s", value <= BAR_S, RUNS,
            ),
            Case("disposable: call to first output, without", plain, "s", None, "", "reported", None, RUNS),
            Case(
                "disposable: one held ready", held, "s", plain, "a new one, without", f"≤ {BAR_READY_S:g} s",
                held <= BAR_READY_S, RUNS,
            ),
            Case(
                f"disposable: slowest of {AT_ONCE} at once, as many in waiting", slowest, "s", value, "one alone",
                f"≤ {BAR_AT_ONCE_S:g} s", slowest <= BAR_AT_ONCE_S, AT_ONCE,
            ),
            Case(
                f"disposable: slowest of {AT_ONCE} at once, without", max(many_forked), "s", plain, "one alone",
                "reported", None, AT_ONCE,
            ),
            Case(
                f"disposable: median of {IN_A_ROW} in a row, without", statistics.median(row), "s", plain,
                "the first ones", "reported", None, IN_A_ROW,
            ),
            Case(
                f"disposable: processes and files left by {IN_A_ROW}", left_processes + len(left_files), "", None, "",
                "0", left_processes + len(left_files) == 0, 1,
            ),
            Case(
                f"disposable: memory left by {IN_A_ROW}, daemon and all below", grown, "MiB", None, "",
                f"≤ {BAR_GROWTH_MIB} MiB", grown <= BAR_GROWTH_MIB, 1,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
