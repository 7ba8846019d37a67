from __future__ import annotations

import pytest

from insula.policy.decisions import Allow, Request
from insula.policy.engine import evaluate
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.rpc.route import NoRoute, Route, ToDisposable, ToHost, ToQube, route

UUIDS = {name: f"00000000-0000-4000-8000-00000000000{number}" for number, name in enumerate("abcdefg", 1)}
SNAPSHOT = Snapshot(
    (
        QubeFacts("dom0", klass="AdminVM", power_state="Running"),
        QubeFacts("work", UUIDS["a"], default_dispvm="dvm"),
        QubeFacts("vault", UUIDS["b"]),
        QubeFacts("dvm", UUIDS["c"], template_for_dispvms=True),
        QubeFacts("relay", UUIDS["d"]),
        QubeFacts("far", UUIDS["e"], klass="RemoteVM", relayvm="relay", transport_rpc="t.Relay"),
    )
)


def way(rule: str, target: str, *, source: str = "work", claimed: str = "", argument: str = "+x") -> Route:
    """Where a call of ``a.B+x`` goes under one rule."""
    policy = load(Sources([MemoryFolder({"50-a.policy": rule})]))
    decision = evaluate(Request("a.B", argument, source, target, claimed), policy, SNAPSHOT)
    assert isinstance(decision, Allow), decision
    return route(decision)


def test_qube_gets_the_published_command_and_the_user_of_the_rule() -> None:
    uuid = f"uuid:{UUIDS['b']}"
    assert way("a.B * work vault allow", "vault") == ToQube("vault", uuid, "", b"QUBESRPC a.B+x work")
    assert way("a.B * work vault allow user=root", uuid, argument="+") == ToQube(
        "vault", uuid, "root", b"QUBESRPC a.B+ work"
    )


def test_disposable_is_made_of_the_base_that_was_decided_on() -> None:
    expected = ToDisposable("dvm", f"uuid:{UUIDS['c']}", "", b"QUBESRPC a.B+x work")
    assert way("a.B * work @dispvm allow", "@dispvm") == expected
    assert way("a.B * work @dispvm:dvm allow", "@dispvm:dvm") == expected
    assert way("a.B * work @default allow target=@dispvm:dvm", "") == expected


@pytest.mark.parametrize(
    ("target", "destination"),
    [("dom0", "dom0"), ("@adminvm", "dom0"), ("", "dom0"), ("vault", "vault"), ("@dispvm", "dom0")],
)
def test_host_is_told_whom_the_caller_named(target: str, destination: str) -> None:
    assert way("a.B * work * allow target=@adminvm", target) == ToHost("a.B", "x", destination)


def test_remote_qube_is_reached_through_its_relay() -> None:
    assert way("a.B * work far allow user=root", "far") == ToQube(
        "relay", f"uuid:{UUIDS['d']}", "", b"QUBESRPC t.Relay+far+a.B+x work"
    )


def test_remote_qube_that_calls_goes_by_its_own_name() -> None:
    found = way("a.B * far vault allow", "vault", source="relay", claimed="far")
    assert found == ToQube("vault", f"uuid:{UUIDS['b']}", "", b"QUBESRPC a.B+x far")


@pytest.mark.parametrize(
    ("rule", "target"),
    [
        ("a.B * work @anyvm allow", f"uuid:{UUIDS['a']}"),  # a call to oneself, spelt otherwise
        ("a.B * work vault allow target=far", "vault"),  # MC-114: the relay would be told another target
    ],
)
def test_what_the_published_answer_allows_and_is_unsafe_has_no_route(rule: str, target: str) -> None:
    with pytest.raises(NoRoute):
        way(rule, target)
