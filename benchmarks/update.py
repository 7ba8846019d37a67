"""An update of a template that has nothing to fetch, ``insula update``, over ``apt-get update`` alone inside.

The first update, which is not counted, fetches the lists. The net qube that leads to the repositories is on in both
measurements; the template is off at the begin of the first and on in the second. It boots, and the net qube, too: seeds
that are made in the background would be measured with them.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, install, run, settle
from report import Case, publish

RUNS = 3
BAR = 3.0
APT = "apt-get -q -o APT::Update::Error-Mode=any update"


async def update(daemon: DaemonProcess) -> float:
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), "update", TEMPLATE, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=daemon.environment,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return time.perf_counter() - begin


async def apt(daemon: DaemonProcess) -> float:
    begin = time.perf_counter()
    result = await run(daemon, TEMPLATE, APT, user="root")
    assert result.code == 0, result
    return time.perf_counter() - begin


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        await create_app_qube(daemon.client, "sys-net")
        for prop, value in (("provides_network", "True"), ("netvm", ""), ("uplink", "host"), ("start_mode", "cold")):
            await daemon.client.call("admin.vm.property.Set", "sys-net", arg=prop, payload=value.encode())
        await update(daemon)
        whole = statistics.median([await update(daemon) for _ in range(RUNS)])
        await daemon.client.start(TEMPLATE)
        await apt(daemon)
        alone = statistics.median([await apt(daemon) for _ in range(RUNS)])
    ok, what = whole <= BAR * alone, "apt-get update inside"
    publish("update", [Case("update: nothing to fetch", whole, "s", alone, what, f"≤ {BAR:g} ×", ok, RUNS)])


if __name__ == "__main__":
    asyncio.run(main())
