"""What ``tor`` is told in a Tor gateway."""

from __future__ import annotations

from insula_agent.net.tor_gateway import USER_FOLDER, torrc


def test_all_ports_are_the_clients_own_and_isolate_them() -> None:
    lines = torrc("10.137.0.7", has_user_config=False).splitlines()
    ports = [line.split() for line in lines if "Port " in line]
    assert [words[:2] for words in ports] == [
        ["TransPort", "10.137.0.7:9040"],
        ["DNSPort", "10.137.0.7:5300"],
        ["SocksPort", "10.137.0.7:9050"],
        # Of this qube's own proxy for templates.
        ["SocksPort", "127.0.0.1:9041"],
        ["ControlPort", "0"],
    ]
    assert all("IsolateClientAddr" in words for words in ports if words[0] != "ControlPort")
    assert "ClientOnly 1" in lines


def test_guards_are_kept_and_what_the_user_adds_is_read() -> None:
    assert "DataDirectory /rw/insula-tor" in torrc("10.137.0.7", has_user_config=False)
    assert f"%include {USER_FOLDER}/*.conf" in torrc("10.137.0.7", has_user_config=True)
    assert "%include" not in torrc("10.137.0.7", has_user_config=False)
