"""Every recorded decision of the reference engine: 932 policies, 9225 requests (tests/data/policy-golden.jsonl.gz).

A line: ``files``, ``runtime_files``, ``compat``, ``system_info``, and ``cases`` of request and answer. Where the
reference engine breaks down (decision ``crash``), its caller is refused, so a denial agrees.
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from insula.policy.decisions import Ask, Deny, Reason
from insula.policy.engine import explain
from insula.policy.evaluate import main, request_from_json, snapshot_from_json
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load

GOLDEN = Path(__file__).parents[1] / "data" / "policy-golden.jsonl.gz"
POLICIES = 932
REQUESTS = 9225


def golden() -> Iterator[dict[str, Any]]:
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def expected(answer: dict[str, Any]) -> dict[str, Any]:
    """The reference answer, a breakdown being a denial."""
    if answer["decision"] == "crash":
        return {"decision": "deny", "policy_ok": answer["policy_ok"]}
    answers = answer.get("answers")
    if answers is None:
        return answer
    return {**answer, "answers": {target: "deny" if got == "crash" else got for target, got in answers.items()}}


def test_command_every_golden_case_agrees() -> None:
    questions: list[str] = []
    wanted = []
    for policy in golden():
        given = {key: policy[key] for key in ("files", "runtime_files", "compat", "system_info") if key in policy}
        for request, answer in policy["cases"]:
            questions.append(json.dumps({"id": len(questions), **given, "request": request}) + "\n")
            wanted.append({"id": len(wanted), **expected(answer)})
    out = io.StringIO()

    assert main(io.StringIO("".join(questions)), out) == 0

    got = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(got) == len(wanted) == REQUESTS
    wrong = [(a, b) for a, b in zip(got, wanted, strict=True) if {key: a.get(key) for key in b} != b]
    assert wrong == []


def test_golden_data_are_complete_and_mixed() -> None:
    decisions = [answer["decision"] for policy in golden() for _, answer in policy["cases"]]
    assert sum(1 for _ in golden()) == POLICIES
    assert {name: decisions.count(name) >= 50 for name in ("allow", "ask", "deny", "crash")} == dict.fromkeys(
        ("allow", "ask", "deny", "crash"), True
    )


def test_explain_every_golden_case_says_the_same_and_why() -> None:
    for policy in golden():
        folders = [MemoryFolder(policy[key], key) for key in ("runtime_files", "files") if key in policy]
        compat = MemoryFolder(policy["compat"]) if "compat" in policy else None
        loaded = load(Sources(folders, compat))
        snapshot = snapshot_from_json(policy["system_info"])
        for request, answer in policy["cases"]:
            found = explain(request_from_json(request), loaded, snapshot)
            decision = found.decision
            decided = [entry.rule for entry in found.considered if entry.miss is None]
            assert decided == ([] if decision.rule is None else [decision.rule])
            if isinstance(decision, Ask) and "targets" in answer:
                assert list(decision.targets) == answer["targets"]
            if isinstance(decision, Deny) and decision.reason is Reason.NO_RULE:
                assert [entry.rule for entry in found.considered] == list(loaded.rules)
