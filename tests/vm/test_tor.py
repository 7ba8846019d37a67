"""Workstations behind a Tor gateway behind a world that has a Tor network of its own: real ``tor`` processes.

What leaves the gateway is recorded where it arrives. The workstations try everything all the time, and the world would
answer all of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import run
from insula.testing.net_world import (
    ANSWER,
    ENDPOINT,
    NOISE,
    WEB,
    Packet,
    World,
    discard,
    make_world,
    open_world,
    start_program,
)
from insula.testing.tor_network import AUTHORITY, DIR_PORT, OR_PORT, RELAYS, start_network

LIMIT_S = 240.0
NOISE_S = 3.0
NAMES = WORLD, GATEWAY, ONE, TWO = "test-tor-world", "test-whonix", "test-anon-1", "test-anon-2"
TOR = {Packet("tcp", address, OR_PORT) for address in (AUTHORITY, *RELAYS)} | {Packet("tcp", AUTHORITY, DIR_PORT)}
FETCH = "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://{}/\", timeout={}).read().decode())'"
HOLD = """
import socket, time
held = [socket.create_connection((address, 80), 30) for address in {}]
print(len(held), flush=True)
time.sleep(600)
"""
ASK_TOR = """
import socket
tor = socket.socket(socket.AF_UNIX)
tor.connect("/run/tor-control/socket")
tor.sendall(b"AUTHENTICATE\\r\\nGETINFO stream-status\\r\\nQUIT\\r\\n")
while data := tor.recv(4096): print(data.decode(), end="")
"""


class Chain:
    """Two workstations behind the gateway behind the world."""

    def __init__(self, daemon: DaemonProcess, world: World) -> None:
        self.daemon = daemon
        self.world = world

    async def fetched(self, host: str, limit_s: float = 10) -> str:
        """What the first workstation gets from a web server; empty: nothing."""
        result = await run(self.daemon, ONE, FETCH.format(host, limit_s))
        return result.text if result.code == 0 else ""

    async def until_fetched(self, host: str = WEB) -> str:
        async with asyncio.timeout(LIMIT_S):
            while not (text := await self.fetched(host)):
                pass
        return text

    async def in_gateway(self, command: str, stdin: str = "") -> str:
        result = await run(self.daemon, GATEWAY, command, user="root", stdin=stdin.encode())
        assert result.code == 0, result.err
        return result.text

    async def left(self) -> set[Packet]:
        """What kinds of packets leave the gateway within a while, and have since the last time."""
        await asyncio.sleep(NOISE_S)
        return set(await self.world.packets())


async def insula(daemon: DaemonProcess, *arguments: str) -> tuple[int | None, str]:
    """Run the command as a person would."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), *arguments, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=daemon.environment,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def make_chain(daemon: DaemonProcess) -> Chain:
    world = await make_world(daemon, WORLD)
    network = await start_network(world)
    for arguments in (
        (GATEWAY, "--role", "tor-gateway", "--prop", f"netvm={WORLD}"),
        (ONE, "--role", "tor-workstation", "--prop", f"netvm={GATEWAY}"),
        (TWO, "--role", "tor-workstation", "--prop", f"netvm={GATEWAY}"),
    ):
        code, output = await insula(daemon, "create", *arguments)
        assert code == 0, output
    chain = Chain(daemon, world)
    await daemon.client.start(GATEWAY)
    await chain.in_gateway("systemctl stop insula-tor")
    # Only so that a test can look at circuits: the gateway as it is has no control port.
    control = "ControlSocket /run/tor-control/socket\n"
    await chain.in_gateway("mkdir -p /rw/config/tor && cat > /rw/config/tor/network.conf", network + control)
    await chain.in_gateway("install -d -o debian-tor -m 700 /run/tor-control")
    for name in (ONE, TWO):
        await daemon.client.start(name)
    await open_world(world)
    for name in (ONE, TWO):
        await start_program(daemon, name, "noise", NOISE)
    return chain


