"""Bytes a second from a program in one qube to a service in another, over the slower qube's raw channel.

The caller's bytes cross its agent, its session, a socket pair, the other session and agent: two channels of guests one
after the other. The raw figure is what a raw program gets through a port of the same controller, out of the first
guest and into the second, whichever is slower; as in ``channel_throughput`` the time of an empty call is subtracted,
and what that program gets through a pipe to another process is reported beside what was promised.
"""

from __future__ import annotations

import asyncio
import statistics
import sys

from insula.policy.store import PolicyStore
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, sh
from raw_port import RawPort
from report import Case, publish

MIB = 1 << 20
SIZE = 32 * MIB
RUNS = 5
BAR = 0.7
FOLDER = "/usr/local/etc/qubes-rpc"
RULES = "test.Sink * source sink allow\ntest.Zero * sink source allow\n"
CLOCK = "date +%s%N"


async def seconds(daemon: DaemonProcess, qube: str, command: str) -> float:
    """How long a command takes, by the clock of its qube."""
    began, ended = (await sh(daemon, qube, f"{CLOCK}; {command}; {CLOCK}", user="root")).split()
    return (int(ended) - int(began)) / 1e9


async def make_qubes(daemon: DaemonProcess) -> None:
    for name in ("source", "sink"):
        await create_app_qube(daemon.client, name)
        await daemon.client.start(name)
    PolicyStore(daemon.paths.policy).replace("20-bench", RULES.encode(), "new")
    for qube, service, command in (
        ("sink", "test.Sink", "exec cat > /dev/null"),
        ("source", "test.Zero", "exec head -c $1 /dev/zero"),
    ):
        script = f"printf '#!/bin/sh\\n{command}\\n' > {FOLDER}/{service} && chmod 755 {FOLDER}/{service}"
        await sh(daemon, qube, f"mkdir -p {FOLDER} && {script}", user="root")


async def main() -> None:
    built = await build_template()
    figures: dict[str, list[float]] = {name: [] for name in ("raw out", "pipe out", "raw in", "pipe in", "to", "from")}
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await make_qubes(daemon)
        async with RawPort.open(daemon, "source") as out, RawPort.open(daemon, "sink") as into:
            for _ in range(RUNS):
                empty = await seconds(daemon, "source", "qrexec-client-vm sink test.Sink < /dev/null")
                to = f"head -c {SIZE} /dev/zero | qrexec-client-vm sink test.Sink"
                figures["to"].append(SIZE / (await seconds(daemon, "source", to) - empty))
                back = f"qrexec-client-vm source test.Zero+{SIZE} < /dev/null > /dev/null"
                figures["from"].append(SIZE / (await seconds(daemon, "sink", back) - empty))
                figures["raw out"].append(SIZE / await asyncio.to_thread(out.from_guest_seconds, SIZE))
                figures["pipe out"].append(SIZE / await asyncio.to_thread(out.from_guest_seconds, SIZE, piped=True))
                figures["raw in"].append(SIZE / await asyncio.to_thread(into.to_guest_seconds, SIZE))
                figures["pipe in"].append(SIZE / await asyncio.to_thread(into.to_guest_seconds, SIZE, piped=True))
                print({name: round(values[-1] / MIB, 1) for name, values in figures.items()}, file=sys.stderr)
    median = {name: statistics.median(values) / MIB for name, values in figures.items()}
    raw = min(median["raw out"], median["raw in"])
    piped = min(median["pipe out"], median["pipe in"])
    publish(
        "rpc_throughput",
        [
            Case(f"rpc_throughput {label}", median[way], "MiB/s", raw, "the slower qube's raw channel",
                 f"≥ {BAR} × baseline", median[way] >= BAR * raw, RUNS)
            for way, label in (("to", "to a service"), ("from", "from a service"))
        ]
        + [
            Case(f"rpc_throughput {label}, beside a pipe", median[way], "MiB/s", piped,
                 "the slower qube's raw channel with a pipe to another process", "reported", None, RUNS)
            for way, label in (("to", "to a service"), ("from", "from a service"))
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
