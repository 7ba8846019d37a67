"""Real qubes behind real net qubes: who reaches whom, and what happens when one of them goes.

The world outside is a web server on this machine, reached by an address of its own interface: what a net qube leads to
is the network of the host, never the host's loopback.
"""

from __future__ import annotations

import asyncio
import http.server
import itertools
import json
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from insula.hal.qemu.outside import NOTE
from insula.model.errors import QubesVMNotStartedError
from insula.model.state import PowerState
from insula.rpc.client import run_collect
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import create_app_qube
from insula.testing.net_world import fetch_command, state_of_network
from insula.testing.vlan_frames import SEND, UNTAGGED

LIMIT_S = 120.0
"""For what must happen, under software emulation on a busy machine."""
BUSY_S = 8
"""Longer than a qube takes to end and to be linked again."""
_numbers = itertools.count(1)


def own_address() -> str:
    """An address of this machine that is not its loopback. Nothing is sent: a datagram socket only looks up a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


LARGE_MIB = 24


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/large":
            for _ in range(LARGE_MIB):
                self.wfile.write(bytes(2**20))
        elif self.path == "/endless":
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(bytes(2**16))
                    time.sleep(0.05)
        else:
            self.wfile.write(b"the world outside\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """URL of a page on this machine's own address."""
    with http.server.ThreadingHTTPServer((own_address(), 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{own_address()}:{server.server_port}/"
        server.shutdown()
        thread.join()


async def run(daemon: DaemonProcess, qube: str, command: str) -> tuple[int, str]:
    code, stdout, stderr = await run_collect(daemon.paths.rpc_socket(qube), command, user="root")
    return code, (stdout + stderr).decode()


FORGERIES = """
import socket
dhcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
dhcp.bind(("", 68))
dhcp.sendto(bytes(300), ("255.255.255.255", 67))
# An ARP answer that says another client is here.
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
mac, ip = bytes.fromhex("00163e5e6c00"), bytes([10, 137, 0, 9])
raw.send(b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040002") + mac + ip + mac + ip)
# A router advertisement with a prefix to make addresses of, to all nodes (RFC 4861 4.2); its checksum is right.
source, group = socket.inet_pton(socket.AF_INET6, "fe80::1"), socket.inet_pton(socket.AF_INET6, "ff02::1")
prefix = bytes.fromhex("030440c0000151800000384000000000") + socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
advert = bytes.fromhex("8600000040000708") + bytes(8) + prefix
covered = source + group + len(advert).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + advert
total = sum(int.from_bytes(covered[at : at + 2], "big") for at in range(0, len(covered), 2))
while total >> 16:
    total = (total & 0xFFFF) + (total >> 16)
advert = advert[:2] + (~total & 0xFFFF).to_bytes(2, "big") + advert[4:]
head = bytes.fromhex("60000000") + len(advert).to_bytes(2, "big") + bytes([58, 255]) + source + group
raw.send(bytes.fromhex("333300000001") + mac + bytes.fromhex("86dd") + head + advert)
"""
LISTEN = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True: server.accept()
"""


async def fetches(daemon: DaemonProcess, qube: str, url: str, limit_s: float = 5) -> bool:
    server = urlsplit(url)
    code, output = await run(daemon, qube, fetch_command(str(server.hostname), limit_s, server.port or 80))
    return code == 0 and "the world outside" in output


async def until_fetches(daemon: DaemonProcess, qube: str, url: str) -> None:
    begin = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await fetches(daemon, qube, url):
                pass
    except TimeoutError as error:
        running = [row.name for row in await daemon.client.list_qubes() if row.state is PowerState.RUNNING]
        state = await state_of_network(daemon, *[name for name in running if name != "dom0"])
        raise AssertionError(f"{qube} had no page for {time.monotonic() - begin:.0f} s ({error!r})\n{state}") from None


async def listen(daemon: DaemonProcess, qube: str, port: int) -> None:
    """Have something listen in a qube, from now on."""
    waiting = f"until ss -Hltn sport = :{port} | grep -q .; do sleep 0.05; done"
    server = f"nohup python3 -c '{LISTEN}' {port} > /dev/null 2>&1"
    assert await run(daemon, qube, f"({server} &); {waiting}") == (0, "")


def connect_command(address: str, port: int, limit_s: float) -> str:
    """What ends well if somebody listens there and can be reached."""
    return f"python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), {limit_s})'"


async def make(daemon: DaemonProcess, name: str, **properties: str) -> str:
    await create_app_qube(daemon.client, name)
    for prop, value in properties.items():
        await daemon.client.call("admin.vm.property.Set", name, arg=prop, payload=value.encode())
    return name


@asynccontextmanager
async def chain(daemon: DaemonProcess) -> AsyncIterator[tuple[str, str, str]]:
    """``sys-net``, ``sys-firewall`` behind it and an app qube behind that, all running."""
    number = next(_numbers)
    names = f"test-net-{number}", f"test-fw-{number}", f"test-app-{number}"
    net, firewall, app = names
    try:
        await make(daemon, net, provides_network="True", netvm="", uplink="host")
        await make(daemon, firewall, provides_network="True", netvm=net)
        await make(daemon, app, netvm=firewall)
        await daemon.client.start(app)
        yield net, firewall, app
    finally:
        for name in reversed(names):
            with suppress(QubesVMNotStartedError):
                await daemon.client.kill(name)
        for name in reversed(names):
            await daemon.client.remove(name)


@pytest.fixture(scope="module")
def names(daemon: DaemonProcess) -> Iterator[tuple[str, str, str]]:
    """A chain for the tests that leave it as it was."""
    made = chain(daemon)
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete(made.__aenter__())
    loop.run_until_complete(made.__aexit__(None, None, None))
    loop.close()


async def test_app_qube_reaches_the_world_through_two_net_qubes(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    net, firewall, app = names
    await until_fetches(daemon, app, page)
    for name, interfaces in (
        (net, ["eth0", "lo", "vif0.0"]),
        (firewall, ["eth0", "lo", "vif0.0"]),
        (app, ["eth0", "lo"]),
    ):
        assert (await run(daemon, name, "ls /sys/class/net"))[1].split() == interfaces


async def test_more_arrives_at_once_than_an_interface_takes(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    # What the way out fetches does not fit into the socket to the machine's interface, and must not be lost there.
    for qube in names[0], names[2]:
        command = f"import urllib.request as r; print(len(r.urlopen('{page}large', timeout=30).read()))"
        assert await run(daemon, qube, f'python3 -c "{command}"') == (0, f"{LARGE_MIB * 2**20}\n")
        assert await fetches(daemon, qube, page, LIMIT_S)


async def test_nobody_reaches_the_app_qube_from_a_net_qube(daemon: DaemonProcess, names: tuple[str, str, str]) -> None:
    """The net qube that filters for it can; the one behind that cannot, nor what is outside."""
    net, firewall, app = names
    await listen(daemon, app, 8000)
    address = (await run(daemon, app, "hostname -I"))[1].strip()
    assert (await run(daemon, net, f"ip route add {address} dev vif0.0; {connect_command(address, 8000, 3)}"))[0] != 0
    assert await run(daemon, firewall, connect_command(address, 8000, LIMIT_S)) == (0, "")


async def test_forwarded_port_leads_to_the_client_until_it_is_taken_back(
    daemon: DaemonProcess, names: tuple[str, str, str]
) -> None:
    net, firewall, app = names
    await listen(daemon, app, 8003)
    # (Its addresses: the first is its own, the others are those it has for its clients.)
    address = (await run(daemon, firewall, "hostname -I"))[1].split()[0]
    probe = connect_command(address, 8080, 3)
    assert (await run(daemon, net, probe))[0] != 0
    await daemon.client.set_feature(app, "net.forward", "tcp:8080:8003")
    async with asyncio.timeout(LIMIT_S):
        while (await run(daemon, net, probe))[0] != 0:
            pass
    await daemon.client.set_feature(app, "net.forward", "")
    async with asyncio.timeout(LIMIT_S):
        while (await run(daemon, net, probe))[0] == 0:
            pass


async def test_source_address_of_somebody_else_is_dropped(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    """MC-81"""
    _, firewall, app = names
    await until_fetches(daemon, app, page)
    real = (await run(daemon, app, "hostname -I"))[1].strip()
    assert real.startswith("10.137.")
    dropped = "nft list chain ip qubes antispoof | grep -v ether | grep -c 'packets 0 '"
    assert (await run(daemon, firewall, dropped))[1].strip() == "1"
    code, _ = await run(
        daemon,
        app,
        "ip addr add 10.137.77.77/32 dev eth0 && ip route replace default via "
        "$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') dev eth0 onlink src 10.137.77.77",
    )
    assert code == 0
    assert not await fetches(daemon, app, page, 3)
    assert (await run(daemon, firewall, dropped))[1].strip() == "0"
    await run(
        daemon,
        app,
        "ip addr del 10.137.77.77/32 dev eth0; ip route replace default via "
        "$(ip route | sed -n 's/^\\(10.137[^ ]*\\) dev.*/\\1/p') dev eth0 onlink",
    )
    await until_fetches(daemon, app, page)


async def test_hardware_address_of_somebody_else_is_dropped(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    """MC-81"""
    _, firewall, app = names
    await until_fetches(daemon, app, page)
    own = (await run(daemon, app, "cat /sys/class/net/eth0/address"))[1].strip()
    dropped = "nft list chain ip qubes antispoof | grep ether | grep -c 'packets 0 '"
    assert (await run(daemon, firewall, dropped))[1].strip() == "1"
    assert (await run(daemon, app, "ip link set eth0 address 00:16:3e:5e:6c:99"))[0] == 0
    assert not await fetches(daemon, app, page, 3)
    assert (await run(daemon, firewall, dropped))[1].strip() == "0"
    assert (await run(daemon, app, f"ip link set eth0 address {own}"))[0] == 0
    await until_fetches(daemon, app, page)


class Rules:
    """The firewall of a qube, and whether it gets to the world's page."""

    def __init__(self, daemon: DaemonProcess, qube: str, page: str) -> None:
        self._daemon = daemon
        self._qube = qube
        self._page = page

    async def are(self, *lines: str) -> None:
        payload = "".join(f"{line}\n" for line in lines).encode()
        await self._daemon.client.call("admin.vm.firewall.Set", self._qube, payload=payload)

    async def until_open(self) -> None:
        await until_fetches(self._daemon, self._qube, self._page)

    async def until_closed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await fetches(self._daemon, self._qube, self._page, 2):
                pass


@pytest.fixture
async def rules(daemon: DaemonProcess, names: tuple[str, str, str], page: str) -> AsyncIterator[Rules]:
    found = Rules(daemon, names[2], page)
    yield found
    await found.are("action=accept")


MANY = [f"action=drop proto=tcp dst4=192.0.2.{number % 256} dstports={number + 1}" for number in range(499)]


async def test_last_of_many_rules_counts_as_the_first_does(rules: Rules, page: str) -> None:
    await rules.are(*MANY, "action=accept")
    await rules.until_open()
    await rules.are(*MANY, f"action=drop dst4={page.split('/')[2].partition(':')[0]}", "action=accept")
    await rules.until_closed()
    await rules.are(*MANY, "action=accept")
    await rules.until_open()


async def test_rule_with_a_name_that_has_no_address_closes_until_it_is_gone(rules: Rules) -> None:
    """MC-87"""
    await rules.are("action=accept")
    await rules.until_open()
    # Looking them all up takes minutes where no name server answers; no change of the rules waits for that.
    await rules.are(*(f"action=accept dsthost=nowhere-{number}.invalid" for number in range(100)), "action=accept")
    await rules.until_closed()
    await rules.are("action=accept")
    await rules.until_open()


async def test_rules_that_change_while_the_firewall_qube_is_down_hold_when_it_is_up(
    daemon: DaemonProcess, names: tuple[str, str, str], rules: Rules
) -> None:
    """MC-87"""
    firewall = names[1]
    await rules.are("action=accept")
    await rules.until_open()
    await daemon.client.kill(firewall)
    await rules.are("action=drop")
    await daemon.client.start(firewall)
    # Its link is there: what keeps it from the world is the rule.
    async with asyncio.timeout(LIMIT_S):
        while "vif0.0" not in (await run(daemon, firewall, "ip -o link show up dev vif0.0"))[1]:
            pass
    await rules.until_closed()
    await rules.are("action=accept")
    await rules.until_open()


async def test_other_families_and_own_services_of_a_client_get_nowhere(
    daemon: DaemonProcess, names: tuple[str, str, str]
) -> None:
    """MC-80: IPv6, router advertisements, DHCP of a client."""
    net, firewall, app = names
    assert (await run(daemon, firewall, "cat /proc/sys/net/ipv6/conf/vif0.0/disable_ipv6"))[1].strip() == "1"
    assert "inet6" not in (await run(daemon, app, "ip -6 addr show dev eth0"))[1]
    look = "ip -br addr; ip route; ip neigh; ip -6 route"
    before = (await run(daemon, firewall, look))[1]
    assert (await run(daemon, app, f"python3 -c '{FORGERIES}'"))[0] == 0
    assert (await run(daemon, firewall, look))[1] == before
    # Nothing of it went on to the next net qube either.
    assert "2001:db8" not in (await run(daemon, net, look))[1]


async def test_vlan_tags_of_a_client_lead_nowhere(daemon: DaemonProcess, names: tuple[str, str, str]) -> None:
    """MC-80: what stands before a packet opens no other way for it."""
    app = names[2]
    own = (await run(daemon, app, "hostname -I"))[1].strip()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((own_address(), 0))
        receiver.settimeout(LIMIT_S)
        arguments = shlex.join([SEND, own, "10.137.77.77", *map(str, receiver.getsockname())])
        assert await run(daemon, app, f"python3 -c {arguments}") == (0, f"{UNTAGGED}\n")
        arrived = [(await asyncio.to_thread(receiver.recv, 64)).decode()]
        receiver.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                arrived.append(receiver.recv(64).decode())
    assert arrived == [UNTAGGED]


ENDLESS = """
import urllib.request
page = urllib.request.urlopen("{}endless", timeout=30)
print(1, flush=True)
# Nobody tells that the other end is gone.
page.fp.raw._sock.settimeout(3)
for _ in page: pass
"""


@asynccontextmanager
async def transfer(daemon: DaemonProcess, qube: str, page: str) -> AsyncIterator[None]:
    """Something large is on its way to a qube; it is cut off in here."""
    await run(daemon, qube, "rm -f /tmp/under-way")
    command = f"python3 -c '{ENDLESS.format(page)}' > /tmp/under-way"
    loading = asyncio.create_task(run(daemon, qube, command))
    async with asyncio.timeout(LIMIT_S):
        while (await run(daemon, qube, "cat /tmp/under-way"))[1].strip() != "1":
            assert not loading.done()
    yield
    async with asyncio.timeout(LIMIT_S):
        assert (await loading)[0] != 0


@pytest.mark.parametrize("which", [0, 1])
async def test_net_qube_killed_in_mid_transfer_serves_its_clients_again(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str, which: int
) -> None:
    """MC-85"""
    app = names[2]
    await until_fetches(daemon, app, page)
    async with transfer(daemon, app, page):
        await daemon.client.kill(names[which])
        assert not await fetches(daemon, app, page, 3)
        await daemon.client.start(names[which])
    await until_fetches(daemon, app, page)


async def test_client_that_is_back_before_its_net_qube_has_looked_is_linked(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    """MC-85: the agent of a busy net qube finds its client as it was, and another interface."""
    net, firewall, app = names
    await until_fetches(daemon, app, page)
    pid = (await run(daemon, net, "systemctl show --property MainPID --value insula-agent"))[1].strip()
    busy = f"sleep 1; kill -STOP {pid}; sleep {BUSY_S}; kill -CONT {pid}"
    assert (await run(daemon, net, f"nohup sh -c '{busy}' > /dev/null 2>&1 &"))[0] == 0
    with pytest.raises(TimeoutError):
        while True:
            async with asyncio.timeout(1.5):
                await run(daemon, net, ":")
    await daemon.client.kill(firewall)
    await daemon.client.start(firewall)
    await until_fetches(daemon, app, page)


async def test_way_out_killed_in_mid_transfer_comes_back_by_itself(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    """MC-118"""
    net, _, app = names
    await until_fetches(daemon, app, page)
    before = (await run(daemon, net, "ip -o addr show dev eth0"))[1]
    async with transfer(daemon, app, page):
        os.kill(int(json.loads((daemon.paths.qube(net) / NOTE).read_text())["pid"]), signal.SIGKILL)
    await until_fetches(daemon, app, page)
    assert (await run(daemon, net, "ip -o addr show dev eth0"))[1] == before


async def test_running_qube_is_moved_cut_off_and_joined_again(
    daemon: DaemonProcess, names: tuple[str, str, str], page: str
) -> None:
    net, firewall, app = names
    await until_fetches(daemon, app, page)

    async def use(netvm: str) -> None:
        await daemon.client.call("admin.vm.property.Set", app, arg="netvm", payload=netvm.encode())

    begin = time.monotonic()
    await use(net)
    await until_fetches(daemon, app, page)
    print(f"moved in {time.monotonic() - begin:.1f} s")
    await use("")
    async with asyncio.timeout(LIMIT_S):
        while (await run(daemon, app, "ls /sys/class/net"))[1].split() != ["lo"]:
            pass
    await use(firewall)
    await until_fetches(daemon, app, page)


async def test_clients_of_one_net_qube_do_not_reach_each_other(
    daemon: DaemonProcess, names: tuple[str, str, str]
) -> None:
    _, firewall, app = names
    other = await make(daemon, f"test-app-{next(_numbers)}", netvm=firewall)
    try:
        await daemon.client.start(other)
        address = (await run(daemon, app, "hostname -I"))[1].strip()
        await listen(daemon, app, 8001)
        assert (await run(daemon, other, connect_command(address, 8001, 3)))[0] != 0
        assert await run(daemon, firewall, connect_command(address, 8001, LIMIT_S)) == (0, "")
    finally:
        await daemon.client.kill(other)
        await daemon.client.remove(other)


async def test_no_machine_monitor_has_a_network_of_its_own(daemon: DaemonProcess, names: tuple[str, str, str]) -> None:
    """Not even that of the net qube which leads outside."""
    for name in names:
        folder = daemon.paths.qube(name)
        pid = int(json.loads((folder / "vmm.status").read_text().splitlines()[1])["child-pid"])
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in lines] == ["lo"]
        assert Path(f"/proc/{pid}/net/route").read_text().count("\n") == 1
