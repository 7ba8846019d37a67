"""Decide a call: :func:`evaluate`, :func:`explain` (the same, telling how), :func:`answer` (the user has chosen),
:func:`settle` (nobody can be asked).

Pure and total: any request, policy and snapshot give a decision, and every path that finds no reason to allow denies.
Steps: the request's words are looked up (:func:`_prepare`), the first rule whose keys fit is found
(:func:`_first_match`), its action is carried out on paper (:func:`_allow`, :func:`_ask`). Semantics: qrexec §6,
"Evaluation"; where the published engine breaks down, this one denies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME
from insula.policy.decisions import Allow, Ask, Decision, Deny, Reason, Request
from insula.policy.rules import ANY, Action, Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.tokens import (
    ADMIN_KEY,
    ADMIN_SPELLINGS,
    DEFAULT,
    DISPVM,
    DISPVM_OF,
    Kind,
    Place,
    TokenError,
    parse_token,
)

LOOP_BY_UUID = "a qube cannot call itself, under its UUID either"
OTHER_REMOTE = "the relay would be told another target than the one decided on"


class Miss(Enum):
    """Why a rule did not match; the first difference, in the order of a rule's words."""

    SERVICE = "another service"
    ARGUMENT = "another argument"
    SOURCE = "another source"
    TARGET = "another target"
    LATER = "an earlier rule decided"


@dataclass(frozen=True, slots=True)
class Considered:
    rule: Rule
    miss: Miss | None
    """None: it matched, and decided."""


@dataclass(frozen=True, slots=True)
class Explanation:
    decision: Decision
    considered: tuple[Considered, ...]
    """All rules, in order. Empty if the request was denied before rules were looked at."""


@dataclass(slots=True)
class _Case:
    """A request with its words looked up. Not frozen only because one is made for every call, and that costs."""

    request: Request
    source: str
    """Who calls, as policy sees it: the RemoteVM, if the caller relays for one."""
    caller: QubeFacts | None
    target: str
    """A qube, a spelling of dom0, or one of the tokens a caller may use."""
    source_keys: frozenset[str]
    target_keys: frozenset[str]
    undecidable: Kind | None = None
    """Rules with such a target cannot be decided: the caller's default_dispvm, which they ask about, is not there."""


def evaluate(request: Request, policy: Policy, snapshot: Snapshot) -> Decision:
    """Decide a call. Never raises."""
    return _evaluate(request, policy, snapshot, None)


def explain(request: Request, policy: Policy, snapshot: Snapshot) -> Explanation:
    """Decide a call as :func:`evaluate` does, by the same code, and say of every rule what became of it."""
    trace: list[Considered] = []
    decision = _evaluate(request, policy, snapshot, trace)
    if decision.rule is None and decision.reason is not Reason.NO_RULE:
        return Explanation(decision, ())
    seen = {id(entry.rule): entry for entry in trace}
    candidates = frozenset(map(id, policy.candidates(request.service, request.argument)))
    considered = []
    for rule in policy.rules:
        if id(rule) in seen:
            considered.append(seen[id(rule)])
        elif id(rule) in candidates:
            considered.append(Considered(rule, Miss.LATER))
        else:
            other = rule.service not in (ANY, request.service)
            considered.append(Considered(rule, Miss.SERVICE if other else Miss.ARGUMENT))
    return Explanation(decision, tuple(considered))


def answer(ask: Ask, choice: str, snapshot: Snapshot) -> Allow | Deny:
    """What the user's choice leads to, in the system as it is now.

    Caller and target must still be the qubes they were when the question was asked: a new one of the same name does
    not inherit the permission (MC-20).
    """
    rule = ask.rule
    if choice not in ask.targets or choice == DISPVM:  # the latter is only offered by target=@dispvm, and leads nowhere
        return Deny(Reason.NOT_OFFERED, notify=True, rule=rule)
    if snapshot is not ask.snapshot:
        for name in (ask.request.source, ask.request.requested_source, choice.removeprefix(DISPVM_OF)):
            before, now = ask.snapshot.find(name), snapshot.find(name)
            if before is not None and (now is None or now.uuid != before.uuid):
                return Deny(Reason.CHANGED, notify=True, rule=rule)
    case = _prepare(ask.request, snapshot)
    if isinstance(case, Deny):
        return Deny(Reason.CHANGED, notify=True, rule=rule)
    return _allow_target(case, rule, choice, snapshot)


def settle(decision: Decision, snapshot: Snapshot, *, assume_yes: bool) -> Allow | Deny:
    """The decision where nobody is asked: there is no display (MC-31), or it is only a question (qrexec §7).

    With ``assume_yes``, the user would have chosen the target that the caller named, if it is offered.
    """
    if not isinstance(decision, Ask):
        return decision
    if not assume_yes:
        return Deny(Reason.NOBODY_TO_ASK, notify=True, rule=decision.rule)
    return answer(decision, decision.requested_target, snapshot)


