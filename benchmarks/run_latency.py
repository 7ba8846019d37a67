"""A command in a running qube: ``/bin/true`` over the qube's ``rpc.sock``, as ``insula run`` does it.

Three figures. The whole call, over a raw one-byte echo by a small Python program in the same guest on a port of the
same virtio-serial controller (``insula.gui``, which nothing else uses yet). What the guest itself takes to fork,
execute and reap ``/bin/true``, measured inside it. And *our part on the host*: CPU time of the caller and of the
session process for one call, averaged over all calls; they do nothing but our work, and wait for the guest
otherwise. The agent's work in the guest, and the login shell every command runs in, are in the first figure and not
in the third: in software emulation they are many times what they are on a CPU.
"""

from __future__ import annotations

import asyncio
import resource
import shlex
import statistics
import time
from pathlib import Path

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, run, settle
from raw_port import RawPort
from report import Case, publish

CALLS = 60
ECHOES = 300
BAR_OURS_S = 0.003

FORK_EXEC = """
import os, time
best = []
for _ in range(20):
    begin = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    best.append(time.perf_counter() - begin)
print(sorted(best)[10])
"""


def session_cpu_seconds(daemon_pid: int) -> float:
    """CPU time of the session processes, which descend from the daemon."""
    ticks = 0
    for pid in descendants(daemon_pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            nanoseconds = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        except OSError:
            continue
        if command.startswith(b"insula-session "):
            ticks += nanoseconds
    return ticks / 1e9


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            children = [int(child) for child in task.read_text().split()]
            found += children
            waiting += children
    return found


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        await create_app_qube(daemon.client, "bench")
        await daemon.client.start("bench")
        assert daemon.process is not None
        fork_exec = float((await run(daemon, "bench", f"python3 -c {shlex.quote(FORK_EXEC)}")).text)
        async with RawPort.open(daemon, "bench") as raw:
            echo = statistics.median([raw.echo_seconds() for _ in range(ECHOES)])
        await run(daemon, "bench", "exec /bin/true")
        session_before = session_cpu_seconds(daemon.process.pid)
        own_before = resource.getrusage(resource.RUSAGE_SELF)
        calls = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            assert (await run(daemon, "bench", "exec /bin/true")).code == 0
            calls.append(time.perf_counter() - begin)
        own_after = resource.getrusage(resource.RUSAGE_SELF)
        session = (session_cpu_seconds(daemon.process.pid) - session_before) / CALLS
        own = (own_after.ru_utime + own_after.ru_stime - own_before.ru_utime - own_before.ru_stime) / CALLS
        assert session > 0, "no session process was found"
    whole = statistics.median(calls)
    what = "raw one-byte echo on a port of the same controller"
    publish(
        "run_latency",
        [
            Case("run_latency: /bin/true", whole, "s", echo, what, "reported", None, CALLS),
            Case(
                "run_latency: fork and exec in the guest", fork_exec, "s", whole, "the whole call", "reported", None, 20
            ),
            Case(
                "run_latency: our part on the host (CPU of caller and session)", session + own, "s", whole,
                "the whole call", f"≤ {BAR_OURS_S * 1000:g} ms", session + own <= BAR_OURS_S, CALLS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
