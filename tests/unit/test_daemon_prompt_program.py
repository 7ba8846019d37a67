"""Who asks the user is started when it is needed, where it can be, and is never left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.daemon import prompt_program
from insula.daemon.paths import Paths
from insula.daemon.prompt_program import PromptProgram, parse_environment, session_environment
from insula.rpc.ask import CannotAsk

LISTENS = """
import socket, sys, time
from pathlib import Path
path = Path(sys.argv[1])
path.unlink(missing_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind(str(path))
server.listen()
with open(sys.argv[2], "a") as started:
    started.write("x")
time.sleep(60)
"""
WAIT_S = 120.0


@pytest.mark.parametrize(
    ("own", "manager", "euid", "display"),
    [
        ({"DISPLAY": ":0"}, {}, 1000, ":0"),
        ({}, {"DISPLAY": ":1", "XAUTHORITY": "/x"}, 1000, ":1"),
        ({"DISPLAY": ":0"}, {"DISPLAY": ":1"}, 1000, ":1"),
        ({"DISPLAY": ":0"}, {"XAUTHORITY": "/x"}, 1000, ":0"),
        ({"DISPLAY": ":0"}, {}, 0, ":0"),
        ({"DISPLAY": ":0", "SUDO_UID": "0"}, {}, 0, ":0"),
        ({"DISPLAY": ":0", "SUDO_UID": "1000"}, {}, 1000, ":0"),
    ],
)
def test_display_is_that_of_the_session(
    own: Mapping[str, str], manager: Mapping[str, str], euid: int, display: str
) -> None:
    found = session_environment({"PATH": "/bin", **own}, manager, euid)
    assert (found["DISPLAY"], found["PATH"]) == (display, "/bin")


def test_desktop_where_windows_of_qubes_are_shown_comes_first_and_whole() -> None:
    own = {"PATH": "/bin", "DISPLAY": ":0", "WAYLAND_DISPLAY": "wayland-0"}
    found = session_environment(own, {"DISPLAY": ":1"}, 1000, {"DISPLAY": ":2", "XAUTHORITY": "/x"})
    assert found == {"PATH": "/bin", "DISPLAY": ":2", "XAUTHORITY": "/x"}
    assert session_environment(own, {}, 1000, {"XAUTHORITY": "/x"})["DISPLAY"] == ":0"


@pytest.mark.parametrize(
    ("own", "euid", "reason"),
    [
        ({}, 1000, "there is no display; insula prompt asks on a desktop, insula prompt --terminal on a terminal"),
        ({"DISPLAY": ":0", "SUDO_UID": "1000"}, 0, "as root and the desktop is another user's"),
        ({"DISPLAY": ":0", "PKEXEC_UID": "1000"}, 0, "run insula as that user"),
        ({"DISPLAY": ":0", "INSULA_PROMPT": "off"}, 1000, "INSULA_PROMPT is off"),
    ],
)
def test_where_it_cannot_or_must_not_be_started_the_reason_is_said(
    own: Mapping[str, str], euid: int, reason: str
) -> None:
    with pytest.raises(CannotAsk, match=reason):
        session_environment(own, {}, euid)


def test_only_what_tells_of_the_desktop_is_taken_from_the_users_systemd() -> None:
    text = "HOME=/root\nDISPLAY=:1\nPATH=/evil\nWAYLAND_DISPLAY=$'a\\nb'\nXAUTHORITY=/run/a=b\nnonsense\n"
    assert parse_environment(text) == {"DISPLAY": ":1", "XAUTHORITY": "/run/a=b"}


@given(st.text())
def test_whatever_systemd_prints_nothing_else_is_taken(text: str) -> None:
    assert parse_environment(text).keys() <= {*prompt_program._OF_SESSION}


@pytest.fixture
def paths() -> Iterator[Paths]:
    """In a folder of a short name: paths of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="insula-t-") as folder:
        made = Paths(Path(folder) / "data", Path(folder) / "run")
        made.make()
        yield made


