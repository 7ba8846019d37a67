"""Answers questions about policy: rules as they are on disk, the system as ``qubesd`` knows it, the user where a rule
says so (reference: qrexec, §6 and §7).

Doubt means no: without a policy, without word of the system, without somebody to ask, the answer is a denial.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from pathlib import Path

from insula.model.names import ADMIN_NAME
from insula.policy import agent
from insula.policy.agent import Notice, Resolution
from insula.policy.current import CurrentPolicy
from insula.policy.decisions import Allow, Ask, Deny, Reason, Request
from insula.policy.engine import answer as answer_question
from insula.policy.engine import evaluate, settle
from insula.policy.evaluate import QuestionError, snapshot_from_json
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot
from insula.policy.store import PolicyStore
from insula.qrexec import qubesd
from insula.qrexec.errors import QubesdError
from insula.qrexec.places import OLD_POLICY_FOLDER, POLICY_FOLDERS, policy_agent_socket
from insula.qrexec.policy_protocol import Question
from insula.rpc.ask import NobodyToAsk, Prompts, question_of
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import EXIT_CHANNEL_LOST

log = logging.getLogger("insula.qrexec.policy")

DENY = "result=deny\n"
_JUST_ALLOW = "result=allow\n"
CLIENT = "qrexec-client"
MAX_NOTICES = 32
NOTICE_LIMIT_S = 10.0


def store_of(folders: list[str]) -> PolicyStore:
    """The policy in one folder, or in two of which the first one's files win; none given: the published ones."""
    *runtime, folder = folders or POLICY_FOLDERS
    old = Path(OLD_POLICY_FOLDER)
    return PolicyStore(
        Path(folder), runtime=Path(runtime[0]) if runtime else None, compat=old if old.is_dir() else None
    )


class Judge:
    """Made in a running event loop."""

    def __init__(self, store: PolicyStore) -> None:
        self._policy = CurrentPolicy(store, _report)
        self._prompts = Prompts(Path(policy_agent_socket()))
        self._notices: set[asyncio.Task[None]] = set()
        """On their way to desktops in other qubes."""

    async def close(self) -> None:
        """Notices that are on their way still arrive."""
        await self._prompts.drain()
        await asyncio.gather(*self._notices, return_exceptions=True)

    async def answer(self, question: Question) -> str:
        """The lines of the answer. Cancelling takes a question to the user back (MC-24)."""
        try:
            snapshot = await self.snapshot()
        except (QubesdError, QuestionError) as error:
            log.warning("%s from %s is denied: the system is unknown: %s", question.service, question.source, error)
            return DENY
        return await self.answer_in(question, snapshot)

    async def answer_in(self, question: Question, snapshot: Snapshot) -> str:
        """The same, about a system that is known."""
        service, plus, argument = question.service.partition("+")
        request = Request(
            service, plus + argument or "+", question.source, question.target, question.requested_source or ""
        )
        decision = evaluate(request, await self._policy.get(), snapshot)
        if question.just_evaluate or question.assume_yes:
            settled = settle(decision, snapshot, assume_yes=question.assume_yes)
        else:
            settled = await self._ask(decision) if isinstance(decision, Ask) else decision
        outcome = _checked(settled)
        if question.just_evaluate:
            return DENY if isinstance(outcome, Deny) else _JUST_ALLOW
        self._tell(outcome, request, snapshot)
        if isinstance(outcome, Deny):
            return DENY
        return "".join(f"{key}={value}\n" for key, value in outcome.response().items())

    async def snapshot(self) -> Snapshot:
        """The system now. :raise QubesdError: :raise QuestionError:"""
        data = await asyncio.to_thread(qubesd.call, "internal.GetSystemInfo", ADMIN_NAME, internal=True)
        try:
            untrusted_info = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise QuestionError(f"no JSON: {error}") from error
        return snapshot_from_json(untrusted_info)

    async def _ask(self, question: Ask) -> Allow | Deny:
        source = question.request.requested_source or question.request.source
        facts = question.snapshot.find(source)
        try:
            if facts is not None and facts.guivm not in (None, ADMIN_NAME):
                choice = await _ask_in(str(facts.guivm), question)
            else:
                choice = await self._prompts.ask(question)
            # It may have taken the user minutes: the answer counts for the system of now (MC-20).
            snapshot = await self.snapshot()
        except NobodyToAsk as error:
            log.warning("%s from %s: nobody was asked: %s", question.request.service, source, error)
            return Deny(Reason.NOBODY_TO_ASK, notify=error.notify, rule=question.rule)
        except (QubesdError, QuestionError) as error:
            log.warning("%s from %s is denied: the system is unknown: %s", question.request.service, source, error)
            return Deny(Reason.NOBODY_TO_ASK, notify=False, rule=question.rule)
        if choice is None:
            return Deny(Reason.RULE, notify=question.notify, rule=question.rule)
        return answer_question(question, choice, snapshot)

    def _tell(self, outcome: Allow | Deny, request: Request, snapshot: Snapshot) -> None:
        verdict = "denied" if isinstance(outcome, Deny) else f"allowed to {outcome.target}"
        log.info(
            "qrexec: %s%s: %s -> %s: %s", request.service, request.argument, request.source, request.target, verdict
        )
        source = request.requested_source or request.source
        facts = snapshot.find(source)
        if not outcome.notify or facts is None or facts.guivm is None:
            return
        resolution = Resolution.DENY if isinstance(outcome, Deny) else Resolution.ALLOW
        target = outcome.target if isinstance(outcome, Allow) else request.target
        if facts.guivm == ADMIN_NAME:
            self._prompts.notify(resolution, request, target)
        elif len(self._notices) < MAX_NOTICES:
            notice = Notice(resolution, request.service, request.argument, source, target)
            task = asyncio.get_running_loop().create_task(_notify_in(facts.guivm, notice), name="notice")
            self._notices.add(task)
            task.add_done_callback(self._notices.discard)


