"""A network card of this qube's own: systemd-networkd asks its network for addresses (DHCP), we follow what it found.

networkd gets one file of settings, which fits every Ethernet or wireless interface that is no virtual machine's
(interfaces of links are virtio's), and writes for each interface what it was told, as lines ``KEY=values`` (which
sd_network_link_get_dns(3) reads too). What a network's DHCP server says is taken for an address only if it is one.
"""

from __future__ import annotations

import os

from insula_agent import files, programs
from insula_agent.log import log
from insula_agent.net.interfaces import UPLINK_GROUP, NetworkError, parse_ip4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.loop import Loop

SETTINGS = "/run/systemd/network/50-insula-card.network"
LINKS = "/run/systemd/netif/links"
"""A file for each interface, named by its number."""
ADDRESS_TYPES = "ether wlan"
LOOK_FOR_LEASE = 0.5
"""Seconds between looks while there is no name server."""
LOOK_AT_LEASE = 10.0
"""The same when there is one: a lease may be renewed with another."""
MAX_SERVERS = 3
"""resolv.conf(5): MAXNS."""
MAX_FILE = 65536
"""Bytes of a state file that are read."""


def settings() -> str:
    """What networkd is to do with the card; IPv6 is off, as on every uplink that was not given an address of it."""
    return "\n".join(
        [
            "[Match]",
            f"Type={ADDRESS_TYPES}",
            "Driver=!virtio_net veth",
            "[Link]",
            f"Group={UPLINK_GROUP}",
            "[Network]",
            "DHCP=ipv4",
            "LinkLocalAddressing=no",
            "IPv6AcceptRA=no",
            "LLDP=no",
            "[DHCPv4]",
            # The qube's name is nobody's business outside.
            "SendHostname=no",
            "UseHostname=no",
            "UseDomains=no",
            "UseNTP=no",
            "",
        ]
    )


def servers_in(untrusted_text: str) -> list[str]:
    """Name servers in a state file of networkd, in order; what is no IPv4 address is left out."""
    found: dict[str, None] = {}
    for line in untrusted_text[:MAX_FILE].splitlines():
        key, _, value = line.partition("=")
        if key != "DNS":
            continue
        for word in value.split():
            try:
                found[parse_ip4(word.encode())] = None
            except NetworkError:
                log("card: a name server that is no IPv4 address was left out")
    return list(found)[:MAX_SERVERS]


def read_servers(folder: str = LINKS) -> list[str]:
    """Of all interfaces that networkd looks after; none before the network has answered."""
    try:
        numbers = sorted((name for name in os.listdir(folder) if name.isdigit()), key=int)
    except FileNotFoundError:
        return []
    texts = [files.read(f"{folder}/{number}") for number in numbers]
    return servers_in("\n".join(texts))


class Card:
    """Belongs to the agent's loop. ``changed`` is called when there are other name servers than before."""

    def __init__(self, loop: Loop, changed: Callable[[], None], folder: str = LINKS) -> None:
        self._loop = loop
        self._changed = changed
        self._folder = folder
        self.dns: list[str] = []

    def start(self) -> None:
        """:raise NetworkError: networkd cannot be started."""
        os.makedirs(os.path.dirname(SETTINGS), mode=0o755, exist_ok=True)
        files.write(SETTINGS, settings())
        try:
            # Without waiting: this may be before the system is up, and networkd waits for more than we do.
            programs.run(["systemctl", "--no-block", "restart", "systemd-networkd.service"])
        except (programs.ProgramFailed, OSError) as error:
            raise NetworkError(f"card: {error}") from error
        self._look()

    def _look(self) -> None:
        try:
            found = read_servers(self._folder)
        except OSError as error:
            log(f"card: {error}")
            found = self.dns
        self._loop.after(LOOK_AT_LEASE if found else LOOK_FOR_LEASE, self._look)
        if found != self.dns:
            self.dns = found
            log(f"card: {len(found)} name servers")
            self._changed()