def play(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(prompt_program, "command", lambda: [sys.executable, "-c", *words])


@pytest.fixture
async def desk(paths: Paths) -> AsyncIterator[PromptProgram]:
    made = PromptProgram(paths, {"PATH": os.environ["PATH"], "DISPLAY": ":0"})
    yield made
    await made.close()


def listens(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> Path:
    """Have a program that listens played; returns where it leaves a letter for each of its starts."""
    starts = paths.data / "starts"
    play(monkeypatch, LISTENS, str(paths.policy_agent_socket), str(starts))
    return starts


async def test_many_who_wait_start_one_that_ends_with_the_desk(
    desk: PromptProgram, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = listens(monkeypatch, paths)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(desk.open() for _ in range(10)))
        assert starts.read_text() == "x"
        assert desk._process is not None
        await desk.close()
    assert desk._process.returncode == -signal.SIGTERM


async def test_one_that_was_killed_is_started_again_one_that_hangs_is_replaced(
    desk: PromptProgram, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = listens(monkeypatch, paths)
    async with asyncio.timeout(WAIT_S):
        await desk.open()
        assert desk._process is not None
        desk._process.kill()
        await desk._process.wait()
        await desk.open()
        assert starts.read_text() == "xx"
        paths.policy_agent_socket.unlink()
        hanging = desk._process
        await desk.open()
    assert starts.read_text() == "xxx"
    assert hanging.returncode is not None


async def test_one_that_was_started_by_others_is_used_and_left(
    desk: PromptProgram, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = listens(monkeypatch, paths)
    other = await asyncio.create_subprocess_exec(*prompt_program.command())
    try:
        async with asyncio.timeout(WAIT_S):
            while not starts.exists():
                await asyncio.sleep(0.01)
            await desk.open()
            await desk.close()
        assert starts.read_text() == "x"
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_one_that_has_more_to_take_than_it_took_yet_is_left(
    desk: PromptProgram, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = listens(monkeypatch, paths)
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as callers:
        busy.bind(str(paths.policy_agent_socket))
        busy.listen(0)
        while True:
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            if caller.connect_ex(str(paths.policy_agent_socket)) == errno.EAGAIN:
                break
        await desk.open()
    assert not starts.exists()


async def test_why_it_ended_is_the_reason_and_it_is_not_tried_without_end(
    desk: PromptProgram, paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted = paths.data / "starts"
    script = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit('insula: error: windows \\x1b[2J not here')"
    play(monkeypatch, script, str(counted))
    for _ in range(20):
        with pytest.raises(CannotAsk, match=r"^windows \[2J not here; insula prompt asks on a desktop"):
            await desk.open()
    assert counted.read_text() == "x" * prompt_program.STARTS_BURST
    assert len([record for record in caplog.records if "nobody can be asked" in record.getMessage()]) == 1


async def test_one_that_never_listens_is_ended(desk: PromptProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_program, "START_TIMEOUT_S", 0.2)
    play(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(CannotAsk, match="was not ready"):
        await desk.open()
    assert desk._process is not None
    assert desk._process.returncode is not None


KILLED_DAEMON = """
import asyncio, os, signal, sys
from insula.daemon import prompt_program
from insula.daemon.paths import Paths
async def main():
    prompt_program.command = lambda: sys.argv[1:]
    desk = prompt_program.PromptProgram(Paths.from_environment(), {**os.environ, "DISPLAY": ":0"})
    await desk.open()
    print(desk._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_daemon_that_is_killed_takes_it_along(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    listens(monkeypatch, paths)
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED_DAEMON, *prompt_program.command()),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "INSULA_DATA_DIR": str(paths.data), "INSULA_RUNTIME_DIR": str(paths.runtime)},
    )
    async with asyncio.timeout(WAIT_S):
        out, _ = await daemon.communicate()
        descriptor = os.pidfd_open(int(out)) if Path("/proc", out.decode().strip()).exists() else None
        if descriptor is not None:
            gone = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(descriptor, gone.set_result, None)
            await gone
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
