"""Decisions a second under a policy of 100 rules, for a mixed load of allow, deny and ask; the time to load 100 files.

Baseline: an evaluator as one would first write it, in this file: it walks all rules for every call and asks of each
token what it is and whether it fits. It gives the same decisions, which is checked before anything is measured.
The load is drawn once, from a fixed seed: callers of several classes, services that rules name and others, every kind
of target. Promised: at least 45 000 decisions a second.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from insula.policy.decisions import Allow, Ask, Decision, Request
from insula.policy.disk import DiskFolder
from insula.policy.engine import evaluate
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.rules import Action, Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.tokens import ADMIN_SPELLINGS, Kind, Token
from report import Case, median_of, publish

RULES = 100
QUBES = 40
CALLS = 4000
RUNS = 9
FILES = 100
BAR = 45_000
SEED = 20240607

SERVICES = ("qubes.Filecopy", "qubes.OpenURL", "qubes.OpenInVM", "qubes.VMShell", "qubes.GetDate", "admin.vm.List")
ARGUMENTS = ("+", "+work", "+a+b")
TAGS = ("work", "personal", "anon-vm", "created-by-mgmt")


def qubes(draw: random.Random) -> list[QubeFacts]:
    found = [QubeFacts("dom0", "0" * 8, "AdminVM", power_state="Running")]
    for number in range(QUBES):
        base = number % 8 == 0
        found.append(
            QubeFacts(
                f"qube-{number}",
                f"{number + 1:08x}",
                "TemplateVM" if number % 10 == 3 else "AppVM",
                frozenset(draw.sample(TAGS, draw.randrange(3))),
                default_dispvm="qube-0",
                template_for_dispvms=base,
                power_state=draw.choice(("Running", "Halted")),
                internal=number == QUBES - 1,
            )
        )
    return found


def policy_text(draw: random.Random) -> str:
    """Rules in the proportions of a default policy: most name a service, the last words are general."""
    lines: list[str] = []
    while len(lines) < RULES - 3:
        source = draw.choice(("@anyvm", f"@tag:{draw.choice(TAGS)}", "@type:AppVM", f"qube-{draw.randrange(QUBES)}"))
        target, redirect = draw.choice(
            (
                ("@default", f"target=qube-{draw.randrange(QUBES)}"),
                ("@dispvm", ""),
                ("@dispvm:@tag:work", ""),
                (f"@tag:{draw.choice(TAGS)}", ""),
                (f"qube-{draw.randrange(QUBES)}", ""),
                ("@adminvm", ""),
                ("@type:AppVM", ""),
            )
        )
        action = draw.choice(("allow", "allow", "ask", "deny"))
        words = [draw.choice(SERVICES), draw.choice(("*", "*", *ARGUMENTS)), source, target, action]
        lines.append(" ".join([*words, redirect if action != "deny" else ""]))
    return "\n".join(
        [*lines, "qubes.Filecopy * @anyvm @anyvm ask", "* * @anyvm @adminvm deny", "* * @tag:work @anyvm allow", ""]
    )


def calls(draw: random.Random) -> list[Request]:
    targets = [
        "",
        "@default",
        "@dispvm",
        "@dispvm:qube-8",
        "dom0",
        "@adminvm",
        "gone",
        *[f"qube-{n}" for n in range(QUBES)],
    ]
    return [
        Request(
            draw.choice((*SERVICES, "test.Unnamed")),
            draw.choice((*ARGUMENTS, "+other")),
            f"qube-{draw.randrange(QUBES)}",
            draw.choice(targets),
        )
        for _ in range(CALLS)
    ]


# the baseline


class LinearScan:
    """The evaluator one would first write: no index, no keys, nothing kept between calls."""

    def __init__(self, rules: tuple[Rule, ...], facts: list[QubeFacts]) -> None:
        self._rules = rules
        self._facts = facts
        self._by_name = {qube.name: qube for qube in facts}

    def decide(self, request: Request) -> tuple[str, object]:
        source = self._by_name[request.source]
        target = request.target or "@default"
        if not target.startswith("@") and target not in self._by_name:
            target = "@default"
        for rule in self._rules:
            if self._is_for(rule, request, source) and self._fits(rule.target, target, source):
                return self._outcome(rule, request, source, target)
        return "deny", None

    def _is_for(self, rule: Rule, request: Request, source: QubeFacts) -> bool:
        return (
            rule.service in ("*", request.service)
            and rule.argument in ("*", request.argument)
            and self._fits(rule.source, source.name, source)
        )

    def _fits(self, token: Token, name: str, source: QubeFacts) -> bool:
        qube = self._by_name.get(name)
        admin = name in ADMIN_SPELLINGS
        match token.kind:
            case Kind.ANYTHING:
                return True
            case Kind.ANYVM:
                return not admin
            case Kind.ADMIN:
                return admin
            case Kind.TYPE:
                return qube is not None and qube.klass == token.text.removeprefix("@type:")
            case Kind.TAG:
                return qube is not None and token.text.removeprefix("@tag:") in qube.tags
            case Kind.DISPVM_TAG:
                base_name = source.default_dispvm if name == "@dispvm" else name.removeprefix("@dispvm:")
                base = self._by_name.get(base_name or "") if name.startswith("@dispvm") else None
                return base is not None and base.template_for_dispvms and token.text[13:] in base.tags
            case _:
                return token.text == name

    def _outcome(self, rule: Rule, request: Request, source: QubeFacts, target: str) -> tuple[str, object]:
        if rule.action is Action.DENY:
            return "deny", rule
        if rule.redirect is not None:
            target = rule.redirect.text
        if rule.action is Action.ASK:
            offered = {target} if rule.redirect is not None else self._offered(request, source)
            return ("ask", tuple(sorted(offered))) if offered else ("deny", rule)
        if target == "@dispvm":
            target = f"@dispvm:{source.default_dispvm}"
        if target in ("@default", source.name):
            return "deny", rule
        return "allow", "dom0" if target in ADMIN_SPELLINGS else target

    def _offered(self, request: Request, source: QubeFacts) -> set[str]:
        offered: set[str] = set()
        for rule in reversed(self._rules):
            if self._is_for(rule, request, source):
                token = rule.redirect if rule.redirect is not None and rule.action is not Action.DENY else rule.target
                meant = self._meant(token)
                offered = offered - meant if rule.action is Action.DENY else offered | meant
        if "@dispvm" in offered:
            offered = offered - {"@dispvm"} | {f"@dispvm:{source.default_dispvm}"}
        if "@adminvm" in offered:
            offered = offered - {"@adminvm"} | {"dom0"}
        internal = {qube.name for qube in self._facts if qube.internal}
        return offered - internal - {f"@dispvm:{name}" for name in internal} - {source.name}

    def _meant(self, token: Token) -> set[str]:
        if token.kind in (Kind.DISPVM, Kind.ADMIN):
            return {token.text}
        meant = {qube.name for qube in self._facts if self._fits(token, qube.name, qube)}
        for qube in self._facts:
            name = f"@dispvm:{qube.name}"
            if qube.template_for_dispvms and self._fits(token, name, qube):
                meant.add(name)
        return meant | {"@dispvm"} if token.kind in (Kind.ANYTHING, Kind.ANYVM) else meant


def outcome(decision: Decision) -> tuple[str, object]:
    """Our decision as the baseline says it."""
    if isinstance(decision, Allow):
        return "allow", decision.target
    return ("ask", decision.targets) if isinstance(decision, Ask) else ("deny", decision.rule)


# measuring


def our_seconds(load_: list[Request], policy: Policy, snapshot: Snapshot) -> float:
    begin = time.perf_counter()
    for request in load_:
        evaluate(request, policy, snapshot)
    return time.perf_counter() - begin


def baseline_seconds(load_: list[Request], baseline: LinearScan) -> float:
    begin = time.perf_counter()
    for request in load_:
        baseline.decide(request)
    return time.perf_counter() - begin


def load_seconds(text: str) -> tuple[float, float]:
    """Loading FILES files of that text, and merely reading them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(FILES):
            (folder / f"{number:03}.policy").write_text(text)
        ours = median_of(lambda: timed(lambda: load(Sources([DiskFolder(folder)])).check()), RUNS)
        read = median_of(lambda: timed(lambda: [path.read_text() for path in sorted(folder.iterdir())]), RUNS)
    return ours, read


