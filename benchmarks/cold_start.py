"""Cold start through the product: create a qube and start it, until its agent answers.

Baselines, measured in turns with it: plain ``qemu-system-x86_64`` (no sandbox, no daemon, no session process) that
brings the same kernel, root, private and volatile disks to the same point, the agent's qrexec HELLO with identity and
storage in place; and the same bare kernel until the only process of a one-file initramfs. The private disk is new in
every run of both, so both make its file system. One virtual CPU each.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from guest_boot import MEMORY_MIB, agent_seconds, bare_seconds, qcow2
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install
from report import Case, publish

RUNS = 5
BAR_PLAIN = 1.15
BAR_BARE = 4.0


async def product_seconds(daemon: DaemonProcess, name: str) -> float:
    """From the call that creates a qube to the answer of the call that starts it."""
    begin = time.perf_counter()
    await create_app_qube(daemon.client, name)
    await daemon.client.set_property("start_mode", "cold", name)
    seconds = time.perf_counter() - begin
    await daemon.client.set_property("vcpus", "1", name)
    await daemon.client.set_property("memory", str(MEMORY_MIB), name)
    begin = time.perf_counter()
    await daemon.client.start(name)
    seconds += time.perf_counter() - begin
    await daemon.client.kill(name)
    await daemon.client.remove(name)
    return seconds


async def main() -> None:
    built = await build_template()
    product, plain, bare = [], [], []
    with tempfile.TemporaryDirectory(prefix="insula-bench-") as temporary:
        folder = Path(temporary)
        async with DaemonProcess() as daemon:
            await install(daemon.client, built)
            for number in range(RUNS):
                product.append(await product_seconds(daemon, f"bench-{number}"))
                private = qcow2(folder / f"private-{number}.qcow2", "2G")
                plain.append(agent_seconds(built, folder, private, console=False)["hello"])
                bare.append(bare_seconds(built, folder)[0])
                print(f"product {product[-1]:.2f} plain {plain[-1]:.2f} bare {bare[-1]:.2f}", file=sys.stderr)
    value, plain_s, bare_s = map(statistics.median, (product, plain, bare))
    publish(
        "cold_start",
        [
            Case(
                "cold_start", value, "s", plain_s, "plain QEMU, same kernel and root, to the same point",
                f"≤ {BAR_PLAIN} × baseline", value <= BAR_PLAIN * plain_s, RUNS,
            ),
            Case(
                "cold_start against the bare kernel", value, "s", bare_s, "the bare kernel to /init",
                f"≤ {BAR_BARE:g} × baseline", value <= BAR_BARE * bare_s, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
