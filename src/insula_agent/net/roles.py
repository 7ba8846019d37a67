"""Net qubes that pass clients' packets on in one way only, as text for ``nft``: the VPN and the Tor gateway.

What a role forbids stands in a table of its own, which sees every packet whatever the published tables say: a packet
that one of them drops is gone. So neither rules of people in ``custom-forward`` nor a program that ended open another
way. The table is loaded together with the other rules, before the first client's interface is up (MC-83), and stays
when tunnels come and go (MC-84):

* a **VPN** forwards between clients and interfaces of the group :data:`TUNNEL_GROUP`, and nothing else; a mark sends
  what clients send to a routing table of its own, which has no way but the tunnel;
* a **Tor gateway** forwards nothing. TCP and questions for names end at ``tor`` in this qube, everything else is
  dropped, and nobody here but tor's user may begin a connection.

Both carry IPv4 alone. A qube that is to be both passes nothing on.
"""

from __future__ import annotations

from insula_agent.net.interfaces import UPLINK_GROUP
from insula_agent.net.rules import CLIENT_GROUP, PUBLISHED_DNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

VPN = "vpn-gateway"
TOR = "tor-gateway"
"""Services; a qube has the role if it has the service."""
DNS_FILE = "/run/insula/tunnel-dns"
"""resolv.conf(5) of what is behind a VPN's tunnel; written before an interface becomes the tunnel."""
TUNNEL_GROUP = 3
"""Of interfaces that are tunnels: whoever makes one puts it there (:mod:`insula_agent.net.tunnel`)."""
TUNNEL_TABLE = 5300
"""Number of the routing table for what clients send."""
TUNNEL_MARK = "0x5300"
TUNNEL_RULE_PRIORITY = 100
"""Before all rules that programs for tunnels make."""
UNREACHABLE_METRIC = 4000000000
"""Behind any route of a tunnel."""
PROGRAM_GROUP_ID = 59053
"""Group that programs of the tunnel run with; nobody's otherwise (Debian's policy leaves these to the administrator).
Only they may ask for names outside of the tunnel: where its other end is."""

TOR_USER = "debian-tor"
TRANS_PORT = 9040
SOCKS_PORT = 9050
DNS_PORT = 5300
"""Where ``tor`` listens (:mod:`insula_agent.net.tor_gateway`)."""
WHONIX_GATEWAY = "10.152.152.10"
WHONIX_SOCKS_PORTS = "9050, 9100-9229"
"""What programs of an imported Whonix workstation have been told of their gateway; no qube has that address."""
UPDATES_PORT = 9041
"""Where it listens for this qube's own proxy of repositories, on the loopback."""


def is_closed(services: Collection[str]) -> bool:
    """Whether the kernel is to forward nothing at all."""
    return TOR in services


def names(services: Collection[str]) -> list[str]:
    """The roles among these services."""
    return [role for role in (VPN, TOR) if role in services]


def ruleset(services: Collection[str]) -> str:
    """Tables of the roles among these services, in place of those before; empty: there is none."""
    lines: list[str] = []
    for service, name, contents in ((VPN, "insula-vpn", _VPN), (TOR, "insula-tor", _TOR)):
        if service in services:
            lines += [f"table inet {name}", f"delete table inet {name}", f"table inet {name} {{", contents, "}"]
    if TOR in services:
        # The published chain drops what it does not know; the role's own has looked at all of it before.
        lines.append(f"add rule ip qubes input iifgroup {CLIENT_GROUP} meta l4proto {{ tcp, udp }} accept")
    return "".join([f"{line}\n" for line in lines])


_CONTROL = "1, 58"
"""ICMP of both families, by number: a small system knows few names. While a tunnel is down the kernel would complain
with it to the other end, which goes on sending."""

