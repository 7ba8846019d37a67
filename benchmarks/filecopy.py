"""Files from qube to qube: ``qvm-copy`` against a raw stream between the same two qubes, and small files against one.

The raw stream is a call whose caller is ``cat FILE`` and whose service throws away what comes: no checksum, no disk at
the other end. The copy has both: every byte goes through CRC-32 at both ends and is on the receiver's disk (``syncfs``)
before it says so. Interleaved rounds, medians of the wall clock as the caller sees it, login shell included.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, run, settle
from report import Case, publish

RUNS = 3
LARGE = 200_000_000
SMALL_FILES = 2000
SMALL = 4096
BAR_LARGE = 0.7
BAR_SMALL_FACTOR, BAR_SMALL_S = 2.0, 2.0
TIMEOUT_S = 300.0

POLICY = "qubes.Filecopy * bench-from bench-to allow\nbench.Sink * bench-from bench-to allow\n"
SINK = "mkdir -p /usr/local/etc/qubes-rpc; cd /usr/local/etc/qubes-rpc; printf '#!/bin/sh\\nexec cat > /dev/null\\n'"
SINK += " > bench.Sink; chmod 755 bench.Sink"
MAKE = f"""
head -c {LARGE} /dev/urandom > large; head -c {SMALL_FILES * SMALL} /dev/urandom > one; mkdir many; cd many
python3 -S -c 'import os
for n in range({SMALL_FILES}): open(f"file-{{n}}", "wb").write(os.urandom({SMALL}))'; sync
"""
RAW = "exec qrexec-client-vm bench-to bench.Sink /bin/cat large"


async def seconds(daemon: DaemonProcess, command: str) -> float:
    """Wall clock of a command in the sender that must succeed; what it sent is removed at the other end afterwards."""
    begin = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        done = await run(daemon, "bench-from", command)
    taken = time.perf_counter() - begin
    if done.code != 0:
        raise RuntimeError(f"{command}: exit code {done.code}: {done.err.decode(errors='replace')}")
    await run(daemon, "bench-to", "rm -rf QubesIncoming; sync")
    return taken


async def main() -> None:
    built = await build_template()
    commands = {
        "raw": RAW,
        "large": "exec qvm-copy-to-vm bench-to large",
        "one": "exec qvm-copy-to-vm bench-to one",
        "many": "exec qvm-copy-to-vm bench-to many",
    }
    figures: dict[str, list[float]] = {name: [] for name in commands}
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        (daemon.paths.policy / "10-bench.policy").write_text(POLICY)
        for name in ("bench-from", "bench-to"):
            await create_app_qube(daemon.client, name)
            await daemon.client.start(name)
        await run(daemon, "bench-to", SINK, user="root")
        await run(daemon, "bench-from", MAKE)
        await seconds(daemon, commands["one"])
        for _ in range(RUNS):
            for name, command in commands.items():
                figures[name].append(await seconds(daemon, command))
            print({name: round(values[-1], 2) for name, values in figures.items()}, file=sys.stderr, flush=True)
    median = {name: statistics.median(values) for name, values in figures.items()}
    speed = {name: LARGE / median[name] / 1e6 for name in ("raw", "large")}
    allowed = BAR_SMALL_FACTOR * median["one"] + BAR_SMALL_S
    publish(
        "filecopy",
        [
            Case(
                "filecopy: one file of 200 MB", speed["large"], "MB/s", speed["raw"],
                "a raw stream between the same two qubes", f"≥ {BAR_LARGE} × baseline",
                speed["large"] >= BAR_LARGE * speed["raw"], RUNS,
            ),
            Case(
                f"filecopy: {SMALL_FILES} files of {SMALL} bytes", median["many"], "s", median["one"],
                "one file of the same total size", f"≤ {BAR_SMALL_FACTOR:g} × baseline + {BAR_SMALL_S:g} s",
                median["many"] <= allowed, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