def _evaluate(request: Request, policy: Policy, snapshot: Snapshot, trace: list[Considered] | None) -> Decision:
    if policy.problems:
        return Deny(Reason.INVALID_POLICY, notify=policy.problems[0].is_file_name, problems=policy.problems)
    case = _prepare(request, snapshot)
    if isinstance(case, Deny):
        return case
    candidates = policy.candidates(request.service, request.argument)
    rule = _first_match(candidates, case, trace)
    if rule is None:
        return Deny(Reason.NO_RULE, notify=True)
    if rule.target.kind is case.undecidable:
        return Deny(Reason.NO_DEFAULT_BASE, notify=False, rule=rule)
    if rule.action is Action.ALLOW:
        return _allow(case, rule, snapshot)
    if rule.action is Action.ASK:
        return _ask(case, rule, candidates, snapshot)
    return Deny(Reason.RULE, rule.notify, rule)


# the request


def _prepare(request: Request, snapshot: Snapshot) -> _Case | Deny:
    target = request.target or DEFAULT
    keys = snapshot.qube_keys(target)
    token = None
    if keys is None:
        try:
            token = parse_token(target, Place.REQUEST)
        except TokenError:
            return Deny(Reason.BAD_TARGET, notify=False)
    source = request.source
    if request.requested_source:
        remote, relay = snapshot.find(request.requested_source), snapshot.find(source)
        if remote is None or relay is None or remote.klass != Klass.REMOTEVM or remote.relayvm != relay.name:
            return Deny(Reason.BAD_RELAY, notify=True)
        source = request.requested_source
    elif source.startswith("@") and source not in ADMIN_SPELLINGS:
        return Deny(Reason.BAD_SOURCE, notify=False)
    caller = snapshot.find(source)
    source_keys = snapshot.source_keys(source)
    if keys is not None:
        return _Case(request, source, caller, target, source_keys, keys)
    assert token is not None
    if token.kind is Kind.DISPVM_OF:
        base = snapshot.base(token.base)
        if base is None or not base.template_for_dispvms:
            return Deny(Reason.NO_BASE, notify=True)
        return _Case(request, source, caller, target, source_keys, snapshot.disposable_keys(base))
    if token.kind is Kind.DISPVM:
        base_name = None if caller is None else caller.default_dispvm
        keys = snapshot.default_disposable_keys(base_name)
        return _Case(request, source, caller, DISPVM, source_keys, keys, _undecidable(base_name, snapshot))
    # A name that nobody has is no target at all, as published: the rules for @default decide.
    return _Case(request, source, caller, DEFAULT, source_keys, _DEFAULT_KEYS)


def _undecidable(base_name: str | None, snapshot: Snapshot) -> Kind | None:
    """Kind of the rules that ask what is not known of the caller's default_dispvm."""
    if base_name is None:
        return Kind.DISPVM_OF
    return Kind.DISPVM_TAG if snapshot.base(base_name) is None else None


_DEFAULT_KEYS = frozenset({"*", "@anyvm", DEFAULT})


# the rule


def _first_match(rules: Sequence[Rule], case: _Case, trace: list[Considered] | None) -> Rule | None:
    """The rule that decides: the first that matches, or of which it cannot be said."""
    source_keys, target_keys, undecidable = case.source_keys, case.target_keys, case.undecidable
    for rule in rules:
        if rule.source_key not in source_keys:
            miss = Miss.SOURCE
        elif rule.target_key not in target_keys and (undecidable is None or rule.target.kind is not undecidable):
            miss = Miss.TARGET
        else:
            if trace is not None:
                trace.append(Considered(rule, None))
            return rule
        if trace is not None:
            trace.append(Considered(rule, miss))
    return None


# allow


def _allow(case: _Case, rule: Rule, snapshot: Snapshot) -> Allow | Deny:
    if rule.redirect is None:
        return _allow_target(case, rule, case.target, snapshot)
    if rule.redirect.kind is Kind.DISPVM_OF:
        base = snapshot.base(rule.redirect.base)
        if base is None or not base.template_for_dispvms:
            return Deny(Reason.NO_BASE, notify=True, rule=rule)
    return _allow_target(case, rule, rule.redirect.text, snapshot)


