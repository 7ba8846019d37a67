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
    fetch_command,
    make_world,
    open_world,
    rounds_of_noise,
    start_program,
)
from insula.testing.tor_network import AUTHORITY, DIR_PORT, OR_PORT, RELAYS, start_network

LIMIT_S = 240.0
NAMES = WORLD, GATEWAY, ONE, TWO = "test-tor-world", "test-whonix", "test-anon-1", "test-anon-2"
RELAYS_OF_EXIT = {AUTHORITY, *RELAYS}
TOR = {Packet("tcp", address, OR_PORT) for address in (AUTHORITY, *RELAYS)} | {Packet("tcp", AUTHORITY, DIR_PORT)}
PROXIED = """
import urllib.error, urllib.request as r
opener = r.build_opener(r.ProxyHandler({{"http": "http://127.0.0.1:8082"}}))
try: print(opener.open("http://{}/", timeout={}).read().decode())
except urllib.error.HTTPError as error: print(error.code)
"""
"""As a template's package manager asks."""
POLICY = f"qubes.UpdatesProxy * @tag:whonix-updatevm @default allow target={GATEWAY}\n"
"""As the one that comes along, which names ``sys-whonix``."""
KNOCK = """
import socket
for port in {ports}:
    try: socket.create_connection(("{address}", port), 5); print(port)
    except OSError: pass
"""
GREET = """
import socket
tor = socket.create_connection(("10.152.152.10", 9150), 10)
tor.sendall(bytes((5, 1, 0)))
print(tor.recv(2).hex())
"""
"""SOCKS 5, as the Tor Browser of a Whonix workstation begins."""
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

ASK_TOR_STATE = ASK_TOR.replace("GETINFO stream-status", "GETINFO status/bootstrap-phase circuit-status entry-guards")
STATE_OF_TOR = """\
date; systemctl status -n 0 insula-tor; journalctl -b -o cat -u insula-tor | tail -n 30; python3 -c '{ask}' || true
"""


class Chain:
    """Two workstations behind the gateway behind the world."""

    def __init__(self, daemon: DaemonProcess, world: World) -> None:
        self.daemon = daemon
        self.world = world

    async def fetched(self, host: str, limit_s: float = 10) -> str:
        """What the first workstation gets from a web server; empty: nothing."""
        result = await run(self.daemon, ONE, fetch_command(host, limit_s))
        return result.text if result.code == 0 else ""

    async def proxied(self, host: str, limit_s: float = 20) -> str:
        """What the first workstation gets by the proxy of its updates, once that answers: a page, or why not."""
        async with asyncio.timeout(LIMIT_S):
            while not (text := (await run(self.daemon, ONE, f"python3 -c '{PROXIED.format(host, limit_s)}'")).text):
                pass
        return text

    async def gateway_reaches_the_web(self) -> bool:
        probe = f'import socket; socket.create_connection(("{WEB}", 80), 2)'
        return (await run(self.daemon, GATEWAY, f"python3 -c '{probe}'", user="root")).code == 0

    async def until_fetched(self, host: str = WEB) -> str:
        """What it gets by tor, once that is ready."""
        await self.in_gateway("systemctl start --no-block insula-tor")
        try:
            async with asyncio.timeout(LIMIT_S):
                while not (text := await self.fetched(host)):
                    pass
        except TimeoutError as error:
            raise AssertionError(f"nothing by tor: {await self.state_of_tor()}") from error
        return text

    async def state_of_tor(self) -> str:
        """What tor says in the gateway, and the authority and a relay in the world."""
        said = await self.in_gateway(STATE_OF_TOR.format(ask=ASK_TOR_STATE))
        world = await run(
            self.daemon, WORLD, "date; tail -n 12 /run/tornet/authority/log /run/tornet/relay1/log", user="root"
        )
        return f"{said}\n{world.text}"

    async def in_gateway(self, command: str, stdin: str = "") -> str:
        result = await run(self.daemon, GATEWAY, command, user="root", stdin=stdin.encode())
        assert result.code == 0, result.err
        return result.text

    async def left(self) -> set[Packet]:
        """What kinds of packets leave the gateway while its clients try everything, and have since the last time."""
        await asyncio.gather(*[rounds_of_noise(self.daemon, name) for name in (ONE, TWO)])
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
    chain = Chain(daemon, world)
    # The network comes to a consensus while the qubes start.
    control, _ = await asyncio.gather(start_network(world), start_qubes(chain))
    # Only so that a test can look at circuits: the gateway as it is has no control port.
    control += "ControlSocket /run/tor-control/socket\n"
    await chain.in_gateway(
        "install -d -o debian-tor -m 700 /run/tor-control; mkdir -p /rw/config/tor"
        " && cat > /rw/config/tor/network.conf",
        control,
    )
    await open_world(world)
    await asyncio.gather(*[start_program(daemon, name, "noise", NOISE) for name in (ONE, TWO)])
    return chain


