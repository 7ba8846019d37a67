"""What a chain of net qubes costs: an app qube behind a firewall qube behind a net qube, against that net qube alone.

Throughput is that of one TCP connection from a server on this computer, in both places after the other, several times;
the median of each. One connection has at most the 64 KiB under way that the way out knows (decision 020), so it tells
as much about the delay as about what the chain can carry; that of several together is reported beside it.

Latency is a byte there and back over such a connection. What *one emulated network card* costs is measured alone: a
ping from the net qube to its gateway, which the process at the other end of its cable answers. A hop has the cards of
two machines in the way of each packet, in both directions; so the promise per hop is one millisecond and what that ping
takes.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from insula.model.uplink import OUTSIDE_GATEWAY
from insula.testing.cable_guest import own_address
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, settle, sh
from report import Case, publish

MIB = 2**20
LARGE_MIB = 16
"""In all, of one connection or of several."""
MANY = 8
RUNS = 5
ECHOES = 100
HOPS = 2
ECHOED = b"e"
BAR_THROUGHPUT = 0.6
BAR_HOP_S = 0.001

FETCH = """
import select, socket, sys, time
begin = time.perf_counter()
servers, poll = {}, select.poll()
for _ in range(int(sys.argv[3])):
    server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    server.send(bytes([int(sys.argv[4])]))
    servers[server.fileno()] = server
    poll.register(server, select.POLLIN)
buffer, size = bytearray(65536), 0
while servers:
    for fd, _ in poll.poll():
        count = servers[fd].recv_into(buffer)
        size += count
        if not count:
            poll.unregister(fd)
            servers.pop(fd).close()
assert size == int(sys.argv[4]) * int(sys.argv[3]) * 2**20, size
print(time.perf_counter() - begin)
"""
ECHO = """
import json, socket, sys, time
times = []
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as server:
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(int(sys.argv[3])):
        begin = time.perf_counter()
        server.send(b"e")
        server.recv(1)
        times.append(time.perf_counter() - begin)
print(json.dumps(times))
"""
PING = """
import json, socket, struct, sys, time
times = []
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(5)
head = struct.pack(">BBHHH", 8, 0, 0xF7FE, 0, 1)
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    raw.sendto(head, (sys.argv[1], 0))
    while raw.recv(1500)[20] != 0:
        pass
    times.append(time.perf_counter() - begin)
print(json.dumps(times))
"""


def serve(connection: socket.socket) -> None:
    """Echo, or so many MiB as a byte says."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1):
            if data != ECHOED:
                connection.sendall(bytes(data[0] * MIB))
                return
            connection.send(data)


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    with socket.create_server((own_address(), 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[:2]
        listening.shutdown(socket.SHUT_RDWR)


async def python(daemon: DaemonProcess, qube: str, program: str, *arguments: object) -> str:
    words = shlex.join(["python3", "-c", program, *map(str, arguments)])
    return await sh(daemon, qube, words, user="root")


async def main() -> None:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await settle(daemon.client)
        for name, properties in (
            ("net", {"provides_network": "True", "netvm": "", "uplink": "host"}),
            ("firewall", {"provides_network": "True", "netvm": "net"}),
            ("app", {"netvm": "firewall"}),
        ):
            await create_app_qube(daemon.client, name)
            for prop, value in properties.items():
                await daemon.client.call("admin.vm.property.Set", name, arg=prop, payload=value.encode())
        await daemon.client.start("app")
        with server() as (host, port):
            seconds: dict[tuple[str, int], list[float]] = {(name, n): [] for n in (1, MANY) for name in ("net", "app")}
            echoes: dict[str, list[float]] = {"net": [], "app": []}
            for _ in range(RUNS):
                for (name, n), measured in seconds.items():
                    measured.append(float(await python(daemon, name, FETCH, host, port, n, LARGE_MIB // n)))
                for name in echoes:
                    echoes[name] += json.loads(await python(daemon, name, ECHO, host, port, ECHOES))
            card = statistics.median(json.loads(await python(daemon, "net", PING, OUTSIDE_GATEWAY, ECHOES)))
    rate = {key: LARGE_MIB / statistics.median(values) for key, values in seconds.items()}
    delay = {name: statistics.median(values) for name, values in echoes.items()}
    hop = (delay["app"] - delay["net"]) / HOPS
    publish(
        "net_chain",
        [
            Case(
                "net_chain: throughput through two net qubes", rate["app", 1], "MiB/s", rate["net", 1],
                "net qube alone", f"≥ {BAR_THROUGHPUT} × net qube alone",
                rate["app", 1] >= BAR_THROUGHPUT * rate["net", 1], RUNS,
            ),
            Case(
                f"net_chain: throughput of {MANY} connections", rate["app", MANY], "MiB/s", rate["net", MANY],
                "net qube alone", "reported", None, RUNS,
            ),
            Case(
                "net_chain: latency added by each hop", hop, "s", card, "one emulated network card",
                f"≤ {BAR_HOP_S * 1000:g} ms + one emulated network card", hop <= BAR_HOP_S + card, RUNS * ECHOES,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
