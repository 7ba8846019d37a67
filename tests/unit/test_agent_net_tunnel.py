"""Configurations of tunnels as providers hand them out: what is taken from them, refused, not obeyed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.net import tunnel
from insula_agent.net.interfaces import NetworkError
from insula_agent.net.tunnel import INTERFACE, TunnelError, WireGuard, find_config, openvpn_argv, pushed_dns

EXAMPLE = (Path(__file__).parents[2] / "examples" / "vpn" / "wireguard.conf").read_text()


def test_example_is_taken_apart() -> None:
    config = WireGuard(EXAMPLE)
    assert (config.addresses, config.dns, config.mtu, config.ignored) == (["10.8.0.2/32"], ["10.8.0.1"], 0, [])
    assert "PrivateKey = PRIVATE_KEY_OF_THIS_END\n" in config.for_kernel
    assert "Endpoint = 198.51.100.1:51820\n" in config.for_kernel
    assert "Address" not in config.for_kernel
    assert "DNS" not in config.for_kernel


def test_programs_and_routes_of_a_configuration_are_not_obeyed() -> None:
    config = WireGuard(
        "[Interface]\nAddress=10.0.0.2/24,fd00::2/64\nPostUp = rm -rf /\nTable=off\n"
        "MTU = 1380\ndns=1.1.1.1, x.org, ::1\n"
    )
    assert config.ignored == ["postup", "table"]
    assert config.for_kernel == "[Interface]\n"
    assert (config.addresses, config.dns, config.mtu) == (["10.0.0.2/24"], ["1.1.1.1"], 1380)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[Interface]\nPrivateKey = x\n",
        "[Interface]\nAddress = fd00::2/64\n",
        "[Interface]\nAddress = 10.0.0.2/33\n",
        "[Interface]\nAddress = 10.0.0.2/\n",
        "[Interface]\nAddress = 10.0.0.2/24\nMTU = 12\n",
        "[Interface]\nAddress = 10.0.0.2 dev eth0\n",
        "[Peer]\nAddress = 10.0.0.2/24\n",
        "x" * (tunnel.MAX_CONFIG + 1),
    ],
)
def test_configuration_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(TunnelError):
        WireGuard(text)


_LINES = st.sampled_from(
    [
        "[Interface]",
        "[Peer]",
        "Address = 10.1.2.3/8",
        "Address",
        "DNS = 1.2.3.4",
        "MTU=1400",
        "MTU=²",
        "PostUp=x",
        "=",
        "#",
    ]
)


@given(st.lists(_LINES | st.text(max_size=40), max_size=20))
def test_any_text_is_a_configuration_or_refused(lines: list[str]) -> None:
    try:
        config = WireGuard("\n".join(lines))
    except TunnelError:
        return
    assert len(config.dns) <= tunnel.MAX_DNS
    assert all(not set(address) - set("0123456789./") for address in config.addresses)


def test_name_servers_come_from_what_the_other_end_pushed() -> None:
    environment = {
        "foreign_option_1": "dhcp-option DNS 10.9.0.1",
        "foreign_option_2": "dhcp-option DOMAIN example.org",
        "foreign_option_3": "dhcp-option DNS fd00::1",
        "foreign_option_4": "dhcp-option DNS 10.9.0.2",
        "foreign_option_5": "dhcp-option DNS 10.9.0.3",
    }
    assert pushed_dns(environment) == ["10.9.0.1", "10.9.0.2"]
    assert pushed_dns({}) == []


def test_there_is_to_be_one_configuration(tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match="holds 0"):
        find_config(str(tmp_path / "absent"))
    for name in ("readme.txt", ".hidden.conf", "a.conf"):
        (tmp_path / name).touch()
    assert find_config(str(tmp_path)) == f"{tmp_path}/a.conf"
    (tmp_path / "b.ovpn").touch()
    with pytest.raises(TunnelError, match="holds 2"):
        find_config(str(tmp_path))


def test_openvpn_is_told_last_what_must_be_so() -> None:
    argv = openvpn_argv("/rw/config/vpn/a b.ovpn")
    assert argv[:5] == ["openvpn", "--cd", "/rw/config/vpn", "--config", "/rw/config/vpn/a b.ovpn"]
    assert argv[argv.index("--dev") + 1] == INTERFACE
    assert "--route-noexec" in argv


@pytest.mark.parametrize("name", ["", "a" * 16, "eth0 up", "../x", "tun0\n", "täst"])
def test_what_is_no_interface_is_refused(name: str) -> None:
    with pytest.raises(NetworkError):
        tunnel.declare(name, [])


def test_command_says_how_it_is_used() -> None:
    done = command()
    assert done.returncode == 2
    assert "usage: insula-tunnel" in done.stderr
    refused = command("declare", "eth 0")
    assert refused.returncode == 1
    assert "not the name of an interface" in refused.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(tunnel.__file__))
    return subprocess.run(
        ["python3", "-I", "-S", program, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


class _Notices:
    """Of the kernel's, of interfaces: each is the moment at which the next thing happens."""

    def __init__(self, *_: int) -> None:
        self.heard = 0

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 1)

    def recv(self, size: int) -> bytes:
        del size
        self.heard += 1
        return b"a notice"


def test_tunnel_that_is_taken_away_is_over_although_its_folder_is_there_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells before it removes that: who waited for it to go would wait for a next notice, for ever."""
    notices = _Notices()
    monkeypatch.setattr(tunnel._socket, "socket", lambda *_: notices)
    monkeypatch.setattr(tunnel.programs, "run", lambda *_, **__: 0)
    monkeypatch.setattr(tunnel, "run_ip", lambda _: None)
    monkeypatch.setattr(tunnel, "declare", lambda *_, **__: None)
    # There, there after a notice of something else, being taken away.
    numbers = iter(["7", "7", "7", ""])
    monkeypatch.setattr(tunnel, "attribute", lambda *_: next(numbers))
    tunnel.run_wireguard(WireGuard("[Interface]\nAddress = 10.8.0.2/24\n"))
    assert notices.heard == 2
