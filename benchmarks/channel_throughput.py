"""Bytes a second through a command's stdout and stdin, over the raw port of the same controller in the same guest.

The time an empty command takes to start and end is subtracted from ours: a stream is compared with a stream. Out of the
guest both are one program that writes pieces of the same size, there to the port and here to its standard output. What
a command says or hears crosses a pipe to another process, which alone costs several times that in a guest. So what the
raw program gets through a pipe is reported beside what was promised, and what ``head`` makes of ``/dev/zero``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import statistics
import sys
import time

from insula.rpc.client import run as run_command
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, settle
from raw_port import SOURCE, RawPort
from report import Case, publish

MIB = 1 << 20
SIZE = 64 * MIB
RUNS = 9
BAR = 0.8
FIGURES = ("raw out", "pipe out", "out", "head out", "raw in", "pipe in", "in")
PRODUCER = f"exec python3 -I -S -c {shlex.quote(SOURCE)}"


async def command_seconds(daemon: DaemonProcess, command: str, *, stdin: int | None, stdout: int) -> float:
    begin = time.perf_counter()
    code = await run_command(daemon.paths.rpc_socket("bench"), command, user="root", stdin=stdin, stdout=stdout)
    assert code == 0
    return time.perf_counter() - begin


async def main() -> None:
    built = await build_template()
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        await create_app_qube(daemon.client, "bench")
        await daemon.client.start("bench")
        null = os.open("/dev/null", os.O_RDWR)
        data = os.memfd_create("data")
        os.truncate(data, SIZE)
        async with RawPort.open(daemon, "bench") as raw:
            # A qube's first large stream begins without the memory it is given for such (decision 025).
            await command_seconds(daemon, f"{PRODUCER} {SIZE}", stdin=null, stdout=null)
            for _ in range(RUNS):
                empty = await command_seconds(daemon, "exec true", stdin=null, stdout=null)
                os.lseek(data, 0, os.SEEK_SET)
                figures["raw out"].append(SIZE / await asyncio.to_thread(raw.from_guest_seconds, SIZE))
                figures["pipe out"].append(SIZE / await asyncio.to_thread(raw.from_guest_seconds, SIZE, piped=True))
                nothing = await command_seconds(daemon, f"{PRODUCER} 0", stdin=null, stdout=null)
                out = await command_seconds(daemon, f"{PRODUCER} {SIZE}", stdin=null, stdout=null)
                figures["out"].append(SIZE / (out - nothing))
                head = await command_seconds(daemon, f"exec head -c {SIZE} /dev/zero", stdin=null, stdout=null)
                figures["head out"].append(SIZE / (head - empty))
                figures["raw in"].append(SIZE / await asyncio.to_thread(raw.to_guest_seconds, SIZE))
                figures["pipe in"].append(SIZE / await asyncio.to_thread(raw.to_guest_seconds, SIZE, piped=True))
                into = await command_seconds(daemon, "exec cat > /dev/null", stdin=data, stdout=null)
                figures["in"].append(SIZE / (into - empty))
                print({name: round(values[-1] / MIB, 1) for name, values in figures.items()}, file=sys.stderr)
        os.close(data)
        os.close(null)
    median = {name: statistics.median(values) / MIB for name, values in figures.items()}
    publish(
        "channel_throughput",
        [
            Case(
                f"channel_throughput {label}", median[ours], "MiB/s", median[f"raw {ours}"],
                "a raw program on a port of the same controller", f"≥ {BAR} × baseline",
                median[ours] >= BAR * median[f"raw {ours}"], RUNS,
            )
            for ours, label in (("out", "guest to host"), ("in", "host to guest"))
        ]
        + [
            Case(
                f"channel_throughput {label}, beside a pipe", median[ours], "MiB/s", median[f"pipe {ours}"],
                "that program with a pipe to another process", "reported", None, RUNS,
            )
            for ours, label in (("out", "guest to host"), ("in", "host to guest"))
        ]
        + [
            Case(
                "channel_throughput guest to host, of `head -c … /dev/zero`", median["head out"], "MiB/s",
                median["raw out"], "a raw program on a port of the same controller", "reported", None, RUNS,
            )
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
