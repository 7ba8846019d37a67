"""What a guest may say of itself, and what it may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import ProtocolError, QubesVMNotFoundError
from insula.model.feature_requests import MAX_BOOT_MODES, MAX_REQUESTED, Outcome, apply_request, parse_request
from insula.model.features import MAX_FEATURES
from insula.model.names import QubeName
from insula.model.system import System
from insula.testing.systems import DISPOSABLE, TEMPLATE, WORK, all_halted, small_system

SAFE = st.text(alphabet="abcXYZ019.,_= -", max_size=12)


def request(system: System, name: QubeName, **features: str) -> Outcome:
    """Names with ``__`` for a dot and ``_`` for a dash, as Python has neither."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in features.items()}
    return ask(system, name, named)


def ask(system: System, name: QubeName, features: dict[str, str]) -> Outcome:
    keys = {f"/features-request/{key}": value.encode() for key, value in features.items()}
    return apply_request(system, name, parse_request(keys), all_halted)


def features_of(outcome: Outcome, name: QubeName = TEMPLATE) -> dict[str, str]:
    return dict(outcome.system.get(name).features)


def test_what_a_template_says_of_its_system_is_kept() -> None:
    said = {
        "os": "Linux", "os-distribution": "debian", "os-distribution-like": "debian ubuntu", "os-version": "12.9-1",
        "os-eol": "2028-06-30", "qubes-agent-version": "4.3", "anon-timezone": "1",
    }  # fmt: skip
    outcome = ask(small_system(), TEMPLATE, said)
    assert features_of(outcome) == said
    assert outcome.ignored == ()


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("os", "BeOS"), ("os", ""), ("os-distribution", ""), ("os-version", ""), ("os-version", "bookworm"),
        ("os-version", ".1"), ("os-eol", "2028-13-01"), ("os-eol", "28-06-30"), ("os-eol", "2028-6-30"), ("os-eol", ""),
        ("qubes-agent-version", "4"), ("qubes-agent-version", "4.3.1"), ("qubes-agent-version", "4444.1"),
        ("anon-timezone", "0"), ("anon-timezone", ""), ("qrexec", "yes"), ("gui", ""), ("vmexec", "2"),
        ("supported-service.x", "0"), ("supported-feature.", "1"), ("supported-rpc.a/b", "1"),
        ("internal", "1"), ("template", "x"), ("preload-dispvm", "x"), ("service.x", "1"), ("vm-config.x", "1"),
        ("boot-mode.active", "x"), ("boot-mode.name.x", "X"), ("boot-mode.kernelopts.default", "x"),
        ("boot-mode.kernelopts.", "x"), ("boot-mode.kernelopts.a.b", "x"), ("boot-mode.default-user.default", "x"),
    ],
)  # fmt: skip
def test_anything_else_is_ignored_and_named(feature: str, value: str) -> None:
    """MC-75: nothing a guest says sets what is not on the list."""
    outcome = ask(small_system(), TEMPLATE, {feature: value})
    assert features_of(outcome) == {}
    assert outcome.ignored == (feature,)


@pytest.mark.parametrize("value", [b"a\n", b"a;b", b"\xff", b"$(id)", b"a/b", b"a'b", b"\0", "ä".encode()])
def test_value_with_another_character_refuses_the_whole_request(value: bytes) -> None:
    """MC-16."""
    with pytest.raises(ProtocolError):
        parse_request({"/features-request/os": b"Linux", "/features-request/os-distribution": value})


def test_too_many_are_refused_and_other_keys_are_not_looked_at() -> None:
    with pytest.raises(ProtocolError):
        parse_request({f"/features-request/x{number}": b"1" for number in range(MAX_REQUESTED + 1)})
    assert parse_request({"/qubes-tools/os": b"\xff", "/dns/1": b";"}) == {}


def test_first_word_counts_for_what_becomes_the_users() -> None:
    first = request(small_system(), TEMPLATE, qrexec="1", gui="0", vmexec="1")
    assert features_of(first) == {"qrexec": "1", "gui": "", "vmexec": "1"}
    assert first.is_first
    second = request(first.system, TEMPLATE, qrexec="0", gui="1", vmexec="0")
    assert features_of(second) == {"qrexec": "1", "gui": "", "vmexec": ""}
    assert second.ignored == ("gui", "qrexec")
    assert not second.is_first


