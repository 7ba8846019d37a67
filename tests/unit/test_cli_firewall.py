"""``insula firewall`` and ``insula net`` against a real Admin API with a fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as made:
        yield made


def lines(cli: Cli) -> list[str]:
    return [row["rule"] for row in cli.run("firewall", "work", "--json").json]


def test_new_qube_may_reach_anything(cli: Cli) -> None:
    ran = cli.run("firewall", "work")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["NO", "ACTION", "TO", "WHAT", "EXPIRES", "COMMENT"],
        ["0", "accept", "anything", "anything", "-", "-"],
    ]


def test_rules_are_added_at_a_place_removed_and_replaced(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("firewall", "work", "--add", "action=drop dst4=10.0.0.0/8", "--at", "0").code == 0
    assert lines(cli) == ["action=drop dst4=10.0.0.0/8", "action=accept"]
    assert cli.run("firewall", "work", "--remove", "1", "--add", "action=accept specialtarget=dns").code == 0
    assert lines(cli) == ["action=drop dst4=10.0.0.0/8", "action=accept specialtarget=dns"]
    (tmp_path / "rules").write_text("action=accept proto=tcp dsthost=debian.org dstports=443 comment=updates\n")
    assert cli.run("firewall", "work", "--replace", str(tmp_path / "rules")).code == 0
    shown = cli.run("firewall", "work").out.splitlines()[1].split()
    assert shown == ["0", "accept", "debian.org", "tcp", "port", "443", "-", "updates"]
    assert cli.run("firewall", "work", "--reset").code == 0
    assert lines(cli) == ["action=accept"]


def test_all_rules_can_be_removed(cli: Cli) -> None:
    assert cli.run("firewall", "work", "--remove", "0").code == 0
    assert lines(cli) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--add", "action=allow"], "is no rule"),
        (["--remove", "7"], "has no rule 7"),
        (["--reset", "--add", "action=drop"], "no other change"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint_and_changes_nothing(cli: Cli, arguments: list[str], words: str) -> None:
    ran = cli.run("firewall", "work", *arguments)
    assert ran.code != 0
    assert words in ran.err
    assert lines(cli) == ["action=accept"]


def test_net_draws_the_chain(cli: Cli) -> None:
    for name in ("sys-net", "sys-firewall", "vault"):
        assert cli.run("create", name, "--label", "red").code == 0
    for name, prop, value in (
        ("sys-net", "provides_network", "True"),
        ("sys-net", "uplink", "host"),
        ("sys-firewall", "provides_network", "True"),
        ("sys-firewall", "netvm", "sys-net"),
        ("work", "netvm", "sys-firewall"),
    ):
        assert cli.run("prefs", name, prop, value).code == 0
    drawn = cli.run("net").out.splitlines()
    assert [line.split(" Halted")[0].rstrip() for line in drawn[:-1]] == [
        "the network of this computer",
        "└─ sys-net",
        "   └─ sys-firewall",
        "      └─ work",
    ]
    assert drawn[-1].startswith("no network: ")
    assert "vault" in drawn[-1]
    rows = {row["name"]: row for row in cli.run("net", "--json").json}
    assert (rows["sys-net"]["uplink"], rows["work"]["netvm"]) == ("host", "sys-firewall")
    assert cli.run("prefs", "sys-net", "uplink", "PCI:0000:03:00.0").code == 0
    assert cli.run("net").out.splitlines()[:2] == ["network card 0000:03:00.0", drawn[1]]
    rows = {row["name"]: row for row in cli.run("net", "--json").json}
    assert rows["sys-net"]["uplink"] == "pci:0000:03:00.0"


def test_ports_are_forwarded_listed_and_taken_back(cli: Cli) -> None:
    assert cli.run("create", "sys-net", "--label", "red").code == 0
    assert cli.run("prefs", "sys-net", "provides_network", "True").code == 0
    assert cli.run("prefs", "work", "netvm", "sys-net").code == 0
    assert cli.run("forward", "work", "--add", "tcp:8080:80", "--add", "udp:53:5353").code == 0
    shown = [line.split() for line in cli.run("forward", "work").out.splitlines()]
    assert shown == [["PROTOCOL", "PORT", "TARGET"], ["tcp", "8080", "80"], ["udp", "53", "5353"]]
    [line] = [line for line in cli.run("net").out.splitlines() if " work " in line]
    assert line.endswith("← tcp 8080 → 80, udp 53 → 5353")
    [work] = [qube for qube in cli.run("net", "--json").json if qube["name"] == "work"]
    assert work["forwards"][0] == {"protocol": "tcp", "port": 8080, "target": 80}
    assert cli.run("forward", "work", "--remove", "tcp:8080:80").code == 0
    assert cli.run("forward", "work", "--json").json == [{"protocol": "udp", "port": 53, "target": 5353}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["forward", "work", "--add", "tcp:80"], "is not of the form"),
        (["forward", "work", "--add", "tcp:80:80", "--add", "tcp:80:81"], "two places"),
        (["forward", "work", "--remove", "tcp:80:80"], "has no forwarded port"),
        (["features", "work", "net.forward", "tcp:80:80; drop"], "net.forward"),
    ],
)
def test_ports_that_cannot_be_forwarded_are_refused(cli: Cli, arguments: list[str], words: str) -> None:
    ran = cli.run(*arguments)
    assert ran.code != 0
    assert words in ran.err
    assert cli.run("forward", "work", "--json").json == []
