"""Rules of a qube's firewall, one a line (admin-api §7): text to values and back. Pure; shared by host and net qube.

The host parses what people set and writes it into the net qube's keys in one canonical form; the net qube parses it
again before it becomes a rule of the kernel. After the last rule everything is dropped.
"""

from __future__ import annotations

import ipaddress

from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

ACCEPT = "accept"
DROP = "drop"
TCP = "tcp"
UDP = "udp"
ICMP = "icmp"
DNS = "dns"
"""The only special target there is."""

MAX_RULES = 1000
"""Of one qube; a key of the net qube each, numbered with four digits (agent-services §13)."""
MAX_LINE = 512
"""Characters of a rule: the longest without comment has some 400."""
MAX_HOST = 253
"""Characters of a host name (RFC 1035 §2.3.4)."""
MAX_COMMENT = 200
MAX_PORT = 65535
MAX_ICMP_TYPE = 255
MAX_TIME = 2**40
"""Unix time of an expiry; far beyond any that is meant."""

_HOST_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_COMMENT_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:;,./_[] -")
_KEYS = frozenset(
    ("action", "specialtarget", "proto", "dst4", "dst6", "dsthost", "dstname", "dstports", "icmptype", "expire")
)


class FirewallError(ValueError):
    """A line is no rule; the message says why."""


class Target(Value):
    """Where packets go: a network, or a host by its name."""

    __slots__ = ("family", "text")
    family: Optional[int]
    """4 or 6: ``text`` is ``ADDRESS/LENGTH``; None: the name of a host."""
    text: str

    def __init__(self, family: Optional[int], text: str) -> None:
        self._fill(family=family, text=text)


class Service(Value):
    """What packets are."""

    __slots__ = ("icmp_type", "ports", "protocol")
    protocol: Optional[str]
    """None: any."""
    ports: Optional[tuple[int, int]]
    """First and last."""
    icmp_type: Optional[int]

    def __init__(
        self, protocol: Optional[str], ports: Optional[tuple[int, int]] = None, icmp_type: Optional[int] = None
    ) -> None:
        """:raise FirewallError: parts that do not go together."""
        if ports is not None and protocol not in (TCP, UDP):
            raise FirewallError("dstports needs proto=tcp or proto=udp")
        if icmp_type is not None and protocol != ICMP:
            raise FirewallError("icmptype needs proto=icmp")
        self._fill(icmp_type=icmp_type, ports=ports, protocol=protocol)


ANY_SERVICE = Service(None)


class Rule(Value):
    """One rule. None: the rule does not ask about it."""

    __slots__ = ("action", "comment", "expire", "service", "special", "target")
    action: str
    """:data:`ACCEPT` or :data:`DROP`."""
    target: Optional[Target]
    service: Service
    special: Optional[str]
    expire: Optional[int]
    """Unix time from which the rule is gone."""
    comment: Optional[str]

    def __init__(
        self,
        action: str,
        target: Optional[Target] = None,
        service: Service = ANY_SERVICE,
        *,
        special: Optional[str] = None,
        expire: Optional[int] = None,
        comment: Optional[str] = None,
    ) -> None:
        self._fill(action=action, comment=comment, expire=expire, service=service, special=special, target=target)


def parse_rules(untrusted_text: str) -> list[Rule]:
    """Rules of a whole text, one a line; empty lines are left out. :raise FirewallError: names the line."""
    rules: list[Rule] = []
    for number, line in enumerate(untrusted_text.split("\n"), 1):
        if not line:
            continue
        if len(rules) == MAX_RULES:
            raise FirewallError(f"more than {MAX_RULES} rules")
        try:
            rules.append(parse_rule(line))
        except FirewallError as error:
            raise FirewallError(f"line {number}: {error}") from error
    return rules


def parse_rule(untrusted_line: str) -> Rule:
    """The rule of a line; parts in any order, the comment last. :raise FirewallError:"""
    if len(untrusted_line) > MAX_LINE:
        raise FirewallError(f"longer than {MAX_LINE} characters")
    untrusted_parts, found, untrusted_comment = untrusted_line.partition("comment=")
    comment = _comment(untrusted_comment) if found else None
    if found and untrusted_parts and not untrusted_parts.endswith(" "):
        raise FirewallError("comment is a part of its own")
    parts: dict[str, str] = {}
    for word in untrusted_parts.split(" "):
        if not word:
            continue
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise FirewallError(f"not of the form key=value: {word!a}")
        if key not in _KEYS:
            raise FirewallError(f"unknown key {key!a}")
        if key in parts:
            raise FirewallError(f"{key} is given twice")
        parts[key] = value
    return _rule(parts, comment)


