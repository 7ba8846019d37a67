"""A VPN qube between a client and the world: what leaves it, recorded where it arrives, as its tunnel comes and goes.

The client tries everything all the time, and the world would answer all of it. The configurations are those of
``examples/vpn``.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.rpc.client import RpcError
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
    state_of_network,
)

LIMIT_S = 240.0
"""For a tunnel to be made, under software emulation on a busy machine."""
NAMES = WORLD, VPN, APP = "test-world", "test-vpn", "test-vpn-app"
EXAMPLES = Path(__file__).parents[2] / "examples" / "vpn"
WIREGUARD = Packet("udp", ENDPOINT, 51820)
OPENVPN = Packet("udp", ENDPOINT, 1194)
ANNOUNCEMENT = Packet("ethertype 0x8035", "", 0)
"""A machine monitor of a fork says where its hardware address is now (RARP, RFC 903); no guest has a part in it."""


class Chain:
    """``app`` behind ``vpn`` behind the world."""

    def __init__(self, daemon: DaemonProcess, world: World) -> None:
        self.daemon = daemon
        self.world = world

    async def fetches(self, host: str = WEB, limit_s: float = 3) -> bool:
        result = await run(self.daemon, APP, fetch_command(host, limit_s))
        return result.code == 0 and ANSWER in result.text

    async def until_fetches(self, host: str = WEB) -> None:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                while not await self.fetches(host):
                    pass
        except TimeoutError as error:
            state = await state_of_network(self.daemon, *NAMES)
            far_end = await self.in_world("tail -n 20 /run/world/openvpn.log || true")
            passed_s = time.monotonic() - begin
            raise AssertionError(f"no page from {host} for {passed_s:.0f} s ({error!r})\n{state}\n{far_end}") from None

    async def in_vpn(self, command: str, stdin: str = "") -> str:
        result = await run(self.daemon, VPN, command, user="root", stdin=stdin.encode())
        assert result.code == 0, result.err
        return result.text

    async def in_world(self, command: str, stdin: str = "") -> str:
        result = await run(self.daemon, WORLD, command, user="root", stdin=stdin.encode())
        assert result.code == 0, result.err
        return result.text

    async def left(self) -> set[Packet]:
        """What kinds of packets leave the VPN while the client tries everything, and have since the last time."""
        await rounds_of_noise(self.daemon, APP)
        return set(await self.world.packets())

    async def restart_agent(self) -> None:
        """Have the qube's rules loaded anew, with clients there and a tunnel up."""
        before = await self.agent()
        # Who asks for it ends with it.
        await run(self.daemon, VPN, "systemctl --no-block restart insula-agent; sleep 60", user="root")
        async with asyncio.timeout(LIMIT_S):
            while await self.agent() == before:
                pass

    async def agent(self) -> str:
        """Number of its process; empty: it is not there just now."""
        try:
            result = await run(self.daemon, VPN, "systemctl show --property MainPID --value insula-agent", user="root")
        except RpcError:
            return ""
        return result.text

    async def configure(self, name: str, text: str) -> None:
        """Give the VPN this configuration alone, and have it used."""
        # (On the disk: the qube is killed later.)
        await self.in_vpn(f"mkdir -p /rw/config/vpn; rm -f /rw/config/vpn/*; cat > /rw/config/vpn/{name}; sync", text)
        await self.in_vpn("systemctl restart insula-vpn")


async def insula(daemon: DaemonProcess, *arguments: str) -> None:
    """Run the command as a person would."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), *arguments, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=daemon.environment,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def make_chain(daemon: DaemonProcess) -> Chain:
    world = await make_world(daemon, WORLD)
    ends = [f"udp:{ENDPOINT}:{packet.port}" for packet in (WIREGUARD, OPENVPN)]
    options = [word for end in ends for word in ("--endpoint", end)]
    await insula(daemon, "create", VPN, "--role", "vpn", "--prop", f"netvm={WORLD}", *options)
    await insula(daemon, "create", APP, "--label", "blue", "--prop", f"netvm={VPN}")
    await daemon.client.start(APP)
    await open_world(world)
    await start_program(daemon, APP, "noise", NOISE)
    return Chain(daemon, world)


@pytest.fixture(scope="module")
def chain(daemon: DaemonProcess) -> Iterator[Chain]:
    try:
        yield asyncio.run(make_chain(daemon))
    finally:
        asyncio.run(discard(daemon, *reversed(NAMES)))


async def test_without_a_tunnel_nothing_leaves(chain: Chain) -> None:
    """MC-84: not by the routes, and, where somebody has taken these away, not by the rules."""
    assert not await chain.fetches()
    assert await chain.left() == set()
    # What its net qube lets it reach is another lock: opened, so that this one is seen to hold.
    await insula(chain.daemon, "firewall", VPN, "--reset")
    await chain.in_vpn("ip rule delete priority 100")
    assert await chain.left() == set()
    refused = "nft list chain inet insula-vpn forward | grep 'iifgroup 2 counter' | grep -cv 'packets 0 '"
    assert await chain.in_vpn(refused) == "1"
    # The world would have answered.
    await chain.in_vpn("nft delete table inet insula-vpn")
    await chain.until_fetches()
    assert Packet("tcp", WEB, 80) in await chain.left()
    await chain.daemon.client.kill(VPN)
    await chain.daemon.client.start(VPN)
    await chain.world.packets()
    await chain.world.asked()


async def wireguard(chain: Chain) -> None:
    """The example, with an other end in the world."""
    far = await chain.in_world("cd /run/world && wg genkey | tee key | wg pubkey")
    near = await chain.in_world("wg genkey")
    near_public = await chain.in_world("wg pubkey", near)
    await chain.in_world(
        "ip link add far type wireguard && wg set far listen-port 51820 private-key /run/world/key "
        f"peer {near_public} allowed-ips 10.8.0.2/32 && ip address add 10.8.0.1/24 dev far && ip link set far up"
    )
    text = (EXAMPLES / "wireguard.conf").read_text()
    text = text.replace("PRIVATE_KEY_OF_THIS_END", near).replace("PUBLIC_KEY_OF_THE_OTHER_END", far)
    await chain.configure("provider.conf", text)


def certificate(folder: Path, name: str, usage: str) -> tuple[str, str, str]:
    """A certificate of its own, its key, its fingerprint."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"

    def openssl(*arguments: str | Path) -> str:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout

    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-addext", f"extendedKeyUsage={usage}", "-addext", "keyUsage=digitalSignature",
        "-keyout", key, "-out", cert,
    )  # fmt: skip
    fingerprint = openssl("x509", "-in", cert, "-noout", "-sha256", "-fingerprint").strip().partition("=")[2]
    return cert.read_text(), key.read_text(), fingerprint


