"""What a net qube lets pass, as text for ``nft``: pure functions from clients to rules.

The names of tables, sets and user chains are the published ones (agent-services §12), so that scripts of people who
know them work; what these put into the user chains stays when clients come and go. Three things are never left open:

* a packet from a client passes only if its link and its source addresses belong together (``allowed``, ``macs``);
* nothing goes from one client to another, and nothing new comes in from outside but to ports that were forwarded;
* IPv6 follows the same rules in a table of its own, and its set is empty unless a client was given such an address.

``nft`` takes a text whole or not at all, so there is no moment between two sets of rules.
"""

from __future__ import annotations

from insula_agent.net.interfaces import NetworkError, parse_ip4, parse_ip6, parse_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from insula_proto.forward import Forward

    Forwards = Mapping[int, Sequence[Forward]]
    """Number of a link → ports that lead to its client."""

CLIENT_GROUP = 2
"""Interfaces of clients (agent-services §12)."""
FORWARD = "dnat-in"
"""Chain of the ports that lead from outside to clients; ours."""
PUBLISHED_DNS = ("10.139.1.1", "10.139.1.2")
"""What clients are told their name servers are (agent-services §12)."""
MAX_CLIENT_NUMBER = 9999


class Client:
    """Who is behind an interface of this net qube."""

    __slots__ = ("ip", "ip6", "mac", "number")

    def __init__(self, number: int, value: bytes) -> None:
        """:param value: of ``/insula-link/N``. :raise NetworkError: not two or three addresses."""
        words = value.split(b" ")
        if len(words) not in (2, 3) or not 0 <= number <= MAX_CLIENT_NUMBER:
            raise NetworkError(f"link {number}: not a client: {value!r}")
        self.number = number
        self.mac = parse_mac(words[0])
        self.ip = parse_ip4(words[1])
        self.ip6 = parse_ip6(words[2]) if len(words) == 3 else None

    @property
    def interface(self) -> str:
        """Name of the interface it is behind."""
        return f"vif{self.number}.0"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Client) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


def ruleset(clients: list[Client], dns: list[str], forwards: Forwards) -> str:
    """All rules, in place of those before. ``dns``: real name servers; empty: those of the next net qube."""
    return "\n".join([*_table("ip"), *_table("ip6"), update(clients, dns, forwards)])


def update(clients: list[Client], dns: list[str], forwards: Forwards) -> str:
    """What changes in rules that were taken when clients, name servers or forwarded ports do."""
    lines = [
        *_contents("ip", [(client, client.ip) for client in clients]),
        *_contents("ip6", [(client, client.ip6) for client in clients if client.ip6 is not None]),
        "flush chain ip qubes dnat-dns",
        *_dns_rules(dns),
        f"flush chain ip qubes {FORWARD}",
        *_forward_rules(clients, forwards),
    ]
    return "\n".join(lines) + "\n"


def _contents(family: str, clients: list[tuple[Client, str]]) -> list[str]:
    lines = [f"flush set {family} qubes {name}" for name in ("allowed", "downstream", "macs")]
    for client, address in clients:
        lines.append(f'add element {family} qubes allowed {{ "{client.interface}" . {address} }}')
        lines.append(f'add element {family} qubes macs {{ "{client.interface}" . {client.mac} }}')
        lines.append(f"add element {family} qubes downstream {{ {address} }}")
    return lines


def _table(family: str) -> list[str]:
    kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
    # By number: names of protocols are in a file that a small system does not have.
    control = 1 if family == "ip" else 58
    return [
        # Deleting what may not be there: first make it.
        f"table {family} qubes",
        f"delete table {family} qubes",
        f"table {family} qubes {{",
        f"  set allowed {{ type ifname . {kind}; }}",
        f"  set downstream {{ type {kind}; }}",
        "  set macs { type ifname . ether_addr; }",
        "  chain prerouting {",
        "    type filter hook prerouting priority raw; policy accept;",
        f"    iifgroup {CLIENT_GROUP} goto antispoof",
        f"    {family} saddr @downstream counter drop",
        "  }",
        "  chain antispoof {",
        "    iifname . ether saddr != @macs counter drop",
        f"    iifname . {family} saddr @allowed accept",
        "    counter drop",
        "  }",
        "  chain dnat-dns {",
        "    type nat hook prerouting priority dstnat; policy accept;",
        "  }",
        f"  chain {FORWARD} {{",
        "    type nat hook prerouting priority dstnat; policy accept;",
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        f"    oifgroup {CLIENT_GROUP} accept",
        '    oifname "lo" accept',
        "    masquerade",
        "  }",
        "  chain custom-input {",
        "  }",
        "  chain input {",
        "    type filter hook input priority filter; policy drop;",
        "    jump custom-input",
        "    ct state invalid counter drop",
        f"    iifgroup {CLIENT_GROUP} udp dport {{ 67, 68, 546, 547 }} counter drop",
        "    ct state established,related accept",
        f"    iifgroup {CLIENT_GROUP} meta l4proto {control} accept",
        '    iifname "lo" accept',
        "  }",
        "  chain custom-forward {",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority filter; policy drop;",
        "    jump custom-forward",
        "    ct state invalid counter drop",
        "    ct state established,related accept",
        f"    iifgroup != {CLIENT_GROUP} oifgroup {CLIENT_GROUP} ct status dnat accept",
        f"    oifgroup {CLIENT_GROUP} counter drop",
        f"    iifgroup {CLIENT_GROUP} accept",
        "  }",
        "}",
    ]


def _dns_rules(dns: list[str]) -> list[str]:
    """Questions to the published servers go to the real ones; where there is one only, both do."""
    if not dns:
        return []
    return [
        f"add rule ip qubes dnat-dns ip daddr {published} {protocol} dport 53 dnat to {real}"
        for published, real in ((PUBLISHED_DNS[0], dns[0]), (PUBLISHED_DNS[1], dns[-1]))
        for protocol in ("udp", "tcp")
    ]


def _forward_rules(clients: list[Client], forwards: Forwards) -> list[str]:
    """What is addressed to this qube from outside; a port that two clients want leads to the first."""
    taken: set[tuple[str, int]] = set()
    lines = []
    for client in clients:
        for forward in forwards.get(client.number, ()):
            if (forward.protocol, forward.port) not in taken:
                taken.add((forward.protocol, forward.port))
                match = f'iifgroup != {CLIENT_GROUP} iifname != "lo" {forward.protocol} dport {forward.port}'
                lines.append(f"add rule ip qubes {FORWARD} {match} dnat to {client.ip}:{forward.target}")
    return lines