async def _ask_in(guivm: str, question: Ask) -> str | None:
    """Ask in the qube that has the caller's desktop: the service ``policy.Ask`` there. :raise NobodyToAsk:"""
    try:
        # The header is not sent: what a service is told first is its own daemon's to say.
        _, _, body = agent.encode(question_of(question)).partition(b"\0")
        code, untrusted_answer = await _call_service(guivm, "policy.Ask", body)
        if code == 0:
            return agent.decode_answer(untrusted_answer, question.targets)
        reason = f"policy.Ask in {guivm} ended with {code}"
    except (OSError, LocalProtocolError, RemoteProtocolError) as error:
        reason = str(error)
    raise NobodyToAsk(reason, notify=False)


async def _notify_in(guivm: str, notice: Notice) -> None:
    """Tell the user in the qube that has the caller's desktop; nobody there is no fault of the call."""
    try:
        _, _, body = agent.encode(notice).partition(b"\0")
        async with asyncio.timeout(NOTICE_LIMIT_S):
            await _call_service(guivm, "policy.Notify", body)
    except (OSError, TimeoutError, LocalProtocolError) as error:
        log.info("a notice was not shown in %s: %s", guivm, error or "not in time")


async def _call_service(qube: str, service: str, data: bytes) -> tuple[int, bytes]:
    """Exit code and output of a service called by the host; the latter is cut after the longest answer.

    :raise OSError:
    """
    client = shutil.which(CLIENT, path=str(Path(sys.executable).parent)) or CLIENT
    process = await asyncio.create_subprocess_exec(
        client, "-d", qube, "--", f"DEFAULT:QUBESRPC {service} dom0",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        process.stdin.close()
        untrusted_output = b""
        while len(untrusted_output) <= agent.MAX_ANSWER and (part := await process.stdout.read(agent.MAX_ANSWER)):
            untrusted_output += part
        if len(untrusted_output) <= agent.MAX_ANSWER:
            return await process.wait(), untrusted_output
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return EXIT_CHANNEL_LOST, b""


def _checked(outcome: Allow | Deny) -> Allow | Deny:
    """What the published answer would hide must not happen."""
    if isinstance(outcome, Allow) and outcome.objection is not None:
        log.warning("%s from %s is denied: %s", outcome.request.service, outcome.request.source, outcome.objection)
        return Deny(Reason.LOOP, notify=True, rule=outcome.rule)
    return outcome


def _report(policy: Policy) -> None:
    if policy.problems:
        problems = "; ".join(map(str, policy.problems))
        log.error("the policy has problems, so everything is denied: %s", problems)
    else:
        log.info("policy loaded: %d rules", len(policy.rules))
