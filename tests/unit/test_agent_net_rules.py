"""Rules of a net qube: their text for any clients, and what the kernel makes of them for real packets.

The packets cross network name spaces of this test's own (user name space, no root needed): one is the net qube, two are
its clients, one is the world outside.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.testing.vlan_frames import ARP_NETWORK, RECEIVE, SEND, UNTAGGED
from insula_agent.net.interfaces import NetworkError
from insula_agent.net.network import client_commands, clients_of, link_mac
from insula_agent.net.rules import Client, ruleset, update
from insula_proto.forward import Forward

ONE = Client(0, b"00:16:3e:5e:6c:00 10.137.0.4")
TWO = Client(1, b"00:16:3e:5e:6c:00 10.137.0.5 fd09:24ef:4179::a89:5")
LIMIT_S = 300


# texts


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00:16:3e:5e:6c:00",
        b"10.137.0.4 00:16:3e:5e:6c:00",
        b"00:16:3e:5e:6c:00 10.137.0.4 ",
        b"00:16:3e:5e:6c:00  10.137.0.4",
        b'00:16:3e:5e:6c:00 10.137.0.4" }; flush ruleset',
        b"00:16:3e:5e:6c:00 10.137.0.4 fd00::1 fd00::2",
    ],
)
def test_value_that_is_no_client_is_refused(value: bytes) -> None:
    with pytest.raises(NetworkError):
        Client(0, value)


def test_link_whose_value_is_wrong_has_nobody_behind_it() -> None:
    keys = {"/insula-link/0": b"nonsense", "/insula-link/x": b"", "/insula-link/3": b"00:16:3e:5e:6c:00 10.137.0.9"}
    assert [(number, client.ip) for number, client in clients_of(keys).items()] == [(3, "10.137.0.9")]


@given(st.binary(max_size=60))
def test_any_value_is_a_client_or_refused(value: bytes) -> None:
    try:
        client = Client(0, value)
    except NetworkError:
        return
    assert value.startswith(f"{client.mac} ".encode())


def test_interface_of_a_client_is_renamed_while_it_is_down_and_knows_its_neighbour() -> None:
    lines = client_commands(ONE, "eth1", "10.137.0.3")
    assert lines[:2] == ["link set dev eth1 down", "link set dev eth1 name vif0.0"]
    assert "neighbour replace 10.137.0.4 lladdr 00:16:3e:5e:6c:00 dev vif0.0 nud permanent" in lines
    assert not any("name" in line for line in client_commands(ONE, "vif0.0", "10.137.0.3"))


def test_number_of_a_link_is_in_its_address() -> None:
    assert link_mac(0) == "fe:ff:ff:00:00:00"
    assert link_mac(258) == "fe:ff:ff:00:01:02"


def in_namespace(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rn", *command], input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )


@settings(max_examples=5)
@given(
    st.lists(
        st.tuples(st.ip_addresses(v=4), st.none() | st.ip_addresses(v=6)), max_size=16, unique_by=lambda pair: pair[0]
    ),
    st.lists(st.ip_addresses(v=4), max_size=2),
)
def test_nft_takes_the_rules_of_any_clients(pairs: list[tuple[object, object]], dns: list[object]) -> None:
    clients = [
        Client(number, f"00:16:3e:5e:6c:00 {ip}{'' if ip6 is None else f' {ip6}'}".encode())
        for number, (ip, ip6) in enumerate(pairs)
    ]
    servers = [str(address) for address in dns]
    forwards = {number: [Forward("udp", 53, 5353), Forward("tcp", 80 + number, 80)] for number in range(0, 16, 2)}
    text = ruleset(clients, servers, forwards) + update(clients[1:], [], {}) + update(clients, servers, forwards)
    taken = in_namespace("nft", "-f", "-", text=text)
    assert taken.returncode == 0, taken.stderr


def test_what_people_put_into_their_chains_stays_when_clients_change() -> None:
    script = "nft -f rules && nft add rule ip qubes custom-forward counter drop && nft -f change && nft list ruleset"
    rules, change = ruleset([ONE], [], {}), update([TWO], ["10.0.2.3"], {})
    listed = in_namespace(
        "sh", "-c", f"cd $(mktemp -d) && cat > both && {split_of(rules)} && {script}", text=rules + change
    )
    assert listed.returncode == 0, listed.stderr
    custom = listed.stdout.split("chain custom-forward {")[1].split("}")[0]
    assert "drop" in custom
    assert "10.137.0.4" not in listed.stdout
    assert listed.stdout.count("dnat to 10.0.2.3") == 4


def split_of(first: str) -> str:
    """Shell that takes a text apart which came through one pipe."""
    size = len(first.encode())
    return f"head -c {size} both > rules && tail -c +{size + 1} both > change"


# packets

_WORLD = r"""
set -e
at() { nsenter -t "$1" -n "${@:2}"; }
own=$(readlink /proc/self/ns/net)
space() {
    unshare -n sleep 1000 & eval "$1=$!"
    until [ "$(readlink /proc/$!/ns/net)" != "$own" ]; do sleep 0.01; done
}
space one; space two; space world
ip link set lo up
ip link add uplink group 1 type veth peer name eth0 netns $world
ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up
at $world ip addr add 192.0.2.2/24 dev eth0; at $world ip link set eth0 up
at $world ip route add 10.137.0.0/16 via 192.0.2.1
for pair in "0 $one 10.137.0.4" "1 $two 10.137.0.5"; do
    set -- $pair
    ip link add eth$1 type veth peer name eth0 netns $2
    at $2 ip link set lo up
    at $2 ip link set eth0 address 00:16:3e:5e:6c:00 up
    at $2 ip addr add $3/32 dev eth0
    at $2 ip neigh add 10.137.0.3 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent
    at $2 ip route add 10.137.0.3 dev eth0
    at $2 ip route add default via 10.137.0.3 dev eth0 onlink
