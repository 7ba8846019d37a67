"""Decisions: what the golden data do not show, properties, and the misuse cases. See also test_policy_golden.py."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import ARGUMENTS, SERVICES, requests, rules, snapshots

from insula.policy.decisions import Allow, Ask, Deny, Reason, Request
from insula.policy.engine import LOOP_BY_UUID, Miss, answer, evaluate, explain, settle
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.rules import Action, Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot

FACTS = {
    qube.name: qube
    for qube in (
        QubeFacts("dom0", "00000000-0000-0000-0000-000000000000", "AdminVM", power_state="Running"),
        QubeFacts("work", "w", tags=frozenset({"t"}), default_dispvm="dvm", power_state="Running"),
        QubeFacts("vault", "v"),
        QubeFacts("dvm", "d", template_for_dispvms=True, tags=frozenset({"bases"})),
        QubeFacts("disp1", "1", "DispVM", frozenset({"disp-created-by-work"}), power_state="Running"),
        QubeFacts("relay", "r", power_state="Running"),
        QubeFacts("remote", "m", "RemoteVM", relayvm="relay", transport_rpc="test.Ssh"),
        QubeFacts("remote2", "n", "RemoteVM", relayvm="relay", transport_rpc="test.Ssh"),
    )
}
SNAPSHOT = Snapshot(FACTS.values())


def policy(text: str) -> Policy:
    loaded = load(Sources([MemoryFolder({"50-test.policy": text})]))
    loaded.check()
    return loaded


def call(target: str, source: str = "work", service: str = "test.S", argument: str = "+") -> Request:
    return Request(service, argument, source, target)


def applies(rule: Rule, service: str, argument: str) -> bool:
    """Whether the rule is for this call, in the plainest words."""
    return rule.service in ("*", service) and rule.argument in ("*", argument)


def with_changes(**changes: QubeFacts | None) -> Snapshot:
    changed: dict[str, QubeFacts | None] = {**FACTS, **changes}
    return Snapshot(qube for qube in changed.values() if qube is not None)


# properties


@given(st.lists(rules(), max_size=6), requests(), snapshots())
def test_any_call_gets_a_decision_and_explain_agrees(ruleset: list[Rule], request_: Request, here: Snapshot) -> None:
    made = Policy(ruleset)
    decision = evaluate(request_, made, here)
    explanation = explain(request_, made, here)
    assert explanation.decision == decision
    assert isinstance(decision, Allow | Ask | Deny)
    decided = [entry.rule for entry in explanation.considered if entry.miss is None]
    assert [id(rule) for rule in decided] == ([] if decision.rule is None else [id(decision.rule)])
    if isinstance(decision, Allow):
        assert decision.rule.action is Action.ALLOW
        assert decision.qube in here.qubes or decision.target == "dom0"
    if isinstance(decision, Ask):
        assert decision.rule.action is Action.ASK
        assert decision.targets
        assert decision.default_target is None or decision.default_target in decision.targets
        for target in decision.targets:
            assert isinstance(answer(decision, target, here), Allow | Deny)


@given(st.lists(rules(), max_size=6), requests(), snapshots())
def test_rule_that_decides_is_the_first_whose_words_fit(ruleset: list[Rule], request_: Request, here: Snapshot) -> None:
    explanation = explain(request_, Policy(ruleset), here)
    misses = [entry.miss for entry in explanation.considered]
    if None in misses:
        decided = misses.index(None)
        assert Miss.LATER not in misses[:decided]
        assert set(misses[decided + 1 :]) <= {Miss.LATER, Miss.SERVICE, Miss.ARGUMENT}
    for entry in explanation.considered:
        is_for_it = applies(entry.rule, request_.service, request_.argument)
        assert is_for_it == (entry.miss not in (Miss.SERVICE, Miss.ARGUMENT))


@given(requests(), snapshots())
def test_policy_without_rules_denies_everything(request_: Request, here: Snapshot) -> None:
    """MC-27."""
    assert isinstance(evaluate(request_, Policy(()), here), Deny)


@given(st.lists(rules([Action.DENY]), max_size=6), requests(), snapshots())
def test_rules_that_only_deny_never_allow(ruleset: list[Rule], request_: Request, here: Snapshot) -> None:
    assert isinstance(evaluate(request_, Policy(ruleset), here), Deny)


@given(st.lists(rules(), max_size=6), requests(), snapshots())
def test_policy_with_a_problem_denies_everything(ruleset: list[Rule], request_: Request, here: Snapshot) -> None:
    """MC-25: nothing is allowed by any other rule."""
    broken = load(Sources([MemoryFolder({"10-x.policy": "\n".join([*map(str, ruleset), "broken"])})]))
    decision = evaluate(request_, broken, here)
    assert isinstance(decision, Deny)
    assert decision.reason is Reason.INVALID_POLICY
    assert [str(problem.location) for problem in decision.problems] == [f"10-x.policy:{len(ruleset) + 1}"]


@given(st.lists(rules(), max_size=6))
def test_candidates_are_the_rules_for_the_call_in_order(ruleset: list[Rule]) -> None:
    made = Policy(ruleset)
    for service in (*SERVICES, "not.Named", "*"):
        for argument in (*ARGUMENTS, "+not-named", "*"):
            wanted = [id(rule) for rule in ruleset if applies(rule, service, argument)]
            assert [id(rule) for rule in made.candidates(service, argument)] == wanted


# allow


def test_allow_names_the_file_and_line_that_decided() -> None:
    decision = evaluate(call("vault"), policy("# why\n* * work vault allow user=root\n"), SNAPSHOT)
    assert isinstance(decision, Allow)
    assert str(decision.where) == "50-test.policy:2"
    assert (decision.target, decision.qube, decision.user) == ("vault", "vault", "root")
    assert decision.response()["target_uuid"] == "uuid:v"


def test_allow_default_disposable_names_its_base() -> None:
    decision = evaluate(call("@dispvm"), policy("* * work @dispvm allow\n"), SNAPSHOT)
    assert isinstance(decision, Allow)
    assert (decision.target, decision.qube, decision.target_uuid) == ("@dispvm:dvm", "dvm", "@dispvm:uuid:d")


def test_allow_remote_target_goes_to_its_relay() -> None:
    decision = evaluate(call("remote", argument="+a"), policy("* * work remote allow user=root\n"), SNAPSHOT)
    assert isinstance(decision, Allow)
    assert (decision.target, decision.qube, decision.user) == ("relay", "remote", None)
    assert decision.service == "test.Ssh+remote+test.S+a"


@pytest.mark.parametrize(("choice", "is_safe"), [("remote", True), ("remote2", False)])
@pytest.mark.parametrize("target", ["remote", "uuid:m"])
def test_allow_remote_other_than_the_relay_is_told_has_an_objection(target: str, choice: str, is_safe: bool) -> None:
    ask = evaluate(call(target), policy("* * work @type:RemoteVM ask\n"), SNAPSHOT)
    assert isinstance(ask, Ask)
    decision = answer(ask, choice, SNAPSHOT)
    assert isinstance(decision, Allow)
    assert decision.qube == choice
    assert (decision.objection is None) is is_safe


def test_call_to_oneself_by_uuid_has_an_objection() -> None:
    loaded = policy("* * * * allow\n")
    for source, target in (("work", "uuid:w"), ("uuid:w", "work")):
        decision = evaluate(call(target, source), loaded, SNAPSHOT)
        assert isinstance(decision, Allow)
        assert decision.objection == LOOP_BY_UUID
    for target in ("vault", "@dispvm", "dom0", "uuid:v"):
        decision = evaluate(call(target), loaded, SNAPSHOT)
        assert isinstance(decision, Allow)
        assert decision.objection is None


def test_allow_without_start_of_halted_target_is_denied() -> None:
    loaded = policy("* * work * allow autostart=no\n")
    assert evaluate(call("vault"), loaded, SNAPSHOT) == Deny(Reason.NOT_RUNNING, False, loaded.rules[0])
    assert isinstance(evaluate(call("relay"), loaded, SNAPSHOT), Allow)
    assert isinstance(evaluate(call("@dispvm"), loaded, SNAPSHOT), Deny)


def test_call_to_oneself_is_denied() -> None:
    loaded = policy("* * * * allow\n")
    decision = evaluate(call("work"), loaded, SNAPSHOT)
    assert isinstance(decision, Deny)
    assert decision.reason is Reason.LOOP


def test_unknown_target_is_the_default_one() -> None:
    loaded = policy("* * work @default allow target=vault\n* * work gone deny\n")
    decision = evaluate(call("gone"), loaded, SNAPSHOT)
    assert isinstance(decision, Allow)
    assert (decision.target, decision.requested_target) == ("vault", "@default")


# misuse cases


@pytest.mark.parametrize("target", ["DOM0", "dom0 ", "Vault", "VAULT", "v\u0430ult", "default", "@Default"])
def test_target_that_looks_like_another_is_not_that(target: str) -> None:
    """MC-19: targets are compared as exact text."""
    decision = evaluate(call(target), policy("* * * dom0 allow\n* * * vault allow\n"), SNAPSHOT)
    assert isinstance(decision, Deny)


@pytest.mark.parametrize("name", ["@anyvm", "@default", "*", "uuid:v", ""])
def test_qube_named_like_a_token_cannot_be_judged(name: str) -> None:
    """MC-19."""
    with pytest.raises(ValueError, match="is no name of a qube"):
        Snapshot([QubeFacts(name)])


@pytest.mark.parametrize("requested", ["vault", "gone", "remote", "dom0", "@adminvm"])
def test_caller_that_names_another_source_is_denied(requested: str) -> None:
    """MC-18: only a relay speaks for others, and only for those it relays for."""
    request_ = Request("test.S", "+", "work", "vault", requested_source=requested)
    decision = evaluate(request_, policy("* * * * allow\n"), SNAPSHOT)
    assert decision == Deny(Reason.BAD_RELAY, notify=True)


def test_relay_speaks_for_its_remote() -> None:
    request_ = Request("test.S", "+", "relay", "vault", requested_source="remote")
    decision = evaluate(request_, policy("* * remote vault allow\n* * relay * deny\n"), SNAPSHOT)
    assert isinstance(decision, Allow)
    assert decision.policy_source == "remote"


@pytest.mark.parametrize("choice", ["vault", "@dispvm:dvm"])
@pytest.mark.parametrize("gone", ["work", "vault", "dvm"])
def test_qube_replaced_during_a_prompt_does_not_inherit_the_permission(choice: str, gone: str) -> None:
    """MC-20."""
    ask = evaluate(call("@default"), policy("* * work * ask\n"), SNAPSHOT)
    assert isinstance(ask, Ask)
    assert isinstance(answer(ask, choice, SNAPSHOT), Allow)
    concerned = gone in ("work", choice.removeprefix("@dispvm:"))
    for now in (with_changes(**{gone: None}), with_changes(**{gone: replace(FACTS[gone], uuid="new")})):
        decision = answer(ask, choice, now)
        assert isinstance(decision, Deny if concerned else Allow)


def test_choice_not_offered_is_denied() -> None:
    ask = evaluate(call("vault"), policy("* * work vault ask\n* * work dom0 deny\n"), SNAPSHOT)
    assert isinstance(ask, Ask)
    assert ask.targets == ("vault",)
    for choice in ("dom0", "relay", "", "@default", "@dispvm", "*"):
        decision = answer(ask, choice, SNAPSHOT)
        assert isinstance(decision, Deny)
        assert decision.reason is Reason.NOT_OFFERED


def test_ask_where_nobody_can_be_asked_is_denied_with_that_reason() -> None:
    """MC-31."""
    ask = evaluate(call("vault"), policy("* * work vault ask\n"), SNAPSHOT)
    assert settle(ask, SNAPSHOT, assume_yes=False) == Deny(Reason.NOBODY_TO_ASK, notify=True, rule=ask.rule)


def test_ask_with_yes_assumed_is_the_target_the_caller_named_if_it_is_offered() -> None:
    loaded = policy("* * work vault ask\n* * work relay ask target=vault\n* * * * deny\n")
    assumed = [
        settle(evaluate(call(target), loaded, SNAPSHOT), SNAPSHOT, assume_yes=True) for target in ("vault", "relay", "")
    ]
    assert [type(decision) for decision in assumed] == [Allow, Deny, Deny]


def test_prompt_offers_only_what_rules_let_the_caller_reach() -> None:
    loaded = policy("* * work @default ask default_target=relay\n* * work vault deny\n* * work @type:AppVM allow\n")
    ask = evaluate(call(""), loaded, SNAPSHOT)
    assert isinstance(ask, Ask)
    assert ask.targets == ("dvm", "relay")
    assert ask.default_target == "relay"


def test_target_of_a_rule_that_no_longer_exists_is_never_an_allow() -> None:
    """MC-28."""
    for line in ("* * work vault allow target=gone", "* * work vault allow target=@dispvm:gone"):
        assert isinstance(evaluate(call("vault"), policy(line + "\n"), SNAPSHOT), Deny)
    ask = evaluate(call("vault"), policy("* * work vault ask target=gone\n"), SNAPSHOT)
    assert isinstance(ask, Ask)
    assert isinstance(answer(ask, "gone", SNAPSHOT), Deny)


def test_disposable_has_no_rights_of_its_base_or_opener() -> None:
    """MC-34: rules mean a disposable by its own name, type and tags."""
    for source in ("work", "dvm", "@type:AppVM", "@tag:t", "@dispvm:dvm", "@dispvm:@tag:bases"):
        decision = evaluate(call("vault", source="disp1"), policy(f"* * {source} vault allow\n"), SNAPSHOT)
        assert isinstance(decision, Deny), source
    for source in ("disp1", "@type:DispVM", "@tag:disp-created-by-work"):
        decision = evaluate(call("vault", source="disp1"), policy(f"* * {source} vault allow\n"), SNAPSHOT)
        assert isinstance(decision, Allow), source


def test_default_disposable_that_is_gone_is_denied_not_decided_by_a_later_rule() -> None:
    here = with_changes(work=replace(FACTS["work"], default_dispvm="gone"))
    loaded = policy("* * work @dispvm:@tag:bases deny\n* * work * allow target=vault\n")
    decision = evaluate(call("@dispvm"), loaded, here)
    assert decision == Deny(Reason.NO_DEFAULT_BASE, False, loaded.rules[0])


@pytest.mark.parametrize("source", ["@anyvm", "@default", "@dispvm:dvm", "@tag:t"])
def test_token_as_caller_is_denied(source: str) -> None:
    decision = evaluate(call("vault", source=source), policy("* * * * allow\n"), SNAPSHOT)
    assert decision == Deny(Reason.BAD_SOURCE, notify=False)


# explain


def test_explain_says_of_each_rule_why_it_did_not_decide() -> None:
    loaded = policy(
        "other.S * work vault deny\n"
        "test.S +a work vault deny\n"
        "test.S * disp1 vault deny\n"
        "test.S * work dom0 deny\n"
        "test.S + @tag:t @anyvm allow\n"
        "* * * * deny\n"
    )
    explanation = explain(call("vault"), loaded, SNAPSHOT)
    assert [entry.miss for entry in explanation.considered] == [
        Miss.SERVICE, Miss.ARGUMENT, Miss.SOURCE, Miss.TARGET, None, Miss.LATER,
    ]  # fmt: skip


def test_explain_of_a_call_denied_before_the_rules_considers_none() -> None:
    explanation = explain(call("@tag:t"), policy("* * * * allow\n"), SNAPSHOT)
    assert explanation.considered == ()
    assert explanation.decision == Deny(Reason.BAD_TARGET, notify=False)
