"""Who may reach whom: a policy asked about every pair of qubes, for people who want to see what rules add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from insula.policy.decisions import Allow, Ask, Request
from insula.policy.engine import evaluate
from insula.policy.errors import Location
from insula.policy.rules import ANY, Action
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot
from insula.policy.tokens import DEFAULT, DISPVM, DISPVM_OF

NO_ARGUMENT = "+"


@dataclass(frozen=True, slots=True)
class Edge:
    """A call that is not denied."""

    service: str
    argument: str
    source: str
    target: str
    """Where the call goes; the targets offered, with commas, if the user is asked and did not name one."""
    action: Action
    where: Location
    """The rule that decided."""


def calls_of(policy: Policy, services: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Services and arguments that rules name, sorted: all, or those of ``services``; each without argument, too."""
    named = {(rule.service, rule.argument) for rule in policy.rules if rule.service != ANY}
    named |= {(service, NO_ARGUMENT) for service in [*(service for service, _ in named), *services]}
    return sorted(
        (service, argument) for service, argument in named if argument != ANY and (not services or service in services)
    )


def edges(policy: Policy, snapshot: Snapshot, calls: Iterable[tuple[str, str]]) -> Iterator[Edge]:
    """Every call of these that some qube may make, or have the user asked about; ordered by call, source, target."""
    names = sorted(snapshot.qubes)
    bases = [DISPVM_OF + name for name in names if snapshot.qubes[name].template_for_dispvms]
    targets = [*names, DEFAULT, DISPVM, *bases]
    for service, argument in calls:
        for source in names:
            if not snapshot.qubes[source].is_admin:
                yield from _edges_of(policy, snapshot, [Request(service, argument, source, to) for to in targets])


def _edges_of(policy: Policy, snapshot: Snapshot, requests: Iterable[Request]) -> Iterator[Edge]:
    """``requests`` of one source. Two names of one target, and redirections to it, are one edge."""
    seen: set[tuple[str, Action]] = set()
    for request in requests:
        decision = evaluate(request, policy, snapshot)
        match decision:
            case Allow():
                action, target = Action.ALLOW, decision.target
            case Ask():
                offered = request.target if request.target in decision.targets else ",".join(decision.targets)
                action, target = Action.ASK, offered
            case _:
                continue
        if (target, action) not in seen:
            seen.add((target, action))
            yield Edge(request.service, request.argument, request.source, target, action, decision.where)


def dot(found: Iterable[Edge]) -> str:
    """The graph for Graphviz: an arrow for each pair of qubes, dashed if the user is asked about every call on it."""
    arrows: dict[tuple[str, str], dict[str, Action]] = {}
    for edge in found:
        for target in edge.target.split(","):
            call = edge.service if edge.argument == NO_ARGUMENT else edge.service + edge.argument
            calls = arrows.setdefault((edge.source, target), {})
            if calls.get(call) is not Action.ALLOW:
                calls[call] = edge.action
    lines = ["digraph policy {", "  rankdir=LR;", "  node [shape=box];"]
    for (source, target), calls in sorted(arrows.items()):
        style = "" if Action.ALLOW in calls.values() else ", style=dashed"
        label = "\\n".join(map(_escaped, sorted(calls)))
        lines.append(f'  "{_escaped(source)}" -> "{_escaped(target)}" [label="{label}"{style}];')
    return "\n".join([*lines, "}"])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
