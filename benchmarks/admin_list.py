"""``admin.vm.List`` with 100 qubes: latency of a call over the socket, idle and while 4 qubes start.

Baseline: a bare echo over a unix socket of the same answer's size, by the same client code, in the same run.
Promised: p99 at most 20 ms, also while qubes start, as this client sees it. Client and daemon both need a core for it;
how long each waited for one is reported, so that a late answer can be told from a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install
from report import Case, percentile, publish

QUBES = 100
STARTED = 4
CALLS = 400
BAR_S = 0.020


def waited_s(pid: int) -> float:
    """Seconds that a process's first thread was ready to run and had no core (second field of ``/proc/PID/schedstat``,
    Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@dataclass
class Calls:
    """Seconds, one value a call."""

    latency: list[float] = field(default_factory=list)
    client_waited: list[float] = field(default_factory=list)
    daemon_waited: list[float] = field(default_factory=list)


async def timed_calls(daemon: DaemonProcess, until: asyncio.Future[list[None]] | None = None) -> Calls:
    """At least CALLS calls, or as many as there are while a task runs."""
    assert daemon.process is not None
    pids = (os.getpid(), daemon.process.pid)
    calls = Calls()
    while len(calls.latency) < CALLS or (until is not None and not until.done()):
        before = [waited_s(pid) for pid in pids]
        begin = time.perf_counter()
        answer = await daemon.client.call("admin.vm.List")
        calls.latency.append(time.perf_counter() - begin)
        client, server = (waited_s(pid) - start for pid, start in zip(pids, before, strict=True))
        calls.client_waited.append(client)
        calls.daemon_waited.append(server)
        assert answer.count(b"\n") >= QUBES
        await asyncio.sleep(0.005)
    return calls


async def echo_baseline(answer: bytes) -> list[float]:
    """A server that answers at once, without looking."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(answer)
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "echo.sock"
        server = await asyncio.start_unix_server(serve, path)
        seconds = []
        async with server:
            for _ in range(CALLS):
                begin = time.perf_counter()
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"admin.vm.List+ dom0 name dom0\0")
                writer.write_eof()
                await reader.read()
                writer.close()
                seconds.append(time.perf_counter() - begin)
                await asyncio.sleep(0.005)
        return seconds


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        for number in range(QUBES):
            await create_app_qube(daemon.client, f"bench-{number}")
            # What takes longest, and the most of the machine.
            await daemon.client.set_property("start_mode", "cold", f"bench-{number}")
        idle = await timed_calls(daemon)
        starting = asyncio.ensure_future(
            asyncio.gather(*(daemon.client.start(f"bench-{number}") for number in range(STARTED)))
        )
        busy = await timed_calls(daemon, until=starting)
        await starting
        echo = await echo_baseline(await daemon.client.call("admin.vm.List"))
    baseline = percentile(echo, 99)
    what = "p99 of a bare echo of the same size"
    bar = f"p99 ≤ {BAR_S * 1000:g} ms"
    cases = []
    for name, calls in (("idle", idle), (f"while {STARTED} qubes start", busy)):
        p99 = percentile(calls.latency, 99)
        cases.append(Case(f"admin_list {name}", p99, "s", baseline, what, bar, p99 <= BAR_S, len(calls.latency)))
        for who, waits in (("client", calls.client_waited), ("daemon", calls.daemon_waited)):
            case = f"admin_list {name}: p99 of the {who}'s wait for a core"
            cases.append(Case(case, percentile(waits, 99), "s", p99, "p99 of the call", "reported", None, len(waits)))
    publish("admin_list", cases)


if __name__ == "__main__":
    asyncio.run(main())
