"""The firewall of a net qube's clients, as text for ``nft``: a pure function from rules and names to one table.

A packet of a client is judged by its client's rules every time, also on a connection that stands: so a rule that is
taken away ends what it had allowed. Only answers, and errors that belong to a connection, pass without being asked.
Who has no rules here, and who has some that cannot be carried out, may do nothing (MC-87).
"""

from __future__ import annotations

from insula_agent.net.rules import CLIENT_GROUP
from insula_proto.firewall import ACCEPT, ICMP, TCP, UDP, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from insula_proto.firewall import Service

TABLE = "qubes-firewall"
DNS_PORT = 53
_ADMIN_PROHIBITED = {"ip": "icmp admin-prohibited", "ip6": "icmpv6 admin-prohibited"}
_ICMP = {"ip": "icmp", "ip6": "icmpv6"}
_FAMILIES = {"ip": 4, "ip6": 6}


class Unresolved(Exception):
    """A host of a rule has no known address."""


def closed_table() -> str:
    """The tables before anybody's rules are known: nobody's packets pass."""
    return tables({}, {}, [])


def tables(
    clients: Mapping[str, Sequence[Rule] | None], addresses: Mapping[str, Sequence[str]], dns: Sequence[str]
) -> str:
    """Both tables, in place of those before.

    :param clients: address of a client → its rules; None: they cannot be carried out.
    :param addresses: host name → its addresses, of both families; absent or none: not known.
    :param dns: name servers of this qube, which ``specialtarget=dns`` means.
    """
    lines = []
    for family in ("ip", "ip6"):
        own = {ip: rules for ip, rules in clients.items() if (":" in ip) == (family == "ip6")}
        lines += _table(family, own, addresses, dns)
    return "\n".join(lines) + "\n"


def chain_of(ip: str) -> str:
    """Name of a client's chain (agent-services §13)."""
    return "qbs-" + ip.replace(".", "-").replace(":", "-")


def _table(
    family: str,
    clients: Mapping[str, Sequence[Rule] | None],
    addresses: Mapping[str, Sequence[str]],
    dns: Sequence[str],
) -> list[str]:
    lines = [f"table {family} {TABLE}", f"delete table {family} {TABLE}", f"table {family} {TABLE} {{"]
    for ip, rules in clients.items():
        lines += [f"  chain {chain_of(ip)} {{", *_rules(family, rules, addresses, dns), "  }"]
    lines += ["  chain qubes-forward {"]
    lines += [f"    {family} saddr {ip} jump {chain_of(ip)}" for ip in clients]
    lines += [
        "  }",
        "  chain forward {",
        "    type filter hook forward priority filter; policy drop;",
        "    ct state established ct direction reply accept",
        "    ct state related accept",
        f"    iifgroup != {CLIENT_GROUP} accept",
        "    jump qubes-forward",
        f"    counter reject with {_ADMIN_PROHIBITED[family]}",
        "  }",
        "}",
    ]
    return lines


def _rules(
    family: str, rules: Sequence[Rule] | None, addresses: Mapping[str, Sequence[str]], dns: Sequence[str]
) -> list[str]:
    reject = f"    counter reject with {_ADMIN_PROHIBITED[family]}"
    if rules is None:
        return [reject]
    lines: list[str] = []
    try:
        for rule in rules:
            lines += _rule(family, rule, addresses, dns)
    except Unresolved:
        return [reject]
    return [*lines, reject]


def _rule(family: str, rule: Rule, addresses: Mapping[str, Sequence[str]], dns: Sequence[str]) -> list[str]:
    verdict = "accept" if rule.action == ACCEPT else f"counter reject with {_ADMIN_PROHIBITED[family]}"
    destination = _destination(family, rule, addresses, dns)
    if destination is None:
        return []
    matches = _service(family, rule.service)
    if rule.special is not None:
        matches = [match for match in _dns_matches() if rule.service.protocol in (None, match.split(" ")[0])]
    return [f"    {destination}{match}{verdict}" for match in matches]


def _destination(family: str, rule: Rule, addresses: Mapping[str, Sequence[str]], dns: Sequence[str]) -> str | None:
    """What a packet's destination must be, with a blank behind it; None: nothing of this family fits.

    :raise Unresolved:
    """
    wanted: list[str] | None = None
    if rule.target is not None and rule.target.family is None:
        found = addresses.get(rule.target.text)
        if not found:
            raise Unresolved(rule.target.text)
        wanted = _of_family(family, found)
    elif rule.target is not None:
        wanted = [rule.target.text] if rule.target.family == _FAMILIES[family] else []
    text = "" if wanted is None else f"{family} daddr {{ {', '.join(wanted)} }} "
    if rule.special is not None:
        servers = _of_family(family, dns)
        text += f"{family} daddr {{ {', '.join(servers)} }} "
        if not servers:
            return None
    return None if wanted == [] else text


def _of_family(family: str, addresses: Sequence[str]) -> list[str]:
    return [address for address in addresses if (":" in address) == (family == "ip6")]


def _dns_matches() -> list[str]:
    return [f"{protocol} dport {DNS_PORT} " for protocol in (TCP, UDP)]


def _service(family: str, service: Service) -> list[str]:
    """What a packet must be, each with a blank behind it; a port without protocol means both that have ports."""
    if service.protocol is None:
        return [""]
    if service.protocol == ICMP:
        kind = "" if service.icmp_type is None else f"{_ICMP[family]} type {service.icmp_type} "
        return [kind or f"meta l4proto {1 if family == 'ip' else 58} "]
    if service.ports is None:
        return [f"meta l4proto {service.protocol} "]
    first, last = service.ports
    return [f"{service.protocol} dport {first}-{last} "]
