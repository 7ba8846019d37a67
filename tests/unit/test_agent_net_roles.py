"""A VPN's and a Tor gateway's rules: what the kernel makes of them for real packets, at every stage of a tunnel.

The packets cross network name spaces of this test's own (user name space, no root needed): one is the net qube, one its
client, one the world behind its uplink, one the far end of its tunnel. Both count what reaches them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from insula_agent.net import roles
from insula_agent.net.interfaces import first_of_group, name_servers
from insula_agent.net.network import client_commands
from insula_agent.net.rules import Client, ruleset, update

CLIENT = Client(0, b"00:16:3e:5e:6c:00 10.137.0.4")
LIMIT_S = 300

_SEEN = """
table inet seen {
  chain arrived {
    type filter hook prerouting priority raw; policy accept;
    iifname "eth0" meta nfproto ipv4 counter
  }
}
"""
_WORLD = r"""
set -e
at() { nsenter -t "$1" -n "${@:2}"; }
own=$(readlink /proc/self/ns/net)
space() {
    unshare -n sleep 1000 & eval "$1=$!"
    until [ "$(readlink /proc/$!/ns/net)" != "$own" ]; do sleep 0.01; done
}
space client; space world; space far
ip link set lo up
ip link add uplink group 1 type veth peer name eth0 netns $world
ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up; ip route add default via 192.0.2.2
for other in $world $far; do
    at $other ip link set lo up
    at $other ip addr add 198.51.100.2/32 dev lo
    at $other nft -f seen