done
nft -f "$1_rules"
echo 1 > /proc/sys/net/ipv4/ip_forward
ip -batch "$1_links"
# With the seconds that may pass: what is expected to come has the time that a busy machine needs for it.
ping_from() { at "$1" busybox ping -c 1 -W ${3:-1} -q "$2" > /dev/null 2>&1 && echo yes || echo no; }
"""
CONNECT = (
    "timeout 60 python3 -c 'import socket; socket.create_connection((\"{}\", {}), {})' 2>/dev/null "
    "&& echo yes || echo no"
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """All questions asked of one small world, by name."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "rules").write_text(ruleset([ONE, TWO], [], {0: [Forward("tcp", 8080, 8001)]}))
    links = [*client_commands(ONE, "eth0", "10.137.0.3"), *client_commands(TWO, "eth1", "10.137.0.3")]
    (folder / "links").write_text("\n".join(links) + "\n")
    (folder / "send.py").write_text(SEND)
    (folder / "receive.py").write_text(RECEIVE)
    script = _WORLD.replace('"$1_rules"', f"{folder}/rules").replace('"$1_links"', f"{folder}/links")
    questions = {
        "client reaches the world": "ping_from $one 192.0.2.2 30",
        "client reaches its net qube": "ping_from $one 10.137.0.3 30",
        "client reaches another": "ping_from $one 10.137.0.5",
        "world reaches a client": "ping_from $world 10.137.0.4",
        "net qube reaches a client": "busybox ping -c 1 -W 30 -q 10.137.0.4 > /dev/null && echo yes || echo no",
        "spoofed source": "at $one ip addr add 10.137.0.5/32 dev lo; "
        "at $one busybox ping -c 1 -W 1 -q -I 10.137.0.5 192.0.2.2 > /dev/null 2>&1 && echo yes || echo no",
        "spoofed hardware address": "at $two ip link set eth0 address 00:16:3e:5e:6c:99; "
        "ip neigh replace 10.137.0.5 lladdr 00:16:3e:5e:6c:99 dev vif1.0 nud permanent; ping_from $two 192.0.2.2; "
        "at $two ip link set eth0 address 00:16:3e:5e:6c:00; "
        "ip neigh replace 10.137.0.5 lladdr 00:16:3e:5e:6c:00 dev vif1.0 nud permanent",
        "own hardware address again": "ping_from $two 192.0.2.2 30",
        "dropped as spoofed": (
            "echo $(nft list chain ip qubes antispoof | sed -n 's/.*counter packets \\([0-9]*\\).*/\\1/p')"
        ),
        "client's address from outside": "at $world ip addr add 10.137.0.4/32 dev lo; "
        "at $world busybox ping -c 1 -W 1 -q -I 10.137.0.4 192.0.2.1 > /dev/null 2>&1 && echo yes || echo no",
        "packets with VLAN tags": (
            f"echo 1 > /proc/sys/net/ipv4/conf/vif0.0/proxy_arp; ip route add {ARP_NETWORK}.0/24 dev uplink; "
            "at $world python3 receive.py 192.0.2.2 9000 & receiver=$!; "
            "at $world sh -c 'until grep -q :2328 /proc/net/udp; do :; done'; "
            "at $one python3 send.py 10.137.0.4 10.137.0.5 192.0.2.2 9000 > asked; wait $receiver"
        ),
        "questions with VLAN tags": "cat asked",
        "client reaches a service of the net qube": (
            "(python3 -m http.server 8000 >/dev/null 2>&1 & echo $! > pid); "
            "until grep -q :1F40 /proc/net/tcp; do :; done; "
            "at $one timeout 60 python3 -c "
            "'import socket; socket.create_connection((\"10.137.0.3\", 8000), 1)' 2>/dev/null "
            "&& echo yes || echo no; kill $(cat pid)"
        ),
        "world reaches a forwarded port": (
            "(at $one python3 -m http.server 8001 >/dev/null 2>&1 & echo $! > pid); "
            "at $one sh -c 'until grep -q :1F41 /proc/net/tcp; do :; done'; "
            f"at $world {CONNECT.format('192.0.2.1', 8080, 30)}"
        ),
        "world reaches another port": f"at $world {CONNECT.format('192.0.2.1', 8001, 1)}",
        "world reaches the client's port itself": f"at $world {CONNECT.format('10.137.0.4', 8001, 1)}",
        "other client reaches the forwarded port": f"at $two {CONNECT.format('10.137.0.3', 8080, 1)}",
        "forwarding that is taken back": (
            f"nft -f {folder}/closed; at $world {CONNECT.format('192.0.2.1', 8080, 1)}; kill $(cat pid)"
        ),
        "client that is taken off": f"nft -f {folder}/without; ping_from $one 192.0.2.2",
    }
    (folder / "closed").write_text(update([ONE, TWO], [], {}))
    (folder / "without").write_text(update([TWO], [], {}))
    asked = "".join(f'echo "{name}=$({command})"\n' for name, command in questions.items())
    done = subprocess.run(
        ["unshare", "-rnpf", "--kill-child", "--mount-proc", "bash", "-c", f"{script}\ncd {folder}\nset +e\n{asked}"],
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("client reaches the world", "yes"),
        ("client reaches its net qube", "yes"),
        ("net qube reaches a client", "yes"),
        ("client reaches another", "no"),
        ("world reaches a client", "no"),
        ("spoofed source", "no"),
        ("spoofed hardware address", "no"),
        ("own hardware address again", "yes"),
        ("dropped as spoofed", "1 1"),
        ("packets with VLAN tags", UNTAGGED),
        ("questions with VLAN tags", UNTAGGED),
        ("client's address from outside", "no"),
        ("client reaches a service of the net qube", "no"),
        ("world reaches a forwarded port", "yes"),
        ("world reaches another port", "no"),
        ("world reaches the client's port itself", "no"),
        ("other client reaches the forwarded port", "no"),
        ("forwarding that is taken back", "no"),
        ("client that is taken off", "no"),
    ],
)
def test_packets_go_where_they_may(answers: dict[str, str], question: str, answer: str) -> None:
    """MC-80, MC-81"""
    assert answers[question] == answer
