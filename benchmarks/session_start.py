"""A qube's session process: how long from asking for one until it greets the guest, and how much memory it takes.

Time is compared with an interpreter that starts and does nothing, which is less than a session that is not forked would
need. Memory is the proportional set size (pages shared with others count in part) of each of several sessions that run
at once, compared with that of an interpreter of its own that has imported the same. Starts and interpreters take turns,
so that both meet the same load of the machine.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from insula.preload.forks import package_folders
from insula.rpc.launcher import RunningSession, SessionLauncher
from report import Case, publish

RUNS = 40
SESSIONS = 8
BAR_S = 0.010
BAR_MIB = 10.0

IMPORTED = "import sys; sys.path[:0] = sys.argv[1:]; import insula.rpc.session; print('here', flush=True); input()"


async def start(launch: SessionLauncher, folder: Path, number: int) -> tuple[float, RunningSession, socket.socket]:
    """Return the seconds until the session has written to its guest; the socket is the guest's."""
    channel, guest = socket.socketpair()
    guest.setblocking(False)
    begin = time.perf_counter()
    session = await launch(
        name=f"bench{number}", qid=number, channel=channel, rpc_socket=folder / str(number), keys={"/name": "bench"}
    )
    await asyncio.get_running_loop().sock_recv(guest, 1)
    return time.perf_counter() - begin, session, guest


def interpreter_seconds() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return time.perf_counter() - begin


def proportional_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"no Pss of {pid}")


def interpreter_mib() -> float:
    """Of a session's program in an interpreter of its own, idle."""
    command = [sys.executable, "-I", "-S", "-c", IMPORTED, *map(str, package_folders())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = proportional_mib(process.pid)
        process.communicate(b"\n")
    return found


async def main() -> None:
    starts, interpreters = [], []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="insula-b-")))
        launch = await stack.enter_async_context(SessionLauncher())
        for number in range(1, SESSIONS + 1):
            # The first one waits for the parent's own start, which belongs to the daemon's.
            _, running, guest = await start(launch, folder, number)
            stack.enter_context(guest)
            stack.push_async_callback(running.close)
        pids = [int(word) for word in _children(launch)]
        memory = statistics.median(proportional_mib(pid) for pid in pids)
        for _ in range(RUNS):
            seconds, session, guest = await start(launch, folder, SESSIONS + 1)
            starts.append(seconds)
            await session.close()
            guest.close()
            interpreters.append(interpreter_seconds())
    publish(
        "session_start",
        [
            Case(
                "session_start: from asking to its first byte to the guest", statistics.median(starts), "s",
                statistics.median(interpreters), "`python -I -S -c pass`", f"≤ {BAR_S * 1000:g} ms",
                statistics.median(starts) <= BAR_S, RUNS,
            ),
            Case(
                f"session_start: proportional memory, {SESSIONS} running", memory, "MiB", interpreter_mib(),
                "an interpreter that imported the same", f"≤ {BAR_MIB:g} MiB", memory <= BAR_MIB, SESSIONS,
            ),
        ],
    )  # fmt: skip


def _children(launch: SessionLauncher) -> list[str]:
    return Path(f"/proc/{launch.parent_pid}/task/{launch.parent_pid}/children").read_text().split()


if __name__ == "__main__":
    asyncio.run(main())
