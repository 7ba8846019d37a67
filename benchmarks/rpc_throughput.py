"""Bytes a second from a program in one qube to a service in another, over the slower qube's raw channel.

The caller's bytes cross its agent, its session, a socket pair, the other session and agent: two channels of guests one
after the other. The raw figure is what a raw program gets through a port of the same controller, out of the first
guest and into the second, whichever is slower. As in ``channel_throughput`` the time of an empty call is subtracted,
and one program produces all streams.
Reported beside what was promised: the same against a command of the host in either guest, whichever is slower, which
is what two qubes add to one; and the CPU time of both sessions for a MiB.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import statistics
import sys
import time

from insula.policy.store import PolicyStore
from insula.rpc.client import run as run_command
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, run, settle, sh
from raw_port import SOURCE, RawPort
from report import Case, publish
from run_latency import session_cpu_seconds

MIB = 1 << 20
SIZE = 64 * MIB
RUNS = 7
BAR = 0.7
FOLDER = "/usr/local/etc/qubes-rpc"
RULES = "test.Sink * source sink allow\ntest.Zero * sink source allow\n"
CLOCK = "date +%s%N"
PRODUCER = f"python3 -I -S -c {shlex.quote(SOURCE)}"


async def host_seconds(daemon: DaemonProcess, qube: str, command: str, stdin: int, stdout: int) -> float:
    """How long a command of the host takes in a qube."""
    begin = time.perf_counter()
    assert await run_command(daemon.paths.rpc_socket(qube), command, user="root", stdin=stdin, stdout=stdout) == 0
    return time.perf_counter() - begin


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
        ("source", "test.Zero", f"exec {PRODUCER} $1"),
    ):
        write = f"mkdir -p {FOLDER} && cat > {FOLDER}/{service} && chmod 755 {FOLDER}/{service}"
        made = await run(daemon, qube, write, user="root", stdin=f"#!/bin/sh\n{command}\n".encode())
        assert made.code == 0, made


async def main() -> None:
    built = await build_template()
    figures: dict[str, list[float]] = {name: [] for name in ("raw out", "raw in", "out", "in", "to", "from", "cpu")}
    null, data = os.open("/dev/null", os.O_RDWR), os.memfd_create("data")
    os.truncate(data, SIZE)
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        await make_qubes(daemon)
        assert daemon.process is not None
        async with RawPort.open(daemon, "source") as out, RawPort.open(daemon, "sink") as into:
            for number in range(RUNS + 1):
                figure = {}
                figure["raw out"] = SIZE / await asyncio.to_thread(out.from_guest_seconds, SIZE)
                figure["raw in"] = SIZE / await asyncio.to_thread(into.to_guest_seconds, SIZE)
                nothing = await host_seconds(daemon, "source", f"exec {PRODUCER} 0", null, null)
                said = await host_seconds(daemon, "source", f"exec {PRODUCER} {SIZE}", null, null)
                figure["out"] = SIZE / (said - nothing)
                os.lseek(data, 0, os.SEEK_SET)
                nothing = await host_seconds(daemon, "sink", "exec true", null, null)
                heard = await host_seconds(daemon, "sink", "exec cat > /dev/null", data, null)
                figure["in"] = SIZE / (heard - nothing)
                empty = await seconds(daemon, "source", f"{PRODUCER} 0 | qrexec-client-vm sink test.Sink")
                before = session_cpu_seconds(daemon.process.pid)
                taken = await seconds(daemon, "source", f"{PRODUCER} {SIZE} | qrexec-client-vm sink test.Sink")
                figure["to"] = SIZE / (taken - empty)
                figure["cpu"] = (session_cpu_seconds(daemon.process.pid) - before) / (SIZE / MIB)
                back = "qrexec-client-vm source test.Zero+{} < /dev/null > /dev/null"
                empty = await seconds(daemon, "sink", back.format(0))
                figure["from"] = SIZE / (await seconds(daemon, "sink", back.format(SIZE)) - empty)
                # A qube's first large stream begins without the memory it is given for such (decision 025).
                if number == 0:
                    continue
                for name, values in figures.items():
                    values.append(figure[name])
                print({name: round(values[-1] / MIB, 1) for name, values in figures.items()}, file=sys.stderr)
    os.close(null)
    os.close(data)
    median = {name: statistics.median(values) / MIB for name, values in figures.items()}
    raw, command = min(median["raw out"], median["raw in"]), min(median["out"], median["in"])
    publish(
        "rpc_throughput",
        [
            Case(f"rpc_throughput {label}", median[way], "MiB/s", raw, "the slower qube's raw channel",
                 f"≥ {BAR} × baseline", median[way] >= BAR * raw, RUNS)
            for way, label in (("to", "to a service"), ("from", "from a service"))
        ]
        + [
            Case(f"rpc_throughput {label}, beside a command", median[way], "MiB/s", command,
                 "a command of the host in the slower qube", "reported", None, RUNS)
            for way, label in (("to", "to a service"), ("from", "from a service"))
        ]
        + [
            Case("rpc_throughput: CPU of both sessions for a MiB", statistics.median(figures["cpu"]), "s",
                 1 / median["to"], "the time it takes", "reported", None, RUNS)
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
