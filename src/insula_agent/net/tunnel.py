"""The tunnel of a VPN qube: from the configuration a provider hands out to an interface that clients' packets leave by.

::

    tunnel.py run                    in insula-vpn.service: the one *.conf (WireGuard) or *.ovpn (OpenVPN) of FOLDER
    tunnel.py declare IFACE [DNS…]   ``insula-tunnel``: an interface that somebody else made is the tunnel
    tunnel.py openvpn IFACE …        OpenVPN's "up" script

To be a tunnel is to be in a group of interfaces; the agent sees it, and sends what clients send there
(:mod:`insula_agent.net.roles`). Nothing here opens or closes anything: with all of this dead or wrong, clients reach
nothing. A process stays as long as the tunnel does, so that systemd makes another when it ends.

Run by path with ``python3 -I -S``.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))

import _socket

from insula_agent import files, programs
from insula_agent.log import log
from insula_agent.net.interfaces import FOLDER as INTERFACES
from insula_agent.net.interfaces import NetworkError, attribute, parse_ip4, resolv_conf, run_ip
from insula_agent.net.roles import DNS_FILE, PROGRAM_GROUP_ID, TUNNEL_GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = "/rw/config/vpn"
INTERFACE = "tunnel0"
UP_SCRIPT = "/usr/lib/insula/openvpn-up"
MAX_CONFIG = 65536
"""Characters of a configuration."""
MAX_DNS = 2
"""Name servers that are used: clients know two."""
MAX_INTERFACE_NAME = 15
"""IFNAMSIZ less its final NUL."""
MAX_MTU = 65535
MIN_MTU = 576
"""What every host takes (RFC 791)."""
MAX_OPTIONS = 64
"""Of OpenVPN's ``foreign_option_N`` that are looked at."""

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_SCRIPTS = ("preup", "postup", "predown", "postdown", "table", "saveconfig")
"""Keys of wg-quick(8) that would change this qube's routes or run programs: not needed, and not obeyed."""
_RTMGRP_LINK = 1
"""<linux/rtnetlink.h>"""
_NETLINK_ROUTE = 0
_NOTICE_SIZE = 65536


class TunnelError(Exception):
    """A configuration cannot be meant, or there is not exactly one."""


class WireGuard:
    """A configuration as providers hand it out, in the form of wg-quick(8)."""

    __slots__ = ("addresses", "dns", "for_kernel", "ignored", "mtu")

    def __init__(self, text: str) -> None:
        """:raise TunnelError:"""
        if len(text) > MAX_CONFIG:
            raise TunnelError(f"a configuration has at most {MAX_CONFIG} characters")
        self.addresses: list[str] = []
        """``ADDRESS/LENGTH`` of this end, IPv4 alone."""
        self.dns: list[str] = []
        self.mtu = 0
        """0: not said."""
        self.ignored: list[str] = []
        """Keys that are not obeyed."""
        kept = []
        section = ""
        for line in text.splitlines():
            content = line.partition("#")[0].strip()
            if content.startswith("["):
                section = content.lower()
            key, equals, value = content.partition("=")
            if section != "[interface]" or not equals or not self._take(key.strip().lower(), value.strip()):
                kept.append(content)
        self.for_kernel = "".join([f"{line}\n" for line in kept if line])
        """What wg(8) is told."""
        if not self.addresses:
            raise TunnelError("the configuration gives this end no IPv4 address (Address = …)")

    def _take(self, key: str, value: str) -> bool:
        """Whether the line was ours. :raise TunnelError:"""
        words = [word.strip() for word in value.split(",") if word.strip()]
        if key == "address":
            self.addresses += [_network(word) for word in words if ":" not in word]
        elif key == "dns":
            # Other words are domains to search, or of the family that is not carried.
            self.dns = _servers(self.dns + words)
        elif key == "mtu":
            if not value.isascii() or not value.isdigit() or not MIN_MTU <= int(value[:6]) <= MAX_MTU:
                raise TunnelError(f"not a size of packets: {value!a}")
            self.mtu = int(value)
        elif key in _SCRIPTS:
            self.ignored.append(key)
        else:
            return False
        return True


def _network(text: str) -> str:
    """``ADDRESS[/LENGTH]`` with both. :raise TunnelError:"""
    address, slash, length = text.partition("/")
    if slash and not (length.isascii() and length.isdigit() and len(length) <= 2 and int(length) <= 32):
        raise TunnelError(f"not a network: {text!a}")
    try:
        return f"{parse_ip4(address.encode())}/{int(length or '32')}"
    except NetworkError as error:
        raise TunnelError(f"not an address of this end: {text!a}") from error


