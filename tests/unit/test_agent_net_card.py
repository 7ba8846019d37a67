"""A network card of a qube's own: what networkd is asked for, and what of its answer is believed."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.loop import Loop
from insula_agent.net import card
from insula_agent.net.card import MAX_SERVERS, Card, read_servers, servers_in, settings

# (As systemd 252 writes it.)
STATE = """\
# This is private data. Do not parse.
ADMIN_STATE=configured
OPER_STATE=routable
NETWORK_FILE=/run/systemd/network/50-insula-card.network
DNS=10.0.2.3 192.0.2.53
NTP=
"""


def test_no_interface_of_a_virtual_machine_is_taken() -> None:
    lines = settings().splitlines()
    assert "Driver=!virtio_net veth" in lines
    assert {"IPv6AcceptRA=no", "LinkLocalAddressing=no", "SendHostname=no", "UseNTP=no"} <= set(lines)


def test_name_servers_are_read_in_order_each_once() -> None:
    assert servers_in(STATE) == ["10.0.2.3", "192.0.2.53"]
    assert servers_in(STATE + "DNS=192.0.2.53 192.0.2.54 192.0.2.55\n") == ["10.0.2.3", "192.0.2.53", "192.0.2.54"]


@given(st.text(max_size=200).map(lambda text: f"DNS={text}\n") | st.text(max_size=200))
def test_only_addresses_come_out_of_any_text(untrusted_text: str) -> None:
    found = servers_in(untrusted_text)
    assert len(found) <= MAX_SERVERS
    assert all(str(ipaddress.IPv4Address(server)) == server for server in found)


def test_files_of_all_interfaces_count_and_others_do_not(tmp_path: Path) -> None:
    assert read_servers(str(tmp_path / "not yet")) == []
    (tmp_path / "10").write_text("DNS=192.0.2.2\n")
    (tmp_path / "2").write_text("DNS=192.0.2.1\n")
    (tmp_path / ".#3abc").write_text("DNS=192.0.2.9\n")
    assert read_servers(str(tmp_path)) == ["192.0.2.1", "192.0.2.2"]


def test_change_of_name_servers_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(card.programs, "run", ran.append)
    monkeypatch.setattr(card, "SETTINGS", str(tmp_path / "network/card.network"))
    monkeypatch.setattr(card, "LOOK_FOR_LEASE", 0.01)
    monkeypatch.setattr(card, "LOOK_AT_LEASE", 0.01)
    links = tmp_path / "links"
    links.mkdir()
    told: list[list[str]] = []
    loop = Loop()

    def renewed() -> None:
        (links / "2").write_text("DNS=192.0.2.2\n")

    def changed() -> None:
        told.append(own.dns)
        if len(told) == 1:
            loop.after(0.05, renewed)
        else:
            loop.stop(0)

    own = Card(loop, changed, str(links))
    own.start()
    (links / "2").write_text("DNS=192.0.2.1\n")
    loop.run()
    assert told == [["192.0.2.1"], ["192.0.2.2"]]
    assert ran == [["systemctl", "--no-block", "restart", "systemd-networkd.service"]]
    assert (tmp_path / "network/card.network").read_text() == settings()