done
at $world ip addr add 192.0.2.2/24 dev eth0; at $world ip link set eth0 up; at $world ip route add default via 192.0.2.1
ip link add eth0 type veth peer name eth0 netns $client
at $client ip link set eth0 address 00:16:3e:5e:6c:00 up
at $client ip addr add 10.137.0.4/32 dev eth0
at $client ip neigh add 10.137.0.3 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent
at $client ip route add 10.137.0.3 dev eth0
at $client ip route add default via 10.137.0.3 dev eth0 onlink
nft -f rules
ip -batch routing
echo 1 > /proc/sys/net/ipv4/ip_forward
ip -batch links
# Until its neighbours know each other, what they say is not a client's; then the count begins.
ping 2>/dev/null || true
busybox ping -c 1 -W 1 -q 192.0.2.2 > /dev/null || true
tunnel() {
    ip link add tunnel0 type veth peer name eth0 netns $far
    ip addr add 10.8.0.2/24 dev tunnel0; ip link set tunnel0 up
    at $far ip addr add 10.8.0.1/24 dev eth0; at $far ip link set eth0 up; at $far ip route add default via 10.8.0.2
    # Of a real tunnel nobody asks for addresses.
    ip neigh add 198.51.100.2 lladdr $(at $far ip -o link show eth0 | sed 's/.*ether \([^ ]*\).*/\1/') dev tunnel0
    ip link set tunnel0 group 3
    ip -batch route
}
# With the seconds that may pass: what is expected to come has the time that a busy machine needs for it.
own_question() { timeout 60 python3 ask.py 10.139.1.1 53 ${1:-2} 2> /dev/null || echo no; }
reaches() { at $client busybox ping -c 1 -W ${1:-1} -q 198.51.100.2 > /dev/null 2>&1 && echo yes || echo no; }
seen() { at $world nft list chain inet seen arrived | sed -n 's/.*packets \([0-9]*\).*/\1/p'; }
before=$(seen)
leaked() { echo $(($(seen) - before)); }
set +e
"""


def in_world(folder: Path, services: list[str], questions: dict[str, str]) -> dict[str, str]:
    """Answers to questions, asked in order."""
    (folder / "rules").write_text(ruleset([CLIENT], [], {}) + roles.ruleset(services).replace(roles.TOR_USER, "root"))
    (folder / "links").write_text("\n".join(client_commands(CLIENT, "eth0", "10.137.0.3")) + "\n")
    (folder / "seen").write_text(_SEEN)
    (folder / "ask.py").write_text(_ASK)
    (folder / "names.py").write_text(_NAMES)
    (folder / "dns").write_text(roles.tunnel_dns(["10.8.0.1"]))
    (folder / "routing").write_text("\n".join(roles.routing() if roles.VPN in services else ()) + "\n")
    (folder / "route").write_text(roles.tunnel_route("tunnel0") + "\n")
    asked = "".join(f'echo "{name}=$({command})"\n' for name, command in questions.items())
    done = subprocess.run(
        ["unshare", "-rnpf", "--kill-child", "--mount-proc", "bash", "-c", f"cd {folder}\n{_WORLD}\n{asked}"],
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_vpn_lets_clients_through_its_tunnel_and_nowhere_else_at_every_stage(tmp_path: Path) -> None:
    """MC-84"""
    answers = in_world(
        tmp_path,
        [roles.VPN],
        {
            "before": "reaches",
            "before, own question": "own_question",
            "before, leaked": "leaked",
            "up": "tunnel; reaches 30",
            "up, own question": "(at $far python3 names.py > /dev/null 2>&1 &); "
            "until at $far grep -q :0035 /proc/net/udp; do sleep 0.01; done; nft -f dns; own_question 30",
            "up, leaked": "leaked",
            "down": "ip link set tunnel0 down; reaches",
            "down, own question": "own_question",
            "down, leaked": "leaked",
            "up again": "ip link set tunnel0 up; ip -batch route; reaches 30",
            "gone": "ip link delete tunnel0; reaches",
            "gone, own question": "own_question",
            "gone, leaked": "leaked",
            "without the routes": "ip rule delete priority 100; reaches",
            "without the routes, own question": "own_question",
            "without the routes, leaked": "leaked",
            "with an accepting rule of the user": "nft add rule ip qubes custom-forward accept; reaches",
            "with an accepting rule of the user, leaked": "leaked",
            "its own complaints": "busybox ping -c 1 -W 1 -q 198.51.100.2 > /dev/null && echo yes || echo no",
            "its own complaints, leaked": "leaked",
            "without the role": "nft delete table inet insula-vpn; reaches 30",
        },
    )
    reached = {name for name, answer in answers.items() if answer == "yes"}
    assert reached == {"up", "up again", "without the role"}
    # Its own questions go through the tunnel, to the name server behind it, and never another way.
    own = {name: answer for name, answer in answers.items() if name.endswith("own question")}
    assert own.pop("up, own question") == "an answer"
    assert set(own.values()) == {"no"}
    assert {answer for name, answer in answers.items() if name.endswith("leaked")} == {"0"}


def test_tor_gateway_ends_tcp_and_names_itself_and_passes_nothing_on(tmp_path: Path) -> None:
    (tmp_path / "tor.py").write_text(_TOR)
    asking = "at $client timeout 60 python3 -c"
    answers = in_world(
        tmp_path,
        [roles.TOR],
        {
            "listening": "python3 tor.py > /dev/null 2>&1 & "
            "until grep -q :14B4 /proc/net/udp && grep -q :1F40 /proc/net/tcp; do :; done; echo yes",
            "icmp": "reaches",
            "icmp, leaked": "leaked",
            "tcp": f"{asking} '{_CONNECT}' 198.51.100.2 80 30",
            "tcp to the gateway's SOCKS port": f"{asking} '{_CONNECT}' 10.137.0.3 9050 30",
            "tcp to the SOCKS port of a Whonix gateway": f"{asking} '{_CONNECT}' 10.152.152.10 9050 30",
            "tcp to another one of these": f"{asking} '{_CONNECT}' 10.152.152.10 9150 30",
            "tcp to its control port": f"{asking} '{_CONNECT}' 10.152.152.10 9051 30",
            "tcp to another of its ports": f"{asking} '{_CONNECT}' 10.137.0.3 8000 2 2> /dev/null || echo no",
            "tcp to the transparent port itself": f"{asking} '{_CONNECT}' 10.137.0.3 9040 2 2> /dev/null || echo no",
            "name": f"{asking} '{_ASK}' 10.139.1.1 53 30",
            "udp": f"{asking} '{_ASK}' 198.51.100.2 9999 2 2> /dev/null || echo no",
            "leaked": "leaked",
            "own udp": "python3 -c 'import socket; s = socket.socket(type=2); "
            's.sendto(b"x", ("192.0.2.2", 53))\' 2> /dev/null && echo yes || echo no',
            "own, leaked": "leaked",
        },
    )  # fmt: skip
    assert answers == {
        "listening": "yes",
        "icmp": "no",
        "icmp, leaked": "0",
        "tcp": "9040",
        "tcp to the gateway's SOCKS port": "9050",
        "tcp to the SOCKS port of a Whonix gateway": "9050",
        "tcp to another one of these": "9050",
        # As to any address: tor refuses those within.
        "tcp to its control port": "9040",
        "tcp to another of its ports": "no",
        "tcp to the transparent port itself": "no",
        "name": "5300",
        "udp": "no",
        "leaked": "0",
        "own udp": "no",
        "own, leaked": "0",
    }


_NAMES = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.8.0.1", 53))
while True: server.sendto(b"an answer", server.recvfrom(100)[1])
"""
_TOR = """
import socket, threading
def serve(port):
    server = socket.create_server(("0.0.0.0", port))
    while True: server.accept()[0].sendall(str(port).encode())
for port in (9040, 9050, 8000): threading.Thread(target=serve, args=(port,)).start()
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("0.0.0.0", 5300))
while True: names.sendto(b"5300", names.recvfrom(100)[1])
"""
_CONNECT = (
    "import socket, sys; seconds = int(sys.argv[3]); "
    "print(socket.create_connection((sys.argv[1], int(sys.argv[2])), seconds).recv(9).decode() or 1 / 0)"
)
_ASK = (
    "import socket, sys; s = socket.socket(type=2); s.settimeout(int(sys.argv[3]));"
    ' s.sendto(b"?", (sys.argv[1], int(sys.argv[2])));'
    " print(s.recv(9).decode())"
)


