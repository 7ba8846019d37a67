"""The policy agent's socket, with real connections."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from insula.manager import agent_server
from insula.manager.agent_server import AgentServer, AlreadyServed, ServerEvent
from insula.manager.prompt import Asked, Withdrawn
from insula.policy import agent
from insula.policy.agent import Notice, Question, Resolution
from insula.policy.decisions import Ask, Request
from insula.policy.engine import evaluate
from insula.policy.errors import Location
from insula.policy.rules import Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.syntax import parse_line
from insula.rpc.ask import NobodyToAsk, Prompts

QUESTION = Question("untrusted", "qubes.Filecopy", "+", ("work", "vault"), "work")
WAIT_S = 120.0


class Ears:
    """Events of a server, in order."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[ServerEvent] = asyncio.Queue()

    async def next(self) -> ServerEvent:
        async with asyncio.timeout(WAIT_S):
            return await self.heard.get()


@asynccontextmanager
async def served(folder: Path, *, uid: int | None = None) -> AsyncIterator[tuple[AgentServer, Ears, Path]]:
    ears = Ears()
    path = folder / "policy-agent.sock"
    async with AgentServer(path, ears.heard.put_nowait, uid=uid) as server:
        yield server, ears, path


async def connect(path: Path, data: bytes, *, end: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    if end:
        writer.write_eof()
    return reader, writer


async def read(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await reader.read()


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_question_is_heard_and_its_answer_arrives(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, ears, path):
        reader, writer = await connect(path, agent.encode(QUESTION))
        assert await ears.next() == Asked(1, QUESTION)
        server.answer(1, "vault")
        assert await read(reader) == b"allow:vault"
        await close(writer)
        reader, writer = await connect(path, agent.encode(QUESTION))
        assert await ears.next() == Asked(2, QUESTION)
        server.answer(1, "work")  # of the one before
        server.answer(2, None)
        assert await read(reader) == b"deny"
        await close(writer)
        assert ears.heard.empty()


async def test_request_in_many_pieces_is_one(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, ears, path):
        data = agent.encode(QUESTION)
        reader, writer = await connect(path, b"", end=False)
        for at in range(0, len(data), 7):
            writer.write(data[at : at + 7])
            await writer.drain()
            await asyncio.sleep(0)
        assert ears.heard.empty()
        writer.write_eof()
        assert await ears.next() == Asked(1, QUESTION)
        server.answer(1, "work")
        assert await read(reader) == b"allow:work"
        await close(writer)


async def test_mc24_asker_that_hangs_up_withdraws_its_question(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, ears, path):
        _, writer = await connect(path, agent.encode(QUESTION))
        assert await ears.next() == Asked(1, QUESTION)
        await close(writer)
        assert await ears.next() == Withdrawn(1)
        server.answer(1, "work")  # nothing happens


async def test_asker_that_hangs_up_before_its_end_asks_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, ears, path):
        _, writer = await connect(path, agent.encode(QUESTION)[:-1], end=False)
        await close(writer)
        reader, writer = await connect(path, agent.encode(Notice(Resolution.DENY, "qubes.Gpg", "+", "work", "")))
        assert await ears.next() == Notice(Resolution.DENY, "qubes.Gpg", "+", "work", "")
        assert await read(reader) == b""
        await close(writer)
        assert ears.heard.empty()


@pytest.mark.parametrize(
    "untrusted_data",
    [b"", b"policy.Ask dom0 name dom0\0", b"policy.Ask work\0{}", b"x" * (agent.MAX_REQUEST + 1)],
    ids=["nothing", "no body", "another caller", "too long"],
)
async def test_what_is_no_request_is_closed_without_an_answer(tmp_path: Path, untrusted_data: bytes) -> None:
    async with served(tmp_path) as (_, ears, path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            writer.write(untrusted_data)
            writer.write_eof()
            assert await read(reader) == b""
        except ConnectionError:
            pass  # closed before it had read all of it
        await close_quietly(writer)
        assert ears.heard.empty()


async def close_quietly(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await close(writer)


async def test_half_a_request_and_silence_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_server, "REQUEST_TIMEOUT_S", 0.05)
    async with served(tmp_path) as (_, _ears, path):
        reader, writer = await connect(path, b"policy.Ask", end=False)
        assert await read(reader) == b""
        await close(writer)


OTHER_USER = """\
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
asking = socket.socket(socket.AF_UNIX)
asking.connect(sys.argv[1])
try:
    asking.sendall(sys.stdin.buffer.read())
    asking.shutdown(socket.SHUT_WR)
    answer = asking.recv(100)
except ConnectionError:
    answer = b""
sys.stdout.write(repr(answer) if answer else "hung up")
"""


async def test_mc108_other_user_is_not_heard(tmp_path: Path) -> None:
    """As root everybody here is root, who is always heard; so this needs a process of another user."""
    if os.geteuid() != 0:
        async with served(tmp_path, uid=os.geteuid() + 1) as (_, ears, path):
            reader, writer = await connect(path, agent.encode(QUESTION))
            assert await read(reader) == b""
            await close(writer)
            assert ears.heard.empty()
        return
    tmp_path.chmod(0o711)
    async with served(tmp_path) as (_, ears, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o666)
        process = await asyncio.create_subprocess_exec(
            *("python3", "-c", OTHER_USER, path.name),
            cwd=tmp_path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(agent.encode(QUESTION))
        assert out == b"hung up"
        assert ears.heard.empty()


async def test_connections_over_the_limit_are_closed_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_server, "MAX_CONNECTIONS", 2)
    async with served(tmp_path) as (server, ears, path):
        kept = [await connect(path, agent.encode(QUESTION)) for _ in range(2)]
        for _ in kept:
            await ears.next()
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await read(reader) == b""
        await close(writer)
        for number, (reader, writer) in enumerate(kept, 1):
            server.answer(number, "work")
            assert await read(reader) == b"allow:work"
            await close(writer)


async def test_end_of_the_program_leaves_questions_without_an_answer(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, ears, path):
        reader, writer = await connect(path, agent.encode(QUESTION))
        await ears.next()
    assert await read(reader) == b""
    await close(writer)
    assert await ears.next() == Withdrawn(1)
    assert not path.exists()


async def test_second_program_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, ears, path):
        with pytest.raises(AlreadyServed):
            await AgentServer(path, lambda _: None).__aenter__()
        reader, writer = await connect(path, agent.encode(QUESTION))
        await ears.next()
        server.answer(1, "work")
        assert await read(reader) == b"allow:work"
        await close(writer)


async def test_socket_left_by_a_killed_program_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "policy-agent.sock"))
    async with served(tmp_path) as (_, ears, path):
        _, writer = await connect(path, agent.encode(QUESTION))
        assert await ears.next() == Asked(1, QUESTION)
        await close(writer)


