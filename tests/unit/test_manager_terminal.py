"""The prompt on a terminal: a real one (pty), with keys that come at the wrong time (MC-24, MC-32)."""

from __future__ import annotations

import asyncio
import itertools
import os
import pty
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from insula.daemon.paths import Paths
from insula.manager import prompt, terminal
from insula.manager.host_mark import mark_of
from insula.policy import agent
from insula.policy.agent import Notice, Question, Resolution

QUESTION = Question("untrusted", "qubes.Filecopy", "+", ("personal", "vault", "@dispvm:web"), "vault")
MARK = mark_of(bytes(range(8)))
WAIT_S = 120.0
DELAY_S = 0.15
READY = "Number to allow, or deny: "


class Terminal:
    """The person's side."""

    def __init__(self, descriptor: int, paths: Paths) -> None:
        self._descriptor = descriptor
        self._paths = paths
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def shows(self, text: str) -> str:
        """All up to ``text``, once it was written."""
        async with asyncio.timeout(WAIT_S):
            while text not in self._seen:
                try:
                    self._seen += os.read(self._descriptor, 65536).decode()
                except BlockingIOError:
                    await asyncio.sleep(0.005)
        before, found, self._seen = self._seen.partition(text)
        return before + found

    async def ask(self, request: agent.Request = QUESTION) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self._paths.policy_agent_socket))
        writer.write(agent.encode(request))
        writer.write_eof()
        return reader, writer


async def read(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = connection
    async with asyncio.timeout(WAIT_S):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Terminal]:
    paths = Paths(folder / "data", folder / "run")
    paths.make()
    person, program = pty.openpty()
    os.set_blocking(person, False)
    before = termios.tcgetattr(program)
    with os.fdopen(program, "w", encoding="utf-8") as out:
        serving = asyncio.create_task(terminal.serve(paths, MARK, program, out))
        shown = Terminal(person, paths)
        try:
            await shown.shows("Ctrl-C ends it.")
            yield shown
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            assert termios.tcgetattr(program) == before
    os.close(person)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "ARM_DELAY_S", DELAY_S)


async def test_question_is_told_with_the_mark_and_a_number_allows(tmp_path: Path) -> None:
    async with served(tmp_path) as person:
        asked = await person.ask()
        told = await person.shows(READY)
        for part in (
            MARK.words,
            "untrusted asks to copy files to another qube",
            "qubes.Filecopy",
            " 2  vault  (suggested)",
            " 3  a new disposable of web",
        ):
            assert part in told
        person.type("3\r")
        assert await read(asked) == b"allow:@dispvm:web"


@pytest.mark.parametrize(
    ("line", "answer"),
    [("personal\n", b"allow:personal"), ("x2\x15 3\x7f1\n", b"allow:personal"), ("deny\n", b"deny"), ("\x1b", b"deny")],
)
async def test_name_allows_line_can_be_edited_deny_denies(tmp_path: Path, line: str, answer: bytes) -> None:
    async with served(tmp_path) as person:
        asked = await person.ask()
        await person.shows(READY)
        person.type(line)
        assert await read(asked) == answer


@pytest.mark.parametrize("line", ["\r", " \r", "4\r", "0\r", "99999999999\r", "-1\r", "work\r", "y\r", "yes\r"])
async def test_mc32_line_that_names_no_target_allows_nothing(tmp_path: Path, line: str) -> None:
    async with served(tmp_path) as person:
        asked = await person.ask()
        await person.shows(READY)
        person.type(line)
        await person.shows(READY)
        person.type("n\r")
        assert await read(asked) == b"deny"


async def test_mc32_keys_before_the_delay_is_over_go_nowhere_and_begin_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    # Longer and longer, for a machine that stands still more often than not.
    for attempt, delay_s in enumerate([0.5] * 5 + [1.0] * 5 + [2.0] * 5 + [5.0] * 5 + [10.0] * 5):
        monkeypatch.setattr(prompt, "ARM_DELAY_S", delay_s)
        async with served(tmp_path / str(attempt)) as person:
            moments = [loop.time()]
            asked = await person.ask()
            told = await person.shows("Which qube may it use?")
            for _ in range(10):
                person.type("1\r")
                moments.append(loop.time())
                await asyncio.sleep(delay_s / 3)
            moments.append(loop.time())
            if max(later - earlier for earlier, later in itertools.pairwise(moments)) > delay_s * 0.9:
                # The machine stood still for so long: then nobody typed, and the question counts.
                asked[1].close()
                await asked[1].wait_closed()
                continue
            told += await person.shows(READY)
            assert loop.time() - moments[-2] >= delay_s * 0.9
            assert "1\n" not in told.partition("Which qube")[2].replace("personal", "")
            person.type("\r")  # had "1" been kept, this would allow
            await person.shows("Nothing chosen.")
            person.type("d\r")
            assert await read(asked) == b"deny"
            return
    raise AssertionError("nothing can be typed quickly enough on this machine")


async def test_mc24_caller_that_goes_takes_its_question_along(tmp_path: Path) -> None:
    async with served(tmp_path) as person:
        _, writer = await person.ask()
        await person.shows(READY)
        person.type("1")
        writer.close()
        await person.shows("Nothing is asked any more.")
        person.type("\r")
        asked = await person.ask()
        await person.shows(READY)
        person.type("\r")
        await person.shows("Nothing chosen.")
        person.type("2\r")
        assert await read(asked) == b"allow:vault"


async def test_second_question_is_told_after_the_first_and_armed_by_itself(tmp_path: Path) -> None:
    async with served(tmp_path) as person:
        first = await person.ask()
        await person.shows(READY)
        second = await person.ask(Question("work", "qubes.Gpg", "+", ("vault",)))
        person.type("1\r1\r")
        assert await read(first) == b"allow:personal"
        await person.shows("work asks to")
        await person.shows(READY)
        person.type("1\r")
        assert await read(second) == b"allow:vault"


async def test_notice_is_a_line(tmp_path: Path) -> None:
    async with served(tmp_path) as person:
        assert await read(await person.ask(Notice(Resolution.DENY, "qubes.Gpg", "+", "untrusted", "vault"))) == b""
        await person.shows("untrusted: qubes.Gpg of vault was denied")


async def test_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.make()
    person, program = pty.openpty()
    os.set_blocking(person, False)
    with os.fdopen(os.dup(program), "w", encoding="utf-8") as out:
        serving = asyncio.create_task(terminal.serve(paths, MARK, program, out))
        await Terminal(person, paths).shows("Ctrl-C ends it.")
        os.close(person)
        async with asyncio.timeout(WAIT_S):
            await serving
    os.close(program)
    assert not paths.policy_agent_socket.exists()
