"""Warm start of an app qube: from the call to the answer of a first command, with its private volume and its identity.

Each run starts a new app qube, forked from the template's seed, which is there before. Twice: with a machine in
waiting, as it is by default for a seed that was used lately, and without one. The baselines are measured in the same
run: plain QEMU that boots the same kernel and root cold until the agent's HELLO, as in ``cold_start``, which is a
trimmed boot; and an untrimmed Debian, its own kernel, initramfs and services, until it asks for a login.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import insula
from guest_boot import accelerator_options, agent_seconds, qcow2
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, hold_in_waiting, install
from report import Case, publish
from untrimmed import command, login_seconds, untrimmed

RUNS = 9
COLD_RUNS = 3
BAR_S = 0.25
BAR_UNTRIMMED = 40.0
REST_S = 0.5
"""After a machine has come to wait."""


@dataclass(frozen=True)
class Start:
    started: float
    """Seconds until the start is answered…"""
    answered: float
    """…and until the first command is."""


async def warm(daemon: DaemonProcess, name: str, *, in_waiting: bool) -> Start:
    await create_app_qube(daemon.client, name)
    await hold_in_waiting(daemon.client, 1 if in_waiting else 0)
    taken = await taken_from_waiting(daemon)
    await asyncio.sleep(REST_S)
    qube = insula.qube(name)
    begin = time.perf_counter()
    await qube.start()
    started = time.perf_counter() - begin
    result = await qube.run(["hostname"])
    answered = time.perf_counter() - begin
    assert result.text == name, f"a fork that takes itself for {result}"
    assert await taken_from_waiting(daemon) - taken == in_waiting, "not started as it should have been"
    await qube.kill()
    await daemon.client.remove(name)
    return Start(started, answered)


async def taken_from_waiting(daemon: DaemonProcess) -> int:
    """Starts so far that found a machine in waiting."""
    return sum([seed["waiting"]["taken"] for seed in await daemon.client.seeds()])


def median(starts: list[Start]) -> Start:
    return Start(statistics.median(s.started for s in starts), statistics.median(s.answered for s in starts))


async def main() -> None:
    built = await build_template()
    full = await untrimmed()
    starts: dict[bool, list[Start]] = {True: [], False: []}
    async with DaemonProcess() as daemon:
        os.environ.update(daemon.environment)
        await install(daemon.client, built)
        await daemon.client.build_seed(TEMPLATE)
        await warm(daemon, "bench-warm-up", in_waiting=False)
        for number in range(RUNS):
            for in_waiting, found in starts.items():
                found.append(await warm(daemon, f"bench-{number}-{in_waiting:d}", in_waiting=in_waiting))
    with tempfile.TemporaryDirectory(prefix="insula-bench-") as temporary:
        cold = [
            agent_seconds(built, Path(temporary), qcow2(Path(temporary) / f"{number}.qcow2", "2G"), console=False)[
                "hello"
            ]
            for number in range(COLD_RUNS)
        ]
    login = login_seconds(command(full, accelerator_options()))
    print(f"{starts} cold {cold} login {login}", file=sys.stderr)
    waited, forked, base = median(starts[True]), median(starts[False]), statistics.median(cold)
    what = "plain QEMU booting the same trimmed system cold"
    times = login / waited.answered
    publish(
        "warm_start",
        [
            Case(
                "warm_start: call to first command's answer, with a machine in waiting", waited.answered, "s", base,
                what, f"≤ {BAR_S:g} s", waited.answered <= BAR_S, RUNS,
            ),
            Case("warm_start: the start alone, with a machine in waiting", waited.started, "s", base, what, "reported",
                 None, RUNS),
            Case("warm_start: call to first command's answer, without", forked.answered, "s", base, what, "reported",
                 None, RUNS),
            Case("warm_start: the start alone, without", forked.started, "s", base, what, "reported", None, RUNS),
            Case(
                "warm_start: an untrimmed Debian, from QEMU's start to its login", login, "s", base, what, "reported",
                None, 1,
            ),
            Case(
                "warm_start: times as fast as that, with a machine in waiting", times, "×", None, "",
                f"≥ {BAR_UNTRIMMED:g} ×", times >= BAR_UNTRIMMED, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
