"""Questions to the user: real sessions and the real broker; the program that asks is the test's."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from insula.policy.agent import Notice, Notification, Question, Remark, Resolution
from insula.rpc import ask
from insula.rpc.ask import CannotAsk, Prompts
from insula.testing.call_world import CallWorld, call_world, echo
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served
from insula.testing.scripted_policy_agent import ScriptedAgent

pytestmark = pytest.mark.timeout(300)

RULE = "test.Echo * work @anyvm ask default_target=vault\n"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CallWorld]:
    async with call_world(tmp_path) as made:
        made.rules(RULE)
        await made.boot("work")
        vault = await made.boot("vault")
        vault.services["test.Echo"] = echo
        yield made


@pytest.fixture
async def asker(world: CallWorld) -> AsyncIterator[ScriptedAgent]:
    made = ScriptedAgent(world.agent_socket)
    await made.start()
    yield made
    await made.close()


async def test_user_says_yes_the_call_goes_where_the_user_said(world: CallWorld, asker: ScriptedAgent) -> None:
    world.add("other")
    result = await world.guests["work"].call("test.Echo+x", "@default", stdin=b"hi")
    assert result is not None
    assert result.out == b"hi|user:QUBESRPC test.Echo+x work"
    [question] = asker.questions
    assert question == Question("work", "test.Echo", "+x", ("other", "vault"), "vault")
    await until(lambda: bool(world.records()))
    [record] = world.records()
    assert (record["asked"], record["decision"], record["server"]) == (True, "allowed", "vault")


@pytest.mark.parametrize(
    "answer", [b"deny", b"", b"allow:", b"allow:dom0", b"allow:work", b"allow:vault\n", b"x" * 500]
)
async def test_anything_but_a_yes_to_an_offered_target_is_a_no(
    world: CallWorld, asker: ScriptedAgent, answer: bytes
) -> None:
    asker.answer = answer
    assert await world.guests["work"].call("test.Echo", "vault") is None
    assert world.guests["vault"].executed == []


async def test_nobody_to_ask_is_a_denial_that_says_so(world: CallWorld) -> None:
    """MC-31."""
    assert await world.guests["work"].call("test.Echo", "vault") is None
    assert "nobody can be asked" in str(world.records()[-1]["reason"])


async def test_qube_whose_windows_are_shown_elsewhere_is_not_asked_about_here(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    """MC-31."""
    world.rules(RULE.replace("work", "remote"))
    remote = await world.boot("remote", guivm="sys-gui")
    assert await remote.call("test.Echo", "vault") is None
    assert asker.questions == []


# another qube shows the caller's windows


@pytest.fixture
async def desk(world: CallWorld) -> AsyncIterator[ScriptedGuest]:
    """A qube that shows the windows of ``remote``, and asks its user."""
    world.rules(RULE.replace("work", "remote"))
    await world.boot("remote", guivm="sys-gui")
    yield await world.boot("sys-gui")


def says(answer: bytes, code: int = 0) -> Callable[[Served], Awaitable[Answer]]:
    async def service(call: Served) -> Answer:
        return Answer(code, answer)

    return service


async def test_user_is_asked_in_the_qube_that_shows_the_callers_windows(
    world: CallWorld, asker: ScriptedAgent, desk: ScriptedGuest
) -> None:
    desk.services["policy.Ask"] = says(b"allow:vault")
    result = await world.guests["remote"].call("test.Echo+x", "@default", stdin=b"hi")
    assert result is not None
    assert result.out == b"hi|user:QUBESRPC test.Echo+x remote"
    [asked] = desk.executed
    assert (asked.command, asked.domain) == ("user:QUBESRPC policy.Ask dom0", 0)
    question = json.loads(asked.stdin)
    assert (question["source"], question["service"], question["targets"]) == (
        "remote",
        "test.Echo",
        ["sys-gui", "vault", "work"],
    )
    assert question["default_target"] == "vault"
    assert asker.questions == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"deny", 0), (b"allow:vault", 1), (b"allow:dom0", 0), (b"allow:vault\n", 0), (b"", 0), (b"allow:vault" * 50, 0)],
)
async def test_anything_but_a_yes_of_that_qube_is_a_no(
    world: CallWorld, desk: ScriptedGuest, answer: bytes, code: int
) -> None:
    """MC-31."""
    desk.services["policy.Ask"] = says(answer, code)
    assert await world.guests["remote"].call("test.Echo", "vault") is None
    assert world.guests["vault"].executed == []


async def test_qube_that_shows_windows_and_does_not_run_or_cannot_ask_is_a_no_that_says_so(world: CallWorld) -> None:
    """MC-31."""
    world.rules(RULE.replace("work", "remote"))
    remote = await world.boot("remote", guivm="sys-gui")
    world.add("sys-gui")
    assert await remote.call("test.Echo", "vault") is None
    await until(lambda: len(world.records()) == 1)
    assert "sys-gui, which shows its windows, does not run" in str(world.records()[-1]["reason"])
    await world.boot("sys-gui")
    assert await remote.call("test.Echo", "vault") is None
    await until(lambda: len(world.records()) == 2)
    assert "policy.Ask in sys-gui failed" in str(world.records()[-1]["reason"])


async def test_caller_that_goes_ends_the_question_in_that_qube(world: CallWorld, desk: ScriptedGuest) -> None:
    """MC-24."""
    may_answer = asyncio.Event()

    async def wait(call: Served) -> Answer:
        await may_answer.wait()
        return Answer(0, b"allow:vault")

    desk.services["policy.Ask"] = wait
    remote = world.guests["remote"]
    ident = remote.new_ident()
    await remote.ask("test.Echo", "vault", ident=ident)
    await until(lambda: bool(desk.executed))
    await remote.say(remote.control.withdraw_service(ident))
    await until(lambda: bool(world.records()) and all(stream.is_reset for stream in desk.streams.values()))
    may_answer.set()
    assert world.records()[-1]["decision"] == "withdrawn"
    assert world.guests["vault"].executed == []


async def test_qube_that_shows_windows_and_ends_meanwhile_is_a_no(world: CallWorld, desk: ScriptedGuest) -> None:
    asked = asyncio.Event()

    async def wait(call: Served) -> Answer:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    desk.services["policy.Ask"] = wait
    calling = asyncio.create_task(world.guests["remote"].call("test.Echo", "vault"))
    await asked.wait()
    await world.end("sys-gui")
    assert await calling is None


async def test_denial_is_told_in_the_qube_that_shows_the_callers_windows(
    world: CallWorld, asker: ScriptedAgent, desk: ScriptedGuest
) -> None:
    world.rules("test.Echo * remote @anyvm deny notify=yes\n")
    desk.services["policy.Notify"] = says(b"")
    assert await world.guests["remote"].call("test.Echo", "vault") is None
    await until(lambda: bool(desk.executed) and desk.executed[0].stdin.endswith(b"}"))
    told = json.loads(desk.executed[0].stdin)
    assert (told["resolution"], told["source"], told["target"]) == ("deny", "remote", "vault")
    assert asker.notices == []


async def test_agent_of_another_user_is_not_believed(
    world: CallWorld, asker: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(ask, "_UCRED", _Other())
    assert await world.guests["work"].call("test.Echo", "vault") is None
    assert asker.questions == []


class _Other:
    """``struct ucred`` of somebody else."""

    size = struct.calcsize("iII")

    def unpack(self, data: bytes) -> tuple[int, int, int]:
        return 1, 4711, 4711


async def test_caller_that_goes_takes_the_prompt_along_and_a_late_answer_does_nothing(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    """MC-24."""
    asker.may_answer.clear()
    work = world.guests["work"]
    ident = work.new_ident()
    await work.ask("test.Echo", "vault", ident=ident)
    await until(lambda: bool(asker.questions))
    await work.say(work.control.withdraw_service(ident))
    await until(lambda: asker.withdrawn == 1)
    asker.may_answer.set()
    assert world.guests["vault"].executed == []
    assert world.records()[-1]["decision"] == "withdrawn"


async def test_caller_that_is_killed_takes_the_prompt_along(world: CallWorld, asker: ScriptedAgent) -> None:
    """MC-24."""
    asker.may_answer.clear()
    await world.guests["work"].ask("test.Echo", "vault")
    await until(lambda: bool(asker.questions))
    await world.end("work")
    await until(lambda: asker.withdrawn == 1)


async def test_target_replaced_while_the_user_was_asked_is_not_called(world: CallWorld, asker: ScriptedAgent) -> None:
    """MC-20."""
    asker.may_answer.clear()
    asking = asyncio.create_task(world.guests["work"].call("test.Echo", "vault"))
    await until(lambda: bool(asker.questions))
    world.remove("vault")
    world.disposables.append("")  # another number, so another UUID
    world.add("vault")
    asker.may_answer.set()
    assert await asking is None
    assert "not the qube it was" in str(world.records()[-1]["reason"])


async def test_policy_changed_while_the_user_was_asked_the_answer_does_not_count(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    """MC-20, MC-30."""
    asker.may_answer.clear()
    asking = asyncio.create_task(world.guests["work"].call("test.Echo", "vault"))
    await until(lambda: bool(asker.questions))
    world.rules(RULE.replace("ask", "ask user=root"))
    asker.may_answer.set()
    assert await asking is None
    assert "policy was changed" in str(world.records()[-1]["reason"])


async def test_questions_without_end_are_refused_unasked_and_told_once(world: CallWorld, asker: ScriptedAgent) -> None:
    """MC-33."""
    asker.answer = b"deny"
    work = world.guests["work"]
    for _ in range(ask.QUESTIONS_BURST + 10):
        assert await work.call("test.Echo", "vault") is None
    assert len(asker.questions) <= ask.QUESTIONS_BURST + 1
    await until(lambda: bool(asker.notices))
    assert asker.notices == [Notice(Resolution.DENY, "test.Echo", "+", "work", "vault")]


async def test_open_questions_of_one_qube_are_limited_and_another_qube_is_asked_about(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    """MC-33."""
    world.rules(RULE + RULE.replace("work", "other"))
    asker.may_answer.clear()
    work, other = world.guests["work"], await world.boot("other")
    answers = [await work.ask("test.Echo", "vault") for _ in range(ask.MAX_OPEN_OF_QUBE + 2)]
    await until(lambda: sum(answer.done() for answer in answers) == 2)
    calling = asyncio.create_task(other.call("test.Echo", "vault"))
    await until(lambda: any(question.source == "other" for question in asker.questions))
    asker.may_answer.set()
    assert await calling is not None


async def test_denials_and_allowances_are_told_where_the_rule_says_and_not_without_end(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    world.rules("test.Echo * work vault allow notify=yes\ntest.No * work vault deny notify=no\n")
    work = world.guests["work"]
    await work.call("test.Echo", "vault")
    await work.call("test.No", "vault")
    await work.call("test.Unheard", "vault")
    await until(lambda: len(asker.notices) == 2)
    assert [(notice.resolution, notice.service) for notice in asker.notices] == [
        (Resolution.ALLOW, "test.Echo"),
        (Resolution.DENY, "test.Unheard"),
    ]
    for _ in range(ask.NOTICES_BURST + 20):
        await work.call("test.Unheard", "vault")
    assert len(asker.notices) <= ask.NOTICES_BURST + 5


async def until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_what_windows_have_to_say_reaches_the_desktops_corner(tmp_path: Path) -> None:
    agent = ScriptedAgent(tmp_path / "agent.sock")
    await agent.start()
    prompts = ask.Prompts(tmp_path / "agent.sock")
    prompts.tell(None, "7 bytes copied from work")
    prompts.tell("work", "a menu was too large")
    await prompts.drain()
    assert sorted(agent.remarks, key=lambda remark: remark.source) == [
        Remark("", "7 bytes copied from work"),
        Remark("work", "a menu was too large"),
    ]
    await agent.close()
    # Nobody at the socket: nobody is told, and nothing else happens.
    prompts.tell(None, "7 bytes copied from work")
    await prompts.close()


async def test_flood_of_remarks_is_bounded(tmp_path: Path) -> None:
    """MC-33."""
    prompts = ask.Prompts(tmp_path / "agent.sock")
    for _ in range(1000):
        prompts.tell("work", "again")
    assert len(prompts._notices) == ask.MAX_NOTICES
    await prompts.close()


async def test_mc33_notifications_of_a_qube_are_bounded_and_keep_nothing_of_others_from_being_shown(
    world: CallWorld, asker: ScriptedAgent
) -> None:
    prompts = Prompts(world.agent_socket)

    def told(source: str) -> Notification:
        return Notification(source, "appvm-red", 1, False, "New", "")

    for _ in range(ask.SHOWN_BURST):
        await prompts.show(told("work"))
    with pytest.raises(CannotAsk, match="too many"):
        await prompts.show(told("work"))
    await prompts.show(told("vault"))
    prompts.tell("work", "something else")
    await prompts.drain()
    assert [each.source for each in asker.notifications] == ["work"] * ask.SHOWN_BURST + ["vault"]
    assert len(asker.remarks) == 1


async def test_notification_with_nobody_to_show_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotAsk):
        await Prompts(tmp_path / "nobody").show(Notification("work", "", 1, False, "New", ""))
