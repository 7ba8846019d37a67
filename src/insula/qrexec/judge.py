"""Answers questions about policy: rules as they are on disk, the system as ``qubesd`` knows it, the user where a rule
says so (reference: qrexec, §6 and §7).

Doubt means no: without a policy, without word of the system, without somebody to ask, the answer is a denial.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from insula.model.names import ADMIN_NAME
from insula.policy import agent
from insula.policy.agent import Notice, Resolution
from insula.policy.current import CurrentPolicy
from insula.policy.decisions import Allow, Ask, Deny, Reason, Request
from insula.policy.engine import answer as answer_question
from insula.policy.evaluate import QuestionError
from insula.policy.snapshot import Snapshot
from insula.policy.store import PolicyStore
from insula.qrexec.errors import QubesdError
from insula.qrexec.log import say
from insula.qrexec.places import policy_agent_socket
from insula.qrexec.policy_protocol import Question
from insula.qrexec.verdicts import DENY, checked, decide, read_snapshot, report, request_of, store_of, text_of
from insula.rpc.ask import NobodyToAsk, Prompts, question_of
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import EXIT_CHANNEL_LOST

CLIENT = "qrexec-client"
MAX_NOTICES = 32
NOTICE_LIMIT_S = 10.0


class Judge:
    """Made in a running event loop."""

    def __init__(self, store: PolicyStore) -> None:
        self._policy = CurrentPolicy(store, report)
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
            say(f"{question.service} from {question.source} is denied: the system is unknown: {error}")
            return DENY
        return await self.answer_in(question, snapshot)

    async def answer_in(self, question: Question, snapshot: Snapshot) -> str:
        """The same, about a system that is known."""
        decision = decide(question, await self._policy.get(), snapshot)
        outcome = checked(await self._ask(decision)) if isinstance(decision, Ask) else decision
        if not question.just_evaluate:
            self._tell(outcome, request_of(question), snapshot)
        return text_of(question, outcome)

    async def snapshot(self) -> Snapshot:
        """The system now. :raise QubesdError: :raise QuestionError:"""
        return await asyncio.to_thread(read_snapshot)

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
            say(f"{question.request.service} from {source}: nobody was asked: {error}")
            return Deny(Reason.NOBODY_TO_ASK, notify=error.notify, rule=question.rule)
        except (QubesdError, QuestionError) as error:
            say(f"{question.request.service} from {source} is denied: the system is unknown: {error}")
            return Deny(Reason.NOBODY_TO_ASK, notify=False, rule=question.rule)
        if choice is None:
            return Deny(Reason.RULE, notify=question.notify, rule=question.rule)
        return answer_question(question, choice, snapshot)

    def _tell(self, outcome: Allow | Deny, request: Request, snapshot: Snapshot) -> None:
        source = request.requested_source or request.source
        facts = snapshot.find(source)
        if not outcome.notify or facts is None or facts.guivm is None:
            return
        resolution = Resolution.DENY if isinstance(outcome, Deny) else Resolution.ALLOW
        target = outcome.target if isinstance(outcome, Allow) else request.target
        if facts.guivm == ADMIN_NAME:
            self._prompts.notify(resolution, request, target, ADMIN_NAME)
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
        say(f"a notice was not shown in {guivm}: {error or 'not in time'}")


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


def ask_once(question: Question, folders: list[str]) -> str:
    """Answer one question, by a judge of its own."""

    async def ask() -> str:
        judge = Judge(store_of(folders))
        try:
            return await judge.answer(question)
        finally:
            await judge.close()

    return asyncio.run(ask())
