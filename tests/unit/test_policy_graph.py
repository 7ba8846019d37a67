"""What a policy adds up to."""

from insula.policy.errors import Location
from insula.policy.folders import MemoryFolder
from insula.policy.graph import Edge, calls_of, dot, edges
from insula.policy.loader import Sources, load
from insula.policy.rules import Action
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot

SNAPSHOT = Snapshot(
    [
        QubeFacts("dom0", "0", "AdminVM"),
        QubeFacts("dvm", "d", template_for_dispvms=True),
        QubeFacts("vault", "v"),
        QubeFacts("work", "w", default_dispvm="dvm"),
    ]
)
HERE = Location("", "x.policy", 1)


def policy(text: str) -> Policy:
    loaded = load(Sources([MemoryFolder({"x.policy": text})]))
    loaded.check()
    return loaded


def test_calls_are_those_that_rules_name_and_those_asked_for() -> None:
    loaded = policy("a.B +x * * deny\na.B * * * deny\nc.D +y * * deny\n* * * * deny\n")
    assert calls_of(loaded) == [("a.B", "+"), ("a.B", "+x"), ("c.D", "+"), ("c.D", "+y")]
    assert calls_of(loaded, ["c.D", "e.F"]) == [("c.D", "+"), ("c.D", "+y"), ("e.F", "+")]


def test_edges_name_where_a_call_ends() -> None:
    loaded = policy("a.B * work @dispvm allow\na.B * work @default ask target=vault\na.B * vault work ask\n")
    found = [(edge.source, edge.target, edge.action.value) for edge in edges(loaded, SNAPSHOT, [("a.B", "+")])]
    assert found == [("vault", "work", "ask"), ("work", "vault", "ask"), ("work", "@dispvm:dvm", "allow")]


def test_edges_of_a_policy_that_denies_are_none() -> None:
    assert list(edges(policy("* * * * deny\n"), SNAPSHOT, [("a.B", "+")])) == []
    assert list(edges(policy(""), SNAPSHOT, [("a.B", "+")])) == []


def test_dot_draws_an_allowed_call_solid_and_quotes_names() -> None:
    found = [
        Edge("a.B", "+", "work", "vault,gone", Action.ASK, HERE),
        Edge("a.B", "+", "work", "vault", Action.ALLOW, HERE),
        Edge("c.D", "+x", "work", 'od"d\\', Action.ASK, HERE),
    ]
    assert dot(found).splitlines()[3:-1] == [
        '  "work" -> "gone" [label="a.B", style=dashed];',
        '  "work" -> "od\\"d\\\\" [label="c.D+x", style=dashed];',
        '  "work" -> "vault" [label="a.B"];',
    ]
