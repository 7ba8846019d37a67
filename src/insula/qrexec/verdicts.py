"""What policy says to a question, as far as nobody need be asked: the part of judging that waits for no user.

Apart from :mod:`insula.qrexec.judge`, so that a program that answers one question and ends loads no more than it needs.
"""

from __future__ import annotations

import json
from pathlib import Path

from insula.policy.decisions import Allow, Ask, Decision, Deny, Reason, Request
from insula.policy.engine import evaluate, settle
from insula.policy.evaluate import QuestionError, snapshot_from_json
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot
from insula.policy.store import PolicyStore
from insula.qrexec import qubesd
from insula.qrexec.log import say
from insula.qrexec.places import OLD_POLICY_FOLDER, POLICY_FOLDERS
from insula.qrexec.policy_protocol import Question
from insula_proto import admin

DENY = "result=deny\n"
_JUST_ALLOW = "result=allow\n"


def store_of(folders: list[str]) -> PolicyStore:
    """The policy in one folder, or in two of which the first one's files win; none given: the published ones."""
    *runtime, folder = folders or POLICY_FOLDERS
    old = Path(OLD_POLICY_FOLDER)
    return PolicyStore(
        Path(folder), runtime=Path(runtime[0]) if runtime else None, compat=old if old.is_dir() else None
    )


def report(policy: Policy) -> None:
    """Say what was loaded, or why nothing is allowed."""
    if policy.problems:
        say(f"the policy has problems, so everything is denied: {'; '.join(map(str, policy.problems))}")
    else:
        say(f"policy loaded: {len(policy.rules)} rules")


def read_snapshot() -> Snapshot:
    """The system now, as qubesd knows it. It blocks. :raise QubesdError: :raise QuestionError:"""
    data = qubesd.call("internal.GetSystemInfo", admin.ADMIN, internal=True)
    try:
        untrusted_info = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"no JSON: {error}") from error
    return snapshot_from_json(untrusted_info)


def request_of(question: Question) -> Request:
    service, plus, argument = question.service.partition("+")
    return Request(service, plus + argument or "+", question.source, question.target, question.requested_source or "")


def decide(question: Question, policy: Policy, snapshot: Snapshot) -> Decision:
    """``Ask`` only where somebody is to be asked."""
    decision = evaluate(request_of(question), policy, snapshot)
    if question.just_evaluate or question.assume_yes:
        return checked(settle(decision, snapshot, assume_yes=question.assume_yes))
    return decision if isinstance(decision, Ask) else checked(decision)


def checked(outcome: Allow | Deny) -> Allow | Deny:
    """What the published answer would hide must not happen."""
    if isinstance(outcome, Allow) and outcome.objection is not None:
        say(f"{outcome.request.service} from {outcome.request.source} is denied: {outcome.objection}")
        return Deny(Reason.LOOP, notify=True, rule=outcome.rule)
    return outcome


def text_of(question: Question, outcome: Allow | Deny) -> str:
    """The lines of the answer; the log gets one of its own."""
    if question.just_evaluate:
        return DENY if isinstance(outcome, Deny) else _JUST_ALLOW
    verdict = "denied" if isinstance(outcome, Deny) else f"allowed to {outcome.target}"
    say(f"{question.service}: {question.source} -> {question.target}: {verdict}")
    if isinstance(outcome, Deny):
        return DENY
    return "".join(f"{key}={value}\n" for key, value in outcome.response().items())