async def test_long_path_is_served(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    async with served(folder) as (_, _ears, path):
        assert path.is_socket()


def asked_by_a_rule() -> Ask:
    """The decision that a policy comes to, for two qubes with a desktop here."""
    facts = [
        QubeFacts("dom0", klass="AdminVM"),
        QubeFacts("untrusted", guivm="dom0", icon="appvm-red"),
        QubeFacts("work", guivm="dom0", icon="appvm-blue"),
    ]
    rule = parse_line("qubes.Filecopy * untrusted @anyvm ask default_target=work", Location("", "50-user.policy", 1))
    assert isinstance(rule, Rule)
    decision = evaluate(Request("qubes.Filecopy", "+", "untrusted", "@default"), Policy((rule,), []), Snapshot(facts))
    assert isinstance(decision, Ask), decision
    return decision


async def test_broker_asks_and_gets_the_choice(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, ears, path):
        prompts = Prompts(path)
        asking = asyncio.create_task(prompts.ask(asked_by_a_rule()))
        asked = await ears.next()
        assert isinstance(asked, Asked)
        assert (asked.question.source, asked.question.targets) == ("untrusted", ("work",))
        assert asked.question.default_target == "work"
        assert asked.question.icons == {"untrusted": "appvm-red", "work": "appvm-blue"}
        server.answer(asked.number, "work")
        async with asyncio.timeout(WAIT_S):
            assert await asking == "work"
        await prompts.close()


async def test_mc24_broker_whose_caller_is_gone_withdraws_the_question(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, ears, path):
        prompts = Prompts(path)
        asking = asyncio.create_task(prompts.ask(asked_by_a_rule()))
        asked = await ears.next()
        assert isinstance(asked, Asked)
        asking.cancel()
        assert await ears.next() == Withdrawn(asked.number)
        await prompts.close()


async def test_mc31_broker_with_nobody_at_the_socket_has_a_reason(tmp_path: Path) -> None:
    prompts = Prompts(tmp_path / "policy-agent.sock")
    with pytest.raises(NobodyToAsk, match="nobody can be asked"):
        await prompts.ask(asked_by_a_rule())
    await prompts.close()


async def test_mc109_argument_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "+planted-marker-of-a-secret"
    question = Question("untrusted", "qubes.VMExec", secret, ("work",))
    with caplog.at_level(logging.DEBUG):
        async with served(tmp_path) as (server, ears, path):
            reader, writer = await connect(path, agent.encode(question))
            await ears.next()
            server.answer(1, "work")
            await read(reader)
            await close(writer)
            for broken in (agent.encode(question)[:-1], agent.encode(question).replace(b'"work"', b'"w rk"')):
                reader, writer = await connect(path, broken)
                assert await read(reader) == b""
                await close(writer)
    assert "qubes.VMExec" in caplog.text
    assert "not understood" in caplog.text
    assert secret not in caplog.text
