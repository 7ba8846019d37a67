"""Network interfaces of this machine: found by their hardware address, described for ``ip -batch``.

Values come from the host's keys and are checked where they are parsed, so that a line for ``ip`` never holds anything
but addresses and names that were made here.
"""

from __future__ import annotations

# The public module ``socket`` costs an import of enum and selectors.
import _socket
import errno
import os

from insula_agent import files, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = "/sys/class/net"
UPLINK_GROUP = 1
"""Interfaces that lead to the net qube or outside (agent-services §12)."""
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
"""Of every net qube's end of a link (agent-services §12)."""
GATEWAY_KEY = "/qubes-netvm-gateway"
"""Address that clients of a net qube know it by."""
HOST_NETMASK = "255.255.255.255"
_MAC_LETTERS = frozenset("0123456789abcdef:")
MAC_LENGTH = 17
_IFF_UP = 1
"""<linux/if.h>"""
_GOING = (errno.EINVAL, errno.ENODEV)
"""Said of an interface that is being taken away: by the interface (Linux, net/core/net-sysfs.c), by its file."""


class NetworkError(Exception):
    """A key has a value that cannot be meant, or a step of the network failed."""


def parse_ip4(value: bytes) -> str:
    """:raise NetworkError: not an IPv4 address."""
    return _parse_ip(_socket.AF_INET, value)


def parse_ip6(value: bytes) -> str:
    """:raise NetworkError: not an IPv6 address."""
    return _parse_ip(_socket.AF_INET6, value)


def _parse_ip(family: int, value: bytes) -> str:
    try:
        return _socket.inet_ntop(family, _socket.inet_pton(family, value.decode("ascii")))
    except (OSError, ValueError) as error:
        raise NetworkError(f"not an address: {value!r}") from error


def parse_mac(value: bytes) -> str:
    """:raise NetworkError: not a hardware address in lower case."""
    text = value.decode("ascii", "replace")
    if len(text) != MAC_LENGTH or text.count(":") != 5 or not _MAC_LETTERS.issuperset(text):
        raise NetworkError(f"not a hardware address: {value!r}")
    return text


def prefix_length(netmask: str) -> int:
    """:raise NetworkError: its ones are not all in front."""
    number = int.from_bytes(_socket.inet_aton(netmask), "big")
    length = bin(number).count("1")
    if number != (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        raise NetworkError(f"not a netmask: {netmask}")
    return length


def find(mac: str, folder: str = FOLDER) -> str | None:
    """Name of the interface with this address; None: there is none (yet)."""
    return names_by_mac(folder).get(mac)


def names_by_mac(folder: str = FOLDER) -> dict[str, str]:
    """Address → name of all interfaces but the loopback."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return {}
    found = {attribute(name, "address", folder): name for name in names if name != "lo"}
    found.pop("", None)
    return found


def first_of_group(group: int, folder: str = FOLDER) -> str | None:
    """Name of the first interface of a group that is up; None: none is."""
    try:
        # Not all that is there is an interface.
        names = sorted([name for name in os.listdir(folder) if os.path.isdir(f"{folder}/{name}")])
    except FileNotFoundError:
        return None
    for name in names:
        is_member = attribute(name, "netdev_group", folder) == str(group)
        if is_member and int(attribute(name, "flags", folder) or "0", 16) & _IFF_UP:
            return name
    return None


def attribute(name: str, kind: str, folder: str = FOLDER) -> str:
    """What the kernel says of an interface; empty: it is gone, or about to be (its folder may be there still)."""
    try:
        return files.read(f"{folder}/{name}/{kind}").strip()
    except OSError as error:
        if error.errno not in _GOING:
            raise
        return ""


class Uplink:
    """This qube's own way to its network, as the keys say."""

    __slots__ = ("address", "address6", "dns", "gateway", "gateway6", "mac", "netmask")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """:raise NetworkError: a value that cannot be meant. :raise KeyError: an address without the rest."""
        outside = [path for path in keys if path.startswith("/net-config/") and path.endswith("/ip")]
        folder = outside[0][: -len("/ip")] if outside else "/qubes"
        separator = "/" if outside else "-"
        self.mac = parse_mac(outside[0].split("/")[2].encode() if outside else keys["/qubes-mac"])
        self.address = parse_ip4(keys[f"{folder}{separator}ip"])
        self.netmask = parse_ip4(keys[f"{folder}{separator}netmask"])
        self.gateway = parse_ip4(keys[f"{folder}{separator}gateway"])
        self.dns = [parse_ip4(keys[path]) for path in ("/qubes-primary-dns", "/qubes-secondary-dns") if keys.get(path)]
        self.address6 = parse_ip6(keys["/qubes-ip6"]) if "/qubes-ip6" in keys else None
        self.gateway6 = parse_ip6(keys["/qubes-gateway6"]) if "/qubes-gateway6" in keys else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Uplink) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def commands(self, name: str, *, with_default_route: bool = True) -> list[str]:
        """Lines for ``ip -batch`` that bring interface ``name`` up; they may be run again."""
        lines = [f"link set dev {name} group {UPLINK_GROUP} up"]
        lines.append(f"address replace {self.address}/{prefix_length(self.netmask)} dev {name}")
        onlink = ""
        if self.netmask == HOST_NETMASK:
            # Point to point: the other end is known, nothing is asked for by ARP.
            lines.append(f"neighbour replace {self.gateway} lladdr {GATEWAY_MAC} dev {name} nud permanent")
            lines.append(f"route replace {self.gateway} dev {name} scope link")
            onlink = " onlink"
        if with_default_route:
            lines.append(f"route replace default via {self.gateway} dev {name}{onlink}")
        if self.address6 is not None and self.gateway6 is not None:
            lines.append(f"address replace {self.address6}/128 dev {name} nodad")
            lines.append(f"neighbour replace {self.gateway6} lladdr {GATEWAY_MAC} dev {name} nud permanent")
            lines.append(f"route replace {self.gateway6} dev {name}")
            if with_default_route:
                lines.append(f"route replace default via {self.gateway6} dev {name} onlink")
        return lines


def resolv_conf(dns: list[str]) -> str:
    """resolv.conf(5) with these servers, in order."""
    return "".join([f"nameserver {address}\n" for address in dns])


def name_servers(text: str) -> list[str]:
    """The IPv4 addresses of a resolv.conf(5), in order; other lines are left out."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) == 2:
            try:
                found.append(parse_ip4(words[1].encode("utf-8", "replace")))
            except NetworkError:
                continue
    return found


def run_ip(lines: list[str]) -> None:
    """Have ``ip`` do them in order, up to the first that fails. :raise NetworkError:"""
    if not lines:
        return
    try:
        programs.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
    except (programs.ProgramFailed, OSError) as error:
        raise NetworkError(f"interface not set up: {error}") from error