_VPN = f"""\
  chain mark-clients {{
    type filter hook prerouting priority mangle; policy accept;
    iifgroup {CLIENT_GROUP} meta mark set {TUNNEL_MARK}
  }}
  chain mark-questions {{
    type route hook output priority mangle; policy accept;
    meta skgid != {PROGRAM_GROUP_ID} meta l4proto {{ tcp, udp }} th dport 53 meta mark set {TUNNEL_MARK}
  }}
  chain dns {{
  }}
  chain dns-of-clients {{
    type nat hook prerouting priority dstnat - 10; policy accept;
    iifgroup {CLIENT_GROUP} jump dns
  }}
  chain dns-of-this-qube {{
    type nat hook output priority -100; policy accept;
    meta mark {TUNNEL_MARK} jump dns
  }}
  chain leaving {{
    type filter hook postrouting priority filter - 10; policy accept;
    meta mark {TUNNEL_MARK} oifname != "lo" oifgroup != {TUNNEL_GROUP} counter drop
    oifgroup {UPLINK_GROUP} meta l4proto {{ {_CONTROL} }} counter drop
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy drop;
    meta nfproto ipv4 iifgroup {CLIENT_GROUP} oifgroup {TUNNEL_GROUP} jump to-tunnel
    meta nfproto ipv4 iifgroup {TUNNEL_GROUP} oifgroup {CLIENT_GROUP} accept
    iifgroup {CLIENT_GROUP} counter reject with icmpx admin-prohibited
    counter
  }}
  chain to-tunnel {{
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    accept
  }}"""

_TOR = f"""\
  chain to-tor {{
    type nat hook prerouting priority dstnat - 10; policy accept;
    iifgroup {CLIENT_GROUP} meta nfproto ipv4 udp dport 53 redirect to :{DNS_PORT}
    iifgroup {CLIENT_GROUP} fib daddr type local accept
    iifgroup {CLIENT_GROUP} ip daddr {WHONIX_GATEWAY} tcp dport {{ {WHONIX_SOCKS_PORTS} }} redirect to :{SOCKS_PORT}
    iifgroup {CLIENT_GROUP} meta nfproto ipv4 meta l4proto tcp redirect to :{TRANS_PORT}
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifgroup != {CLIENT_GROUP} accept
    meta nfproto ipv4 ct status dnat meta l4proto {{ tcp, udp }} accept
    meta nfproto ipv4 tcp dport {SOCKS_PORT} accept
    meta nfproto ipv4 meta l4proto tcp counter reject with tcp reset
    counter drop
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy drop;
    counter
  }}
  chain output {{
    type filter hook output priority filter - 10; policy drop;
    oifname "lo" accept
    meta nfproto ipv4 ct state established,related accept
    meta nfproto ipv4 oifgroup {UPLINK_GROUP} meta skuid {TOR_USER} meta l4proto tcp ct state new accept
    counter
  }}"""


def tunnel_dns(servers: list[str]) -> str:
    """Have clients' and this qube's questions go to a VPN's name servers; none: as they are, through the tunnel."""
    lines = ["flush chain inet insula-vpn dns"]
    if servers:
        lines += [
            f"add rule inet insula-vpn dns ip daddr {published} {protocol} dport 53 dnat ip to {real}"
            for published, real in ((PUBLISHED_DNS[0], servers[0]), (PUBLISHED_DNS[1], servers[-1]))
            for protocol in ("udp", "tcp")
        ]
    return "".join([f"{line}\n" for line in lines])


def routing() -> list[str]:
    """Lines for ``ip -batch``, once: what clients send looks for its way in a table that has none yet."""
    return [
        f"rule add fwmark {TUNNEL_MARK} lookup {TUNNEL_TABLE} priority {TUNNEL_RULE_PRIORITY}",
        f"route replace unreachable default table {TUNNEL_TABLE} metric {UNREACHABLE_METRIC}",
    ]


def tunnel_route(interface: str) -> str:
    """Line for ``ip -batch``: clients' packets go there. The kernel takes it away with the interface."""
    return f"route replace default dev {interface} table {TUNNEL_TABLE}"