def test_set_replaces_the_old_one_and_an_empty_one_nothing() -> None:
    first = ask(small_system(), TEMPLATE, {"supported-rpc.a": "1", "supported-rpc.b": "1", "supported-service.c": "1"})
    second = ask(first.system, TEMPLATE, {"supported-rpc.b": "1", "supported-rpc.d": "1"})
    assert set(features_of(second)) == {"supported-rpc.b", "supported-rpc.d", "supported-service.c"}
    assert ask(second.system, TEMPLATE, {"supported-rpc.x": "0"}).system == second.system


@pytest.mark.parametrize("name", [WORK, DISPOSABLE])
def test_qube_with_a_template_tells_its_own_services_only(name: QubeName) -> None:
    outcome = ask(
        small_system(), name, {"supported-rpc.a": "1", "os": "Linux", "supported-service.b": "1", "qrexec": "1"}
    )
    assert features_of(outcome, name) == {"supported-rpc.a": "1"}
    assert outcome.ignored == ("os", "qrexec", "supported-service.b")
    assert not outcome.is_first
    assert features_of(outcome) == {}


def test_boot_modes_are_replaced_together() -> None:
    said = {
        "boot-mode.kernelopts.safe": "a=1 b", "boot-mode.name.safe": "Safe", "boot-mode.default-user.safe": "root",
        "boot-mode.name.default": "Usual", "boot-mode.active": "safe", "boot-mode.appvm-default": "default",
        "boot-mode.standalone-default": "gone",
    }  # fmt: skip
    first = ask(small_system(), TEMPLATE, said)
    assert features_of(first) == {key: value for key, value in said.items() if value != "gone"}
    second = ask(first.system, TEMPLATE, {"boot-mode.kernelopts.other": "c"})
    assert features_of(second)["boot-mode.kernelopts.other"] == "c"
    assert "boot-mode.kernelopts.safe" not in features_of(second)
    assert "boot-mode.name.default" not in features_of(second)


def test_boot_modes_with_one_name_twice_or_too_many_are_not_taken() -> None:
    twice = {
        "boot-mode.kernelopts.a": "",
        "boot-mode.kernelopts.b": "",
        "boot-mode.name.a": "X",
        "boot-mode.name.b": "X",
    }
    assert features_of(ask(small_system(), TEMPLATE, twice)) == {}
    many = {f"boot-mode.kernelopts.m{number}": "x" for number in range(MAX_BOOT_MODES + 1)}
    assert features_of(ask(small_system(), TEMPLATE, many)) == {}


def test_qube_that_is_gone_is_not_found() -> None:
    """MC-20."""
    with pytest.raises(QubesVMNotFoundError):
        ask(small_system(), QubeName("gone"), {"os": "Linux"})


@given(
    st.dictionaries(
        st.sampled_from(
            ["os", "qrexec", "gui", "os-eol", "os-version", "boot-mode.active", "boot-mode.kernelopts.a",
             "boot-mode.name.a", "boot-mode.name.b", "boot-mode.kernelopts.b", "supported-rpc.a", "supported-rpc.b"]
        ) | SAFE,
        SAFE | st.sampled_from(["0", "1", "a", "b", "default"]),
        max_size=8,
    )
)  # fmt: skip
def test_any_request_changes_only_features_of_the_list_and_is_idempotent(said: dict[str, str]) -> None:
    system = small_system()
    outcome = ask(system, TEMPLATE, said)
    changed = features_of(outcome)
    assert all(key in said for key in changed)
    assert all(changed[key] in (said[key], "") for key in changed)
    assert set(outcome.ignored) | set(changed) == set(said)
    again = ask(outcome.system, TEMPLATE, said)
    assert again.system == outcome.system
    others = {name: qube for name, qube in outcome.system.qubes.items() if name != TEMPLATE}
    assert others == {name: qube for name, qube in system.qubes.items() if name != TEMPLATE}


def test_features_stay_below_their_number() -> None:
    system = small_system()
    outcome = ask(system, TEMPLATE, {f"supported-rpc.x{number}": "1" for number in range(MAX_REQUESTED)})
    assert len(features_of(outcome)) == MAX_REQUESTED < MAX_FEATURES