async def openvpn(chain: Chain, folder: Path) -> None:
    """The example, with an other end in the world."""
    far_cert, far_key, far_print = certificate(folder, "far", "serverAuth")
    near_cert, near_key, near_print = certificate(folder, "near", "clientAuth")
    server = f"""dev far-tun
dev-type tun
proto udp
local {ENDPOINT}
port 1194
topology subnet
server 10.9.0.0 255.255.255.0
dh none
keepalive 5 20
push "dhcp-option DNS 10.9.0.1"
push "redirect-gateway def1"
<peer-fingerprint>
{near_print}
</peer-fingerprint>
<cert>
{far_cert}</cert>
<key>
{far_key}</key>
"""
    await chain.in_world("cat > /run/world/server.ovpn", server)
    await chain.in_world("modprobe tun; nohup openvpn --config /run/world/server.ovpn > /run/world/openvpn.log 2>&1 &")
    text = (EXAMPLES / "openvpn.ovpn").read_text().replace("FINGERPRINT_OF_THE_OTHER_END", far_print)
    text = text.replace("CERTIFICATE_OF_THIS_END\n", near_cert).replace("PRIVATE_KEY_OF_THIS_END\n", near_key)
    await chain.configure("provider.ovpn", text)


async def test_tunnels_that_come_and_go_end_no_command(chain: Chain) -> None:
    before = await chain.agent()
    tunnel = "ip link add one type wireguard && ip link set one group 3 up && ip link delete one"
    await chain.in_vpn(f"for _ in $(seq 12); do {tunnel} || exit; done")
    assert await chain.agent() == before


async def stays_in_tunnel(chain: Chain, tunnel: Packet, crash: str) -> None:
    """Through everything that may happen to a tunnel which is up, nothing but it leaves the qube."""
    await chain.until_fetches()
    # Names are asked for behind the tunnel, by clients and by the qube itself.
    await chain.until_fetches("www.example.org")
    await chain.in_vpn("getent ahostsv4 own.example.org")
    assert all(address.startswith(("10.8.", "10.9.")) for address in await chain.world.asked())
    assert await chain.left() == {tunnel}
    # stopped
    await chain.in_vpn("systemctl stop insula-vpn")
    assert not await chain.fetches()
    await chain.world.packets()
    assert (await run(chain.daemon, VPN, "timeout 3 getent ahostsv4 own.example.org", user="root")).code != 0
    assert await chain.left() == set()
    # started, and broken off
    await chain.in_vpn("systemctl start insula-vpn")
    await chain.until_fetches()
    await chain.in_vpn(crash)
    assert await chain.left() <= {tunnel}
    await chain.until_fetches()
    # its rules loaded anew
    await chain.restart_agent()
    await chain.until_fetches()
    assert await chain.left() == {tunnel}
    # the whole qube
    await chain.daemon.client.kill(VPN)
    await chain.daemon.client.start(VPN)
    await chain.until_fetches()
    assert await chain.left() - {ANNOUNCEMENT} == {tunnel}
    assert all(address.startswith(("10.8.", "10.9.")) for address in await chain.world.asked())


async def test_nothing_leaves_beside_wireguard(chain: Chain) -> None:
    """MC-84"""
    await wireguard(chain)
    await stays_in_tunnel(chain, WIREGUARD, "ip link delete dev tunnel0")


async def test_nothing_leaves_beside_openvpn(chain: Chain, tmp_path: Path) -> None:
    """MC-84"""
    await openvpn(chain, tmp_path)
    await chain.left()  # what went through the tunnel of the test before
    await stays_in_tunnel(chain, OPENVPN, "kill -9 $(systemctl show --property MainPID --value insula-vpn)")
