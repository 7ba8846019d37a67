"""``admin.vm.List`` with 100 qubes: latency of a call over the socket, idle and while 4 qubes start.

Baseline: a bare echo over a unix socket of the same answer's size, by the same client code, in the same run.
Promised: p99 at most 20 ms, also while qubes start.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install
from report import Case, percentile, publish

QUBES = 100
STARTED = 4
CALLS = 400
BAR_S = 0.020


async def timed_calls(daemon: DaemonProcess, until: asyncio.Future[list[None]] | None = None) -> list[float]:
    """Seconds of each call; at least CALLS, or for as long as a task runs."""
    seconds: list[float] = []
    while len(seconds) < CALLS or (until is not None and not until.done()):
        begin = time.perf_counter()
        answer = await daemon.client.call("admin.vm.List")
        seconds.append(time.perf_counter() - begin)
        assert answer.count(b"\n") >= QUBES
        await asyncio.sleep(0.005)
    return seconds


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
    publish(
        "admin_list",
        [
            Case(f"admin_list {name}", p99, "s", baseline, what, bar, p99 <= BAR_S, len(seconds))
            for name, seconds in (("idle", idle), (f"while {STARTED} qubes start", busy))
            for p99 in (percentile(seconds, 99),)
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