@pytest.fixture(scope="module")
def chain(daemon: DaemonProcess) -> Iterator[Chain]:
    try:
        yield asyncio.run(make_chain(daemon))
    finally:
        asyncio.run(discard(daemon, *reversed(NAMES)))


async def test_only_tor_leaves_the_gateway_whatever_becomes_of_it(chain: Chain) -> None:
    """MC-84"""
    # no tor
    assert await chain.fetched(WEB, 3) == ""
    assert await chain.left() == set()
    # tor
    await chain.in_gateway("systemctl start insula-tor")
    seen_from = (await chain.until_fetched()).partition(f"{ANSWER}, asked by ")[2].strip()
    assert seen_from in {AUTHORITY, *RELAYS}
    assert ANSWER in await chain.until_fetched("www.example.org")
    assert set(await chain.world.asked()) <= {AUTHORITY, *RELAYS, WEB}
    left = await chain.left()
    assert left
    assert left <= TOR
    # killed: another one is started
    await chain.in_gateway("kill -9 $(systemctl show --property MainPID --value insula-tor)")
    assert await chain.left() <= TOR
    await chain.until_fetched()
    # stopped
    await chain.in_gateway("systemctl stop insula-tor")
    await chain.left()
    assert await chain.fetched(WEB, 3) == ""
    assert await chain.left() == set()
    # Programs of the gateway itself have no other way either.
    probe = f'import socket; socket.create_connection(("{WEB}", 80), 2)'
    assert (await run(chain.daemon, GATEWAY, f"python3 -c '{probe}'", user="root")).code != 0
    # The world would have answered.
    await chain.in_gateway("nft delete table inet insula-tor")
    assert (await run(chain.daemon, GATEWAY, f"python3 -c '{probe}'", user="root")).code == 0
    await chain.daemon.client.kill(GATEWAY)
    await chain.daemon.client.start(GATEWAY)
    await chain.in_gateway("install -d -o debian-tor -m 700 /run/tor-control; systemctl restart insula-tor")


async def test_each_client_has_circuits_of_its_own(chain: Chain) -> None:
    await chain.until_fetched()
    third = RELAYS[0]
    held = {ONE: [WEB, ENDPOINT], TWO: [third]}
    for name, addresses in held.items():
        await start_program(chain.daemon, name, "hold", HOLD.format(addresses))
    async with asyncio.timeout(LIMIT_S):
        circuits: dict[str, str] = {}
        while not circuits.keys() >= {WEB, ENDPOINT, third}:
            lines = [line.split() for line in (await chain.in_gateway(f"python3 -c '{ASK_TOR}'")).splitlines()]
            streams = [words[-4:] for words in lines if "SUCCEEDED" in words]
            circuits = {words[3].partition(":")[0]: words[2] for words in streams if words[1] == "SUCCEEDED"}
    assert circuits[WEB] == circuits[ENDPOINT] != circuits[third]


async def test_workstation_finds_nothing_in_its_gateway(chain: Chain) -> None:
    """The control port, ssh, whatever listens there: only Tor's own ports are a client's."""
    await chain.in_gateway("nohup python3 -m http.server 8000 > /dev/null 2>&1 & sleep 1")
    gateway = (await run(chain.daemon, GATEWAY, "hostname -I", user="root")).text.split()[0]
    for port, answers in ((9050, True), (8000, False), (9051, False), (9040, False)):
        probe = f'import socket; socket.create_connection(("{gateway}", {port}), 3)'
        assert ((await run(chain.daemon, ONE, f"python3 -c '{probe}'")).code == 0) is answers, port


async def test_workstation_is_not_moved_to_another_way_out(chain: Chain) -> None:
    """MC-85"""
    code, output = await insula(chain.daemon, "prefs", ONE, "netvm", WORLD)
    assert code != 0
    assert "Tor gateway" in output
    assert (await chain.daemon.client.get_property("netvm", ONE)).value == GATEWAY
