"""Invariant: any text is rules, which are written and read as the same ones, or FirewallError; what is made of them for
``nft`` is printable."""

from __future__ import annotations

import harness

from insula_agent.net.firewall_rules import tables
from insula_proto.firewall import FirewallError, format_rules, parse_rules

SEEDS = [
    b"action=accept\n",
    b"action=accept proto=tcp dsthost=example.org dstports=80-443 expire=5 comment=a b\naction=drop\n",
    b"action=drop specialtarget=dns\naction=accept dst6=fd00::/8 proto=icmp icmptype=8\n",
]


def fuzz_one(data: bytes) -> None:
    try:
        rules = parse_rules(data.decode("utf-8", "replace"))
    except FirewallError:
        return
    assert parse_rules(format_rules(rules)) == rules
    text = tables({"10.137.0.4": rules, "fd00::4": rules}, {"example.org": ["192.0.2.1"]}, ["10.139.1.1"])
    assert all(character == "\n" or " " <= character <= "~" for character in text)


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