def timed(work: object) -> float:
    assert callable(work)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    draw = random.Random(SEED)
    facts, text = qubes(draw), policy_text(draw)
    policy = load(Sources([MemoryFolder({"50-bench.policy": text})]))
    policy.check()
    assert len(policy.rules) == RULES
    snapshot, load_ = Snapshot(facts), calls(draw)
    baseline = LinearScan(policy.rules, facts)
    decisions = [evaluate(request, policy, snapshot) for request in load_]
    for request, decision in zip(load_, decisions, strict=True):
        assert outcome(decision) == baseline.decide(request), (request, decision)
    mix = Counter(outcome(decision)[0] for decision in decisions)
    what = ", ".join(f"{100 * count // CALLS} % {kind}" for kind, count in sorted(mix.items()))
    ours = CALLS / median_of(lambda: our_seconds(load_, policy, snapshot), RUNS)
    naive = CALLS / median_of(lambda: baseline_seconds(load_[: CALLS // 8], baseline) * 8, RUNS)
    loading, reading = load_seconds(text)
    publish(
        "policy_eval",
        [
            Case(
                f"policy_eval {RULES} rules, {QUBES} qubes ({what})", ours, "decisions/s", naive,
                "a linear scan of the rules", f"≥ {BAR} decisions/s", ours >= BAR, RUNS,
            ),
            Case(
                f"policy_eval load {FILES} files of {RULES} rules", loading, "s", reading,
                "reading these files", "reported", None, RUNS,
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