def _servers(words: list[str]) -> list[str]:
    """The first IPv4 addresses among these words."""
    found = []
    for word in words:
        try:
            found.append(parse_ip4(word.encode("utf-8", "replace")))
        except NetworkError:
            continue
    return found[:MAX_DNS]


def pushed_dns(environment: Mapping[str, str]) -> list[str]:
    """Name servers that the other end of an OpenVPN tunnel told (openvpn(8), ``foreign_option_N``)."""
    options = [environment.get(f"foreign_option_{number}", "").split() for number in range(1, MAX_OPTIONS + 1)]
    return _servers([words[2] for words in options if len(words) == 3 and words[:2] == ["dhcp-option", "DNS"]])


def find_config(folder: str = FOLDER) -> str:
    """Path of the one configuration. :raise TunnelError: there is none, or it is not clear which."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    names = [name for name in names if name.endswith((".conf", ".ovpn")) and not name.startswith(".")]
    if len(names) != 1:
        raise TunnelError(f"{folder} is to hold one configuration, *.conf or *.ovpn; it holds {len(names)}")
    return f"{folder}/{names[0]}"


def openvpn_argv(config: str) -> list[str]:
    """The command line: ours comes last and wins over what the file says."""
    return [
        "openvpn", "--cd", os.path.dirname(config), "--config", config,
        "--dev", INTERFACE, "--dev-type", "tun",
        # Routes for clients are the agent's; this qube's own stay as they are, so the tunnel never runs in itself.
        "--route-noexec", "--script-security", "2", "--up", UP_SCRIPT, "--up-restart",
    ]  # fmt: skip


def declare(interface: str, dns: list[str], *, commands: list[str] | None = None) -> None:
    """Make an interface the tunnel; ``commands``: lines for ``ip`` to be done with it. :raise NetworkError, OSError:"""
    if not 0 < len(interface) <= MAX_INTERFACE_NAME or not _NAME_LETTERS.issuperset(interface):
        raise NetworkError(f"not the name of an interface: {interface!a}")
    files.write(f"{DNS_FILE}.new", resolv_conf(dns))
    os.replace(f"{DNS_FILE}.new", DNS_FILE)
    run_ip([*(commands or []), f"link set dev {interface} group {TUNNEL_GROUP} up"])


def run_wireguard(config: WireGuard) -> None:
    """Returns when the interface is gone. :raise NetworkError, ProgramFailed, OSError:"""
    for key in config.ignored:
        log(f"tunnel: {key} of the configuration is not obeyed")
    notices = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    notices.bind((0, _RTMGRP_LINK))
    if os.path.exists(f"{INTERFACES}/{INTERFACE}"):
        run_ip([f"link delete dev {INTERFACE}"])
    run_ip([f"link add dev {INTERFACE} type wireguard"])
    programs.run(["wg", "setconf", INTERFACE, "/dev/stdin"], stdin=config.for_kernel)
    mtu = [f"link set dev {INTERFACE} mtu {config.mtu}"] if config.mtu else []
    addresses = [f"address replace {address} dev {INTERFACE}" for address in config.addresses]
    declare(INTERFACE, config.dns, commands=[*mtu, *addresses])
    # (Its folder outlives the notice of its end.)
    number = attribute(INTERFACE, "ifindex")
    while number and attribute(INTERFACE, "ifindex") == number:
        notices.recv(_NOTICE_SIZE)


def run() -> int:
    """As a service: 1 when the tunnel is gone, for systemd to make another."""
    # With it, names may be asked for outside of the tunnel.
    os.setgid(PROGRAM_GROUP_ID)
    try:
        path = find_config()
        if path.endswith(".ovpn"):
            # Its device comes with the module, and OpenVPN waits for neither.
            programs.run(["modprobe", "tun"])
            programs.become(openvpn_argv(path))
        run_wireguard(WireGuard(files.read(path)))
    except (TunnelError, NetworkError, programs.ProgramFailed, OSError) as error:
        log(f"tunnel: {error}")
    return 1


def main(arguments: list[str]) -> int:
    if arguments == ["run"]:
        return run()
    try:
        if arguments[:1] == ["declare"] and len(arguments) > 1:
            declare(arguments[1], [parse_ip4(word.encode()) for word in arguments[2 : 2 + MAX_DNS]])
            return 0
        if arguments[:1] == ["openvpn"] and len(arguments) > 1:
            declare(arguments[1], pushed_dns(os.environ))
            return 0
    except (NetworkError, OSError) as error:
        sys.stderr.write(f"insula-tunnel: {error}\n")
        return 1
    sys.stderr.write("usage: insula-tunnel INTERFACE [NAME-SERVER [NAME-SERVER]]\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
