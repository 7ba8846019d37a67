"""From the change of ``netvm`` of a running qube to its first packet by the new way: ``insula prefs QUBE netvm …``.

A program in the qube sends a datagram to this computer every :data:`EVERY_S`. It comes from a port of the process that
leads the qube's net qube outside, another one for each net qube; the first from a new port ends the measurement.
The qubes boot: seeds of net qubes that are made in the background would be measured, too.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

from insula.testing.cable_guest import own_address
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, run, settle
from report import Case, publish

EVERY_S = 0.02
RUNS = 6
LIMIT_S = 60.0
BAR_S = 2.0

SEND = f"""
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        sender.sendto(b"here", ("{{}}", {{}}))
    except OSError:
        pass
    time.sleep({EVERY_S})
"""


def until_another(receiver: socket.socket, known: object) -> object:
    """The first sender that is not ``known``."""
    receiver.settimeout(LIMIT_S)
    while True:
        _, sender = receiver.recvfrom(64)
        if sender != known:
            return sender


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)

        async def put(qube: str, prop: str, value: str) -> None:
            await daemon.client.call("admin.vm.property.Set", qube, arg=prop, payload=value.encode())

        for name in ("one", "two"):
            await create_app_qube(daemon.client, name)
            for prop, value in (
                ("provides_network", "True"),
                ("netvm", ""),
                ("uplink", "host"),
                ("start_mode", "cold"),
            ):
                await put(name, prop, value)
        await create_app_qube(daemon.client, "app")
        for prop, value in (("netvm", "one"), ("start_mode", "cold")):
            await put("app", prop, value)
        await asyncio.gather(daemon.client.start("app"), daemon.client.start("two"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind((own_address(), 0))
            program = SEND.format(*receiver.getsockname())
            await run(daemon, "app", f"nohup python3 -c '{program}' >/dev/null 2>&1 &")
            known = await asyncio.to_thread(until_another, receiver, None)
            seconds = []
            for number in range(RUNS):
                begin = time.perf_counter()
                await put("app", "netvm", ("two", "one")[number % 2])
                known = await asyncio.to_thread(until_another, receiver, known)
                seconds.append(time.perf_counter() - begin)
    print([round(each, 2) for each in seconds], file=sys.stderr)
    worst = max(seconds)
    name = "netvm_switch: change of netvm to first packet"
    publish("netvm_switch", [Case(name, worst, "s", None, "", f"≤ {BAR_S:g} s", worst <= BAR_S, RUNS)])


if __name__ == "__main__":
    asyncio.run(main())
