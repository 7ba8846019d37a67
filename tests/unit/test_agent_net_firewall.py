"""The firewall of a net qube's clients: which packets real rules of the kernel let pass, and what happens to names.

The packets go through a network name space of this test's own (user name space, no root needed).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from test_proto_firewall import rules as any_rule

from insula_agent.net.firewall import RETRY, Firewall, dns_servers, names_in, read_clients
from insula_agent.net.firewall_rules import chain_of, closed_table, tables
from insula_agent.net.network import firewall_of
from insula_proto.firewall import Rule, parse_rules

LIMIT_S = 300
ONE, SIX = "10.137.0.4", "fd09:24ef:4179::a89:4"


def rules(*lines: str) -> list[Rule]:
    return parse_rules("\n".join(lines))


def in_namespace(script: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rnpf", "--kill-child", "--mount-proc", "bash", "-c", script], input=text, capture_output=True,
        text=True, check=False, timeout=LIMIT_S, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip


@settings(max_examples=20)
@given(any_rule)
def test_nft_takes_any_rule(rule: Rule) -> None:
    addresses = {} if rule.target is None or rule.target.family else {rule.target.text: ["192.0.2.1", "2001:db8::1"]}
    text = closed_table() + tables({ONE: [rule], SIX: [rule]}, addresses, ["10.139.1.1"])
    taken = in_namespace("nft -f -", text)
    assert taken.returncode == 0, taken.stderr


def test_nft_takes_many_rules() -> None:
    many = rules(*(f"action=accept proto=tcp dst4=10.{n // 256}.{n % 256}.0/24 dstports={n + 1}" for n in range(150)))
    taken = in_namespace("nft -f - && nft list ruleset | grep -c dport", tables({ONE: many}, {}, []))
    assert taken.stdout.strip() == "150", taken.stderr


def test_client_whose_rule_names_an_unknown_host_may_do_nothing() -> None:
    """MC-87"""
    text = tables({ONE: rules("action=accept dst4=192.0.2.1", "action=accept dsthost=nowhere.invalid")}, {}, [])
    chain = text.split(f"chain {chain_of(ONE)} {{")[1].split("}")[0]
    assert "accept" not in chain
    assert "reject" in chain


def test_rules_of_the_other_family_are_left_out() -> None:
    both = rules("action=accept dst4=192.0.2.1", "action=accept dst6=2001:db8::1", "action=accept dsthost=both")
    text = tables({ONE: both, SIX: both}, {"both": ["192.0.2.9", "2001:db8::9"]}, [])
    old, new = text.split("table ip6 qubes-firewall {")[0], text.split("table ip6 qubes-firewall {")[1]
    assert "192.0.2.9" in old
    assert "2001" not in old
    assert "2001:db8::9" in new
    assert "192.0.2" not in new


# packets

_WORLD = r"""
set -e
at() { nsenter -t "$1" -n "${@:2}"; }
own=$(readlink /proc/self/ns/net)
space() {
    unshare -n sleep 1000 & eval "$1=$!"
    until [ "$(readlink /proc/$!/ns/net)" != "$own" ]; do sleep 0.01; done
}
space client; space world
ip link set lo up
ip link add uplink group 1 type veth peer name eth0 netns $world
ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up
at $world ip link set lo up
at $world ip addr add 192.0.2.2/24 dev eth0; at $world ip addr add 192.0.2.3/24 dev eth0; at $world ip link set eth0 up
at $world ip route add 10.137.0.0/16 via 192.0.2.1
ip link add vif0.0 group 2 type veth peer name eth0 netns $client
ip addr add 10.137.0.3/32 dev vif0.0; ip link set vif0.0 up; ip route add 10.137.0.4 dev vif0.0
at $client ip addr add 10.137.0.4/32 dev eth0; at $client ip link set eth0 up
at $client ip route add 10.137.0.3 dev eth0; at $client ip route add default via 10.137.0.3 dev eth0
echo 1 > /proc/sys/net/ipv4/ip_forward
# Else only one refusal a second is told, and the others wait for nothing.
echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
at $world python3 -c "import socket, time
servers = [socket.create_server(('', port)) for port in (53, 80, 443)]
time.sleep(1000)" &
for port in 0035 0050 01BB; do
    until at $world grep -q ":$port 00000000:0000 0A" /proc/net/tcp; do sleep 0.01; done