@pytest.mark.parametrize(
    "services", [list(some) for count in range(3) for some in itertools.combinations((roles.VPN, roles.TOR), count)]
)
def test_nft_takes_the_rules_of_any_roles_twice(services: list[str]) -> None:
    text = ruleset([CLIENT], [], {}) + roles.ruleset(services).replace(roles.TOR_USER, "root")
    if roles.VPN in services:
        text += roles.tunnel_dns(["10.8.0.1"]) + roles.tunnel_dns(["10.8.0.1", "10.8.0.2"]) + roles.tunnel_dns([])
    taken = subprocess.run(
        ["unshare", "-rn", "nft", "-f", "-"], input=text + text + update([], [], {}), capture_output=True, text=True,
        check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr


def test_roles_are_those_of_the_services() -> None:
    assert roles.names({"qubes-network", "qubes-firewall"}) == []
    assert roles.ruleset(["qubes-network"]) == ""
    assert roles.names({"tor-gateway", "vpn-gateway"}) == ["vpn-gateway", "tor-gateway"]
    assert roles.is_closed({"tor-gateway"})
    assert not roles.is_closed({"vpn-gateway"})


def test_tunnel_is_the_interface_of_its_group_that_is_up(tmp_path: Path) -> None:
    for name, group, flags in (("eth0", 1, 0x1003), ("tun0", 3, 0x1002), ("wg0", 3, 0x91), ("wg1", 3, 0x91)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "netdev_group").write_text(f"{group}\n")
        (folder / "flags").write_text(f"{flags:#x}\n")
    (tmp_path / "bonding_masters").touch()
    assert first_of_group(3, str(tmp_path)) == "wg0"
    assert first_of_group(4, str(tmp_path)) is None
    assert first_of_group(3, str(tmp_path / "absent")) is None


def test_name_servers_are_read_from_resolv_conf() -> None:
    text = "# none\nnameserver 10.8.0.1\nsearch x\nnameserver fd00::1\nnameserver  10.8.0.2\nnameserver\n"
    assert name_servers(text) == ["10.8.0.1", "10.8.0.2"]