async def start_qubes(chain: Chain) -> None:
    """The gateway, without tor, and the workstations. The first one is updated as templates are."""
    for arguments in (
        (GATEWAY, "--role", "tor-gateway", "--prop", f"netvm={WORLD}"),
        (ONE, "--role", "tor-workstation", "--prop", f"netvm={GATEWAY}"),
        (TWO, "--role", "tor-workstation", "--prop", f"netvm={GATEWAY}"),
    ):
        code, output = await insula(chain.daemon, "create", *arguments)
        assert code == 0, output
    await chain.daemon.client.set_feature(ONE, "service.updates-proxy-setup", "1")
    await chain.daemon.client.call("admin.vm.tag.Set", ONE, arg="whonix-updatevm")
    await chain.daemon.client.start(GATEWAY)
    await chain.in_gateway("systemctl stop insula-tor")
    for name in (ONE, TWO):
        await chain.daemon.client.start(name)


@pytest.fixture(scope="module")
def chain(daemon: DaemonProcess) -> Iterator[Chain]:
    rule = daemon.paths.policy / "20-updates.policy"
    rule.write_text(POLICY)
    try:
        yield asyncio.run(make_chain(daemon))
    finally:
        rule.unlink()
        asyncio.run(discard(daemon, *reversed(NAMES)))


async def test_only_tor_leaves_the_gateway_whatever_becomes_of_it(chain: Chain) -> None:
    """MC-84"""
    # no tor
    assert await chain.fetched(WEB, 3) == ""
    assert await chain.proxied("deb.debian.org") == "502"
    assert await chain.left() == set()
    # tor
    seen_from = (await chain.until_fetched()).partition(f"{ANSWER}, asked by ")[2].strip()
    assert seen_from in RELAYS_OF_EXIT
    assert ANSWER in await chain.until_fetched("www.example.org")
    assert set(await chain.world.asked()) <= {*RELAYS_OF_EXIT, WEB}
    # killed: another one is started
    await chain.in_gateway("kill -9 $(systemctl show --property MainPID --value insula-tor)")
    left = await chain.left()
    assert left
    assert left <= TOR
    await chain.until_fetched()
    # stopped
    await chain.in_gateway("systemctl stop insula-tor")
    assert await chain.left() <= TOR
    assert await chain.fetched(WEB, 3) == ""
    assert await chain.left() == set()
    # Programs of the gateway itself have no other way either, and the world would have answered.
    await chain.in_gateway("nft list table inet insula-tor > /run/insula-tor.nft")
    assert not await chain.gateway_reaches_the_web()
    await chain.in_gateway("nft delete table inet insula-tor")
    assert await chain.gateway_reaches_the_web()
    await chain.in_gateway("nft -f /run/insula-tor.nft")
    await chain.world.packets()


async def test_what_templates_fetch_goes_through_tor_and_to_repositories_alone(chain: Chain) -> None:
    """The proxy of updates in a Tor gateway; that it refuses without tor is in the test before."""
    await chain.until_fetched()
    page = await chain.proxied("deb.debian.org", 40)
    assert page.partition(f"{ANSWER}, asked by ")[2] in RELAYS_OF_EXIT
    assert await chain.proxied("www.example.org") == "403"
    assert await chain.left() <= TOR
    log = await chain.in_gateway("journalctl -b -o cat -u insula-updates-proxy")
    assert "200 GET http://deb.debian.org/" in log


async def test_each_client_has_circuits_of_its_own(chain: Chain) -> None:
    await chain.until_fetched()
    # Addresses that nothing else asks for: Tor does not say whose a stream is.
    first, second, third = ENDPOINT, RELAYS[1], RELAYS[0]
    held = {ONE: [first, second], TWO: [third]}
    for name, addresses in held.items():
        await start_program(chain.daemon, name, "hold", HOLD.format(addresses))
    async with asyncio.timeout(LIMIT_S):
        circuits: dict[str, str] = {}
        while not circuits.keys() >= {first, second, third}:
            lines = [line.split() for line in (await chain.in_gateway(f"python3 -c '{ASK_TOR}'")).splitlines()]
            streams = [words[-4:] for words in lines if "SUCCEEDED" in words]
            circuits = {words[3].partition(":")[0]: words[2] for words in streams if words[1] == "SUCCEEDED"}
    # Two streams of one client need not share one: tor may have a newer circuit by then.
    assert circuits[third] not in {circuits[first], circuits[second]}


async def test_workstation_finds_nothing_in_its_gateway(chain: Chain) -> None:
    """The control port, ssh, whatever listens there: only Tor's own ports are a client's."""
    await chain.in_gateway(
        "(nohup python3 -m http.server 8000 > /dev/null 2>&1 &); until ss -Hltn sport = :8000 | grep -q .; do :; done"
    )
    gateway = (await run(chain.daemon, GATEWAY, "hostname -I", user="root")).text.split()[0]
    knock = KNOCK.format(address=gateway, ports=(9050, 8000, 9051, 9040, 9041, 8082))
    assert (await run(chain.daemon, ONE, f"python3 -c '{knock}'")).text == "9050"


async def test_programs_of_a_whonix_workstation_find_the_gateway_where_they_were_told(chain: Chain) -> None:
    """By an address that no qube has."""
    result = await run(chain.daemon, ONE, f"python3 -c '{GREET}'")
    assert result.text == "0500"


async def test_workstation_is_not_moved_to_another_way_out(chain: Chain) -> None:
    """MC-85"""
    code, output = await insula(chain.daemon, "prefs", ONE, "netvm", WORLD)
    assert code != 0
    assert "Tor gateway" in output
    assert (await chain.daemon.client.get_property("netvm", ONE)).value == GATEWAY