def _allow_target(case: _Case, rule: Rule, target: str, snapshot: Snapshot) -> Allow | Deny:
    """The call goes to ``target``, which the caller, the rule or the user named."""
    if target in ADMIN_SPELLINGS:
        return _allowed(case, rule, ADMIN_NAME, None, ADMIN_NAME)
    if target == DISPVM:
        base_name = None if case.caller is None else case.caller.default_dispvm
        if base_name is None:
            return Deny(Reason.NO_DEFAULT_BASE, notify=True, rule=rule)
        target = DISPVM_OF + base_name
    if target.startswith(DISPVM_OF):
        base = snapshot.base(target.removeprefix(DISPVM_OF))
        if base is None:
            return Deny(Reason.NO_BASE, notify=True, rule=rule)
        if not rule.autostart:
            return Deny(Reason.NOT_RUNNING, rule.notify, rule)
        return _allowed(case, rule, target, DISPVM_OF + base.alias, base.name)
    qube = snapshot.find(target)
    if qube is None:
        return Deny(Reason.NO_TARGET, notify=True, rule=rule)
    if not rule.autostart and not qube.is_running:
        return Deny(Reason.NOT_RUNNING, rule.notify, rule)
    if target == case.source:
        return Deny(Reason.LOOP, notify=True, rule=rule)
    if qube.klass == Klass.REMOTEVM:
        return _allow_remote(case, rule, qube, snapshot)
    # Published: only the same text is a loop. A caller named by its uuid is one as well.
    return _allowed(case, rule, target, qube.alias, qube.name, LOOP_BY_UUID if qube is case.caller else None)


def _allow_remote(case: _Case, rule: Rule, remote: QubeFacts, snapshot: Snapshot) -> Allow | Deny:
    relay = None if remote.relayvm is None else snapshot.find(remote.relayvm)
    if relay is None or not remote.transport_rpc:
        return Deny(Reason.NO_RELAY, notify=True, rule=rule)
    request = case.request
    # As published, the relay is told the target the *caller* named, which need not be the one decided on.
    objection = None if snapshot.find(case.target) is remote else OTHER_REMOTE
    service = f"{remote.transport_rpc}+{case.target}+{request.service}{request.argument}"
    return Allow(
        rule=rule,
        request=request,
        target=relay.name,
        target_uuid=relay.alias,
        qube=remote.name,
        requested_target=case.target,
        user=None,
        autostart=rule.autostart,
        notify=rule.notify,
        service=service,
        objection=objection,
    )


def _allowed(case: _Case, rule: Rule, target: str, uuid: str | None, qube: str, objection: str | None = None) -> Allow:
    return Allow(
        rule, case.request, target, uuid, qube, case.target, rule.user, rule.autostart, rule.notify, None, objection
    )


# ask


def _ask(case: _Case, rule: Rule, rules: Sequence[Rule], snapshot: Snapshot) -> Ask | Deny:
    targets = _only_target(rule) if rule.redirect is not None else _offered(case, rule, rules, snapshot)
    if isinstance(targets, Deny):
        return targets
    if not rule.autostart:
        targets = frozenset(target for target in targets if _needs_no_start(target, snapshot))
    if not targets:
        return Deny(Reason.NOTHING_TO_OFFER, notify=True, rule=rule)
    default = _default_target(case, rule)
    return Ask(
        rule,
        case.request,
        tuple(sorted(targets)),
        default if default in targets else None,
        case.target,
        snapshot,
    )


def _only_target(rule: Rule) -> frozenset[str]:
    assert rule.redirect is not None
    return frozenset({ADMIN_NAME if rule.redirect.kind is Kind.ADMIN else rule.redirect.text})


def _offered(case: _Case, asking: Rule, rules: Sequence[Rule], snapshot: Snapshot) -> frozenset[str] | Deny:
    """All targets that some rule lets this caller reach: later rules first, so that earlier ones have the last word."""
    if case.caller is None:
        return Deny(Reason.BAD_SOURCE, notify=False, rule=asking)
    offered: set[str] = set()
    try:
        for rule in reversed(rules):
            if rule.source_key in case.source_keys:
                if rule.action is Action.DENY:
                    offered -= snapshot.expansion(rule.target)
                else:
                    offered |= snapshot.expansion(rule.redirect or rule.target)
    except LookupError:
        return Deny(Reason.NO_BASE, notify=False, rule=asking)
    if DISPVM in offered:
        offered.remove(DISPVM)
        base_name = case.caller.default_dispvm
        if base_name is not None:
            base = snapshot.base(base_name)
            if base is None:
                return Deny(Reason.NO_DEFAULT_BASE, notify=False, rule=asking)
            offered.add(DISPVM_OF + base_name)
    if ADMIN_KEY in offered:
        offered.remove(ADMIN_KEY)
        offered.add(ADMIN_NAME)
    offered -= snapshot.internal_targets
    offered.discard(case.caller.name)
    return frozenset(offered)


def _needs_no_start(target: str, snapshot: Snapshot) -> bool:
    if target == ADMIN_NAME:
        return True
    qube = snapshot.find(target)
    return qube is not None and qube.is_running


def _default_target(case: _Case, rule: Rule) -> str | None:
    if rule.default_target is None:
        return None
    if rule.default_target.kind is Kind.ADMIN:
        return ADMIN_NAME
    if rule.default_target.kind is Kind.DISPVM:
        base = None if case.caller is None else case.caller.default_dispvm
        return None if base is None else DISPVM_OF + base
    return rule.default_target.text