def _rule(parts: dict[str, str], comment: Optional[str]) -> Rule:
    service = Service(
        _one_of(parts, "proto", (TCP, UDP, ICMP)),
        _ports(parts["dstports"]) if "dstports" in parts else None,
        _number(parts, "icmptype", MAX_ICMP_TYPE),
    )
    return Rule(
        _one_of(parts, "action", (ACCEPT, DROP)) or _missing("action"),
        _target(parts),
        service,
        special=_one_of(parts, "specialtarget", (DNS,)),
        expire=_number(parts, "expire", MAX_TIME),
        comment=comment,
    )


def _missing(key: str) -> str:
    raise FirewallError(f"{key} is missing")


def _one_of(parts: dict[str, str], key: str, allowed: tuple[str, ...]) -> Optional[str]:
    value = parts.get(key)
    if value is not None and value not in allowed:
        raise FirewallError(f"{key} is one of {', '.join(allowed)}, not {value!a}")
    return value


def _number(parts: dict[str, str], key: str, largest: int) -> Optional[int]:
    value = parts.get(key)
    return None if value is None else _decimal(key, value, largest)


def _decimal(what: str, text: str, largest: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(largest)) or int(text) > largest:
        raise FirewallError(f"{what} is a number up to {largest}, not {text!a}")
    return int(text)


def _ports(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first = _decimal("a port", low, MAX_PORT)
    last = _decimal("a port", high, MAX_PORT) if dash else first
    if first > last:
        raise FirewallError(f"ports {text} go backwards")
    return first, last


def _target(parts: dict[str, str]) -> Optional[Target]:
    given = [key for key in ("dst4", "dst6", "dsthost", "dstname") if key in parts]
    if not given:
        return None
    if len(given) > 1:
        raise FirewallError(f"{' and '.join(given)} exclude each other")
    key, value = given[0], parts[given[0]]
    if key in ("dst4", "dst6"):
        return _network(value, int(key[-1]))
    for family in (4, 6):
        # An address given as a host is one (admin-api §7).
        if "/" not in value and _address(value, family) is not None:
            return _network(value, family)
    if len(value) > MAX_HOST or not _HOST_LETTERS.issuperset(value) or value[0] in ".-" or ".." in value:
        raise FirewallError(f"not a host name: {value!a}")
    return Target(None, value)


def _address(text: str, family: int) -> Optional[str]:
    """In its one canonical spelling; None: it is none."""
    if "%" in text or not text.isascii():
        return None
    try:
        return str(ipaddress.IPv4Address(text) if family == 4 else ipaddress.IPv6Address(text))
    except ValueError:
        return None


def _network(text: str, family: int) -> Target:
    address_text, slash, length_text = text.partition("/")
    address = _address(address_text, family)
    if address is None:
        raise FirewallError(f"not an IPv{family} address: {address_text!a}")
    bits = 32 if family == 4 else 128
    length = _decimal("a prefix length", length_text, bits) if slash else bits
    return Target(family, f"{address}/{length}")


def _comment(untrusted_text: str) -> str:
    if len(untrusted_text) > MAX_COMMENT or not _COMMENT_LETTERS.issuperset(untrusted_text):
        raise FirewallError(f"a comment has at most {MAX_COMMENT} of A-Z a-z 0-9 : ; , . / _ [ ] - and blanks")
    return untrusted_text


def format_rule(rule: Rule, *, for_guest: bool = False) -> str:
    """The line of a rule, in the published order (admin-api §7).

    ``for_guest``: what a net qube is told: without expiry and comment, which are the host's business.
    """
    parts = [f"action={rule.action}"]
    if rule.special is not None:
        parts.append(f"specialtarget={rule.special}")
    if rule.service.protocol is not None:
        parts.append(f"proto={rule.service.protocol}")
    if rule.target is not None:
        parts.append(f"dst{rule.target.family or 'host'}={rule.target.text}")
    if rule.service.ports is not None:
        parts.append("dstports={}-{}".format(*rule.service.ports))
    if rule.service.icmp_type is not None:
        parts.append(f"icmptype={rule.service.icmp_type}")
    if not for_guest and rule.expire is not None:
        parts.append(f"expire={rule.expire}")
    if not for_guest and rule.comment is not None:
        parts.append(f"comment={rule.comment}")
    return " ".join(parts)


def format_rules(rules: list[Rule]) -> str:
    """What ``admin.vm.firewall.Get`` answers: a line each, each ended."""
    return "".join([f"{format_rule(rule)}\n" for rule in rules])
