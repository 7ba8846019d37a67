"""Lines of firewall rules: what is a rule, what is refused, and that nothing is lost on the way (admin-api §7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto.firewall import (
    DNS,
    ICMP,
    MAX_COMMENT,
    MAX_LINE,
    MAX_RULES,
    TCP,
    UDP,
    FirewallError,
    Rule,
    Service,
    Target,
    format_rule,
    format_rules,
    parse_rule,
    parse_rules,
)

ports = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: (min(pair), max(pair)))
services = st.one_of(
    st.builds(Service, st.none() | st.sampled_from([TCP, UDP, ICMP])),
    st.builds(Service, st.sampled_from([TCP, UDP]), ports),
    st.builds(lambda kind: Service(ICMP, None, kind), st.integers(0, 255)),
)
targets = st.one_of(
    st.none(),
    st.builds(lambda a, n: Target(4, f"{a}/{n}"), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda a, n: parse_rule(f"action=drop dst6={a}/{n}").target, st.ip_addresses(v=6), st.integers(0, 128)),
    st.from_regex(r"[a-z_][a-z0-9_-]{0,20}(\.[a-z0-9_-]{1,20}){0,3}", fullmatch=True).map(
        lambda name: Target(None, name)
    ),
)
comments = st.none() | st.text("abcXYZ09:;,./_[] -", max_size=MAX_COMMENT)
rules = st.builds(
    Rule,
    st.sampled_from(["accept", "drop"]),
    targets,
    services,
    special=st.none() | st.just(DNS),
    expire=st.none() | st.integers(0, 2**40),
    comment=comments,
)


@given(rules)
def test_every_rule_is_read_as_it_was_written(rule: Rule) -> None:
    line = format_rule(rule)
    if len(line) <= MAX_LINE:
        assert parse_rule(line) == rule


@given(st.lists(rules, max_size=20))
def test_rules_are_read_in_their_order(many: list[Rule]) -> None:
    assert parse_rules(format_rules(many)) == many


@given(rules, st.randoms())
def test_parts_may_come_in_any_order_but_for_the_comment(rule: Rule, random: object) -> None:
    line, found, comment = format_rule(rule).partition(" comment=")
    words = line.split(" ")
    random.shuffle(words)  # type: ignore[attr-defined]
    assert parse_rule(" ".join(words) + found + comment) == rule


@given(st.text(max_size=200) | st.text("actionprsd46=hotmen /-:.0123 ", max_size=80))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    try:
        rule = parse_rule(text)
    except FirewallError:
        return
    assert parse_rule(format_rule(rule)) == rule


@pytest.mark.parametrize(
    ("line", "canonical"),
    [
        ("action=accept", "action=accept"),
        ("proto=tcp action=drop dstports=80", "action=drop proto=tcp dstports=80-80"),
        ("action=accept dst4=10.0.0.1", "action=accept dst4=10.0.0.1/32"),
        ("action=accept dst6=FD00::1", "action=accept dst6=fd00::1/128"),
        ("action=accept dsthost=10.0.0.1", "action=accept dst4=10.0.0.1/32"),
        ("action=accept dsthost=fd00::1", "action=accept dst6=fd00::1/128"),
        ("action=accept dstname=example.org", "action=accept dsthost=example.org"),
        ("action=accept comment=a=b", None),
        ("action=accept  proto=icmp icmptype=8", "action=accept proto=icmp icmptype=8"),
        ("specialtarget=dns action=accept", "action=accept specialtarget=dns"),
        ("action=accept comment=two words", "action=accept comment=two words"),
    ],
)
def test_published_forms(line: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(FirewallError):
            parse_rule(line)
    else:
        assert format_rule(parse_rule(line)) == canonical


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "action is missing"),
        ("proto=tcp", "action is missing"),
        ("action=reject", "action is one of"),
        ("action=accept action=drop", "given twice"),
        ("action=accept colour=red", "unknown key"),
        ("action=accept dstports=80", "needs proto"),
        ("action=accept proto=icmp dstports=80", "needs proto"),
        ("action=accept icmptype=8", "needs proto=icmp"),
        ("action=accept proto=tcp dstports=90-80", "backwards"),
        ("action=accept proto=tcp dstports=65536", "a port"),
        ("action=accept proto=tcp dstports=", "key=value"),
        ("action=accept dst4=10.0.0.1/33", "prefix length"),
        ("action=accept dst4=10.0.0", "IPv4"),
        ("action=accept dst4=::1", "IPv4"),
        ("action=accept dst4=10.0.0.1 dst6=::1", "exclude"),
        ("action=accept dsthost=a;b", "host name"),
        ("action=accept dsthost=a..b", "host name"),
        ("action=accept dsthost=-a", "host name"),
        ("action=accept dsthost=" + "a" * 254, "host name"),
        ("action=accept expire=-1", "expire"),
        ("action=accept expire=٣", "expire"),
        ('action=accept comment="quoted"', "comment"),
        ("action=accept comment=" + "a" * (MAX_COMMENT + 1), "comment"),
        ("action=acceptcomment=x", "part of its own"),
        ("action=accept" + " " * MAX_LINE, "longer"),
        ("action=accept\rproto=tcp", "action is one of"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(line: str, why: str) -> None:
    with pytest.raises(FirewallError, match=why):
        parse_rule(line)


def test_wrong_line_is_named_and_too_many_are_refused() -> None:
    with pytest.raises(FirewallError, match="line 2: unknown key"):
        parse_rules("action=accept\nx=y\n")
    assert len(parse_rules("action=drop\n" * MAX_RULES)) == MAX_RULES
    with pytest.raises(FirewallError, match="more than"):
        parse_rules("action=drop\n" * (MAX_RULES + 1))


def test_net_qube_is_not_told_time_and_comment() -> None:
    rule = parse_rule("action=drop proto=udp expire=5 comment=secret plan")
    assert format_rule(rule, for_guest=True) == "action=drop proto=udp"