done
# What is expected to pass has the time that a busy machine needs for it; what is not need not be waited for as long.
limit() { case $expected in $1) echo 30;; *) echo 2;; esac; }
reach() { at $client timeout $(limit $4) bash -c "</dev/tcp/$1/$2" 2>/dev/null && printf 1 > $3 || printf 0 > $3; }
ping_it() {
    at $client busybox ping -c 1 -W $(limit '????1') -q 192.0.2.2 >/dev/null 2>&1 && printf 1 > e || printf 0 > e
}
cd $(mktemp -d)
for rules in "$@"; do
    nft -f "$rules"
    expected=${rules##*.}
    reach 192.0.2.2 80 a '1????' & asked=$!
    reach 192.0.2.2 443 b '?1???' & asked="$asked $!"
    reach 192.0.2.3 443 c '??1??' & asked="$asked $!"
    reach 192.0.2.2 53 d '???1?' & asked="$asked $!"
    ping_it & wait $asked $!
    echo "$(basename $rules .$expected) $(cat a b c d e)"
done
"""
CASES = {
    "closed": (None, "00000"),
    "nothing": ([], "00000"),
    "all": (["action=accept"], "11111"),
    "port": (["action=accept proto=tcp dstports=443"], "01100"),
    "range": (["action=accept proto=tcp dstports=50-100"], "10010"),
    "host": (["action=accept dst4=192.0.2.3"], "00100"),
    "network": (["action=accept dst4=192.0.2.2/31"], "11111"),
    "name": (["action=accept dsthost=two proto=tcp"], "11010"),
    "but-one": (["action=drop dst4=192.0.2.3", "action=accept"], "11011"),
    "first-wins": (["action=accept dst4=192.0.2.3", "action=drop"], "00100"),
    "ping": (["action=accept proto=icmp icmptype=8"], "00001"),
    "udp-only": (["action=accept proto=udp"], "00000"),
    "dns": (["action=accept specialtarget=dns"], "00010"),
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case → whether 192.0.2.2:80, :443, 192.0.2.3:443, 192.0.2.2:53 (tcp) and an echo of 192.0.2.2 were reached."""
    folder = tmp_path_factory.mktemp("rules")
    paths = []
    for name, (lines, expected) in CASES.items():
        clients = {} if lines is None else {ONE: rules(*lines)}
        (folder / f"{name}.{expected}").write_text(tables(clients, {"two": ["192.0.2.2"]}, ["192.0.2.2"]))
        paths.append(str(folder / f"{name}.{expected}"))
    done = in_namespace(f"set -- {' '.join(paths)}\n{_WORLD}")
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_packets_pass_as_the_rules_say(passed: dict[str, str], case: str) -> None:
    assert passed[case] == CASES[case][1]


# files and names


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / ONE).write_text("action=accept dsthost=example.org\naction=drop\n")
    (tmp_path / f"{ONE}.new").write_text("half")
    (tmp_path / "10.137.0.5").write_text("action=nonsense\n")
    yield tmp_path


def test_file_that_is_not_understood_blocks_its_client_only(folder: Path) -> None:
    clients = read_clients(str(folder))
    assert clients["10.137.0.5"] is None
    assert [rule.action for rule in clients[ONE] or ()] == ["accept", "drop"]
    assert names_in(clients) == ["example.org"]


def test_rules_are_loaded_before_names_are_known_and_again_after(folder: Path) -> None:
    loaded: list[str] = []

    def resolve(name: str) -> list[str]:
        # What was known is carried out already.
        assert len(loaded) == 1
        assert name == "example.org"
        return ["192.0.2.7"]

    firewall = Firewall(str(folder), loaded.append, resolve)
    assert firewall.update() > RETRY
    assert "192.0.2.7" not in loaded[0]
    assert "192.0.2.7" in loaded[1]
    firewall.update()
    assert len(loaded) == 2


def test_name_server_that_is_away_takes_no_address_back_and_is_asked_again_soon(folder: Path) -> None:
    loaded: list[str] = []
    answers = iter([["192.0.2.7"], [], ["192.0.2.8"]])
    now = [0.0]
    firewall = Firewall(str(folder), loaded.append, lambda _: next(answers), lambda: now[0])
    now[0] += firewall.update()
    assert firewall.update() == RETRY
    assert "192.0.2.7" in loaded[-1]
    now[0] += RETRY
    firewall.update()
    assert "192.0.2.8" in loaded[-1]


def test_rules_that_change_do_not_wait_until_all_names_are_looked_up(folder: Path) -> None:
    """However long these take: what is forbidden is forbidden after the next of them (MC-87)."""
    loaded: list[str] = []
    (folder / ONE).write_text("".join(f"action=accept dsthost={name}.invalid\n" for name in "abc"))
    asked: list[str] = []
    told = iter([True, False, False])

    def resolve(name: str) -> list[str]:
        asked.append(name)
        (folder / "10.137.0.5").write_text("action=drop dst4=192.0.2.99\n")
        return []

    firewall = Firewall(str(folder), loaded.append, resolve, is_told=lambda: next(told))
    assert firewall.update() == 0.0
    assert asked == ["a.invalid"]
    assert "192.0.2.99" not in loaded[-1]
    assert firewall.update() > 0
    assert "192.0.2.99" in loaded[-1]
    assert asked == ["a.invalid", "b.invalid", "c.invalid"]


def test_client_that_is_gone_is_in_no_table(folder: Path) -> None:
    loaded: list[str] = []
    firewall = Firewall(str(folder), loaded.append, lambda _: ["192.0.2.7"])
    firewall.update()
    (folder / ONE).unlink()
    firewall.update()
    assert ONE not in loaded[-1]


def test_name_servers_are_read_and_nonsense_is_not() -> None:
    assert dns_servers("nameserver 10.139.1.1\nnameserver nonsense\nsearch x\nnameserver\n") == ["10.139.1.1"]


def test_rules_in_keys_are_complete_or_none() -> None:
    keys = {
        "/insula-firewall/3": b"2",
        "/insula-firewall/3/00": b"action=accept\n",
        "/insula-firewall/3/01": b"action=drop\n",
    }
    assert firewall_of(keys, 3) == "action=accept\naction=drop\n"
    assert firewall_of({**keys, "/insula-firewall/3": b"3"}, 3) is None
    assert firewall_of({**keys, "/insula-firewall/3": b""}, 3) is None
    assert firewall_of({}, 3) is None
