"""What a qube makes of the keys that describe its network: lines for ``ip``, or a refusal."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent import files
from insula_agent.net.interfaces import (
    NetworkError,
    Uplink,
    first_of_group,
    names_by_mac,
    parse_ip4,
    parse_mac,
    prefix_length,
    resolv_conf,
)

KEYS = {
    "/qubes-mac": b"00:16:3e:5e:6c:00",
    "/qubes-ip": b"10.137.0.4",
    "/qubes-netmask": b"255.255.255.255",
    "/qubes-gateway": b"10.137.0.3",
    "/qubes-primary-dns": b"10.139.1.1",
    "/qubes-secondary-dns": b"10.139.1.2",
}
OUTSIDE = {
    "/net-config/00:16:3e:5e:6c:00/ip": b"10.0.2.15",
    "/net-config/00:16:3e:5e:6c:00/netmask": b"255.255.255.0",
    "/net-config/00:16:3e:5e:6c:00/gateway": b"10.0.2.2",
    "/qubes-primary-dns": b"10.0.2.3",
}


def test_link_to_a_net_qube_is_point_to_point_and_asks_nobody() -> None:
    assert Uplink(KEYS).commands("eth0") == [
        "link set dev eth0 group 1 up",
        "address replace 10.137.0.4/32 dev eth0",
        "neighbour replace 10.137.0.3 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent",
        "route replace 10.137.0.3 dev eth0 scope link",
        "route replace default via 10.137.0.3 dev eth0 onlink",
    ]


def test_network_of_the_host_has_a_gateway_that_is_asked_for() -> None:
    uplink = Uplink(OUTSIDE)
    assert uplink.mac == "00:16:3e:5e:6c:00"
    assert uplink.commands("eth0") == [
        "link set dev eth0 group 1 up",
        "address replace 10.0.2.15/24 dev eth0",
        "route replace default via 10.0.2.2 dev eth0",
    ]
    assert uplink.dns == ["10.0.2.3"]


def test_ip6_is_set_only_if_it_was_given() -> None:
    assert not any("fd09" in line for line in Uplink(KEYS).commands("eth0"))
    keys = {**KEYS, "/qubes-ip6": b"fd09:24ef:4179::a89:4", "/qubes-gateway6": b"fd09:24ef:4179::a89:3"}
    assert "route replace default via fd09:24ef:4179::a89:3 dev eth0 onlink" in Uplink(keys).commands("eth0")


def test_services_can_leave_out_the_default_route() -> None:
    assert not any("default" in line for line in Uplink(KEYS).commands("eth0", with_default_route=False))


@pytest.mark.parametrize("missing", ["/qubes-mac", "/qubes-netmask", "/qubes-gateway"])
def test_address_without_the_rest_is_refused(missing: str) -> None:
    with pytest.raises(KeyError):
        Uplink({path: value for path, value in KEYS.items() if path != missing})


@given(st.sampled_from(sorted({**KEYS, **OUTSIDE})), st.binary(max_size=40))
def test_any_value_gives_lines_of_addresses_or_a_refusal(path: str, value: bytes) -> None:
    keys = {**(OUTSIDE if path in OUTSIDE else KEYS), path: value}
    try:
        lines = Uplink(keys).commands("eth0")
    except NetworkError:
        return
    for line in lines:
        assert line.isprintable()
        assert ";" not in line


@pytest.mark.parametrize("value", [b"", b"1.2.3", b"1.2.3.4 dev lo", b"01.2.3.4", b"1.2.3.4\n", b"::1"])
def test_what_is_no_ip4_address_is_refused(value: bytes) -> None:
    with pytest.raises(NetworkError):
        parse_ip4(value)


@pytest.mark.parametrize(
    "value", [b"", b"00:16:3E:5e:6c:00", b"00:16:3e:5e:6c:0", b"00-16-3e-5e-6c-00", b"00:16:3e:5e:6c:0 "]
)
def test_what_is_no_hardware_address_is_refused(value: bytes) -> None:
    with pytest.raises(NetworkError):
        parse_mac(value)


def test_netmask_is_counted_or_refused() -> None:
    assert prefix_length("255.255.255.0") == 24
    assert prefix_length("0.0.0.0") == 0
    assert prefix_length("255.255.255.255") == 32
    with pytest.raises(NetworkError):
        prefix_length("255.0.255.0")


def test_interfaces_are_found_by_address_and_the_loopback_is_none(tmp_path: Path) -> None:
    for name, mac in (("lo", "00:00:00:00:00:00"), ("eth0", "00:16:3e:5e:6c:00"), ("eth1", "fe:ff:ff:00:00:01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(mac + "\n")
    assert names_by_mac(str(tmp_path)) == {"00:16:3e:5e:6c:00": "eth0", "fe:ff:ff:00:00:01": "eth1"}
    assert names_by_mac(str(tmp_path / "absent")) == {}


def test_name_servers_are_written_in_order() -> None:
    assert resolv_conf(["10.139.1.1", "10.139.1.2"]) == "nameserver 10.139.1.1\nnameserver 10.139.1.2\n"
    assert resolv_conf([]) == ""


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENODEV])
def test_interface_that_goes_while_it_is_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The kernel says these of an interface that is being taken away: a tunnel that ends, a client that leaves."""
    for name in ("tunnel0", "tunnel1"):
        (tmp_path / name).mkdir()
    read = {"netdev_group": "3", "flags": "0x1043", "address": "00:16:3e:5e:6c:00"}

    def attribute(path: str) -> str:
        if "/tunnel0/" in path:
            raise OSError(number, path)
        return read[path.rpartition("/")[2]]

    monkeypatch.setattr(files, "read", attribute)
    assert first_of_group(3, str(tmp_path)) == "tunnel1"
    assert names_by_mac(str(tmp_path)) == {"00:16:3e:5e:6c:00": "tunnel1"}
