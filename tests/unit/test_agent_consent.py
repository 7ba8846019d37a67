"""Asking a person: by a dialog, at a terminal, or not at all; and what is remembered."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from insula_agent import consent, consent_terminal
from insula_agent.consent import NobodyToAsk

SRC = Path(__file__).parents[2] / "src"
PROGRAM = SRC / "insula_agent" / "bin" / "insula-consent"
WAIT_S = 120.0


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "bin").mkdir()
    return {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path / "run"), "INSULA_LIBRARY": str(SRC),
    }  # fmt: skip


def fake(tmp_path: Path, name: str, script: str) -> None:
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# --- remembering -----------------------------------------------------------------------------------------------------


def test_yes_is_remembered_for_its_time_its_use_and_its_qube(env: dict[str, str]) -> None:
    folder = consent.private_folder(env)
    consent.remember(folder, "gpg", "work")
    now = time.time()
    assert consent.is_remembered(folder, "gpg", "work", 300, now + 1)
    assert not consent.is_remembered(folder, "gpg", "work", 300, now + 301)
    assert not consent.is_remembered(folder, "gpg", "work", 300, now - 3600), "a clock set back is no longer yes"
    assert not consent.is_remembered(folder, "gpg", "work", 0, now)
    assert not consent.is_remembered(folder, "gpg", "other", 300, now)
    assert not consent.is_remembered(folder, "gpg-import", "work", 300, now)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "a\n", "ä", "$(id)"])
def test_source_that_is_no_name_refused(name: str) -> None:
    """MC-16."""
    with pytest.raises(ValueError, match="not a qube"):
        consent.check_source(name)


def test_folder_that_others_may_use_refused(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "run" / "insula").mkdir()
    (tmp_path / "run" / "insula").chmod(0o770)
    with pytest.raises(PermissionError):
        consent.private_folder(env)


def test_folder_that_is_a_link_refused(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "run" / "insula").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        consent.private_folder(env)


def test_folder_asked_for_by_several_at_once_is_everybodys(tmp_path: Path, env: dict[str, str]) -> None:
    folder = tmp_path / "run" / "insula"
    ready = threading.Barrier(8)

    def ask(_: int) -> str:
        ready.wait(WAIT_S)
        return consent.private_folder(env)

    with ThreadPoolExecutor(8) as others:
        for _ in range(200):
            assert set(others.map(ask, range(8), timeout=WAIT_S)) == {str(folder)}
            folder.rmdir()


# --- dialogs ---------------------------------------------------------------------------------------------------------


def test_no_screen_no_dialog(tmp_path: Path, env: dict[str, str]) -> None:
    fake(tmp_path, "zenity", "exit 0")
    assert consent.dialog("?", env) is None


def test_question_is_one_argument_and_no_markup(tmp_path: Path, env: dict[str, str]) -> None:
    fake(tmp_path, "zenity", "exit 0")
    argv = consent.dialog("<b>$(id)</b>", {**env, "DISPLAY": ":0"})
    assert argv is not None
    assert argv[-1] == "--text=<b>$(id)</b>"
    assert "--no-markup" in argv
    assert "--default-cancel" in argv


@pytest.mark.parametrize(
    ("script", "answer"), [("exit 0", True), ("exit 1", False), ("exit 5", False), ("kill $$", False)]
)
def test_answer_of_a_dialog(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, script: str, answer: bool
) -> None:
    fake(tmp_path, "zenity", script)
    monkeypatch.setenv("PATH", env["PATH"])
    assert consent.ask("?", {**env, "DISPLAY": ":0"}) == answer


def test_dialog_nobody_answers_is_a_no_and_goes_away(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "zenity", f"echo $$ >'{tmp_path}/new'; mv '{tmp_path}/new' '{tmp_path}/pid'; exec sleep 1000")
    monkeypatch.setenv("PATH", env["PATH"])
    monkeypatch.setattr(consent, "ANSWER_LIMIT_S", 0.5)

    def wait_once_shown(*arguments: Any) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return select.select(*arguments)

    monkeypatch.setattr(consent, "select", SimpleNamespace(select=wait_once_shown))
    assert not consent.ask("?", {**env, "DISPLAY": ":0"})
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_nobody_to_ask(env: dict[str, str]) -> None:
    """MC-31."""
    with pytest.raises(NobodyToAsk):
        consent.ask("?", env)
    with pytest.raises(NobodyToAsk):
        consent.ask_or_remember("gpg", "work", "?", 300, env)


def test_after_a_no_nobody_is_asked_for_a_while(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-33."""
    monkeypatch.setattr(consent, "NO_LASTS_S", 3600)  # longer than any machine takes for what follows
    fake(tmp_path, "zenity", f"echo asked >>'{tmp_path}/asked'; exit 1")
    monkeypatch.setenv("PATH", env["PATH"])
    env["DISPLAY"] = ":0"
    for _ in range(5):
        assert not consent.ask_or_remember("gpg", "work", "?", 300, env)
    assert not consent.ask_or_remember("gpg", "other", "?", 300, env)
    assert (tmp_path / "asked").read_text() == "asked\n" * 2
    old = time.time() - consent.NO_LASTS_S
    os.utime(f"{consent.private_folder(env)}/gpg-no.work", (old, old))
    assert not consent.ask_or_remember("gpg", "work", "?", 300, env)
    assert (tmp_path / "asked").read_text() == "asked\n" * 3


def test_questions_of_one_qube_at_once_are_one(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-33."""
    fake(tmp_path, "zenity", f"echo asked >>'{tmp_path}/asked'; while [ ! -e '{tmp_path}/go' ]; do sleep 0.05; done")
    monkeypatch.setenv("PATH", env["PATH"])
    env["DISPLAY"] = ":0"
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.append(consent.ask_or_remember("gpg", "work", "?", 300, env)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == [True] * 8
    assert (tmp_path / "asked").read_text() == "asked\n"


# --- the terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """``insula-consent`` in a terminal of its own."""

    def __init__(self, env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.program = subprocess.Popen([PROGRAM], env=env, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.read_until("Ctrl-C")

    def read_until(self, text: str) -> str:
        shown = ""
        deadline = time.monotonic() + WAIT_S
        while text not in shown:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(self.master, 4096).decode()
        return shown

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> None:
        self.program.terminate()
        self.program.wait(WAIT_S)
        os.close(self.master)


@pytest.fixture
def terminal(env: dict[str, str]) -> Iterator[Terminal]:
    running = Terminal(env)
    yield running
    running.end()


def in_background(question: str, env: dict[str, str]) -> tuple[threading.Thread, list[bool]]:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(consent.ask(question, env)))
    thread.start()
    return thread, answers


@pytest.mark.parametrize(
    ("typed", "answer"), [("yes\n", True), ("YES\n", True), ("y\n", False), ("no\n", False), ("\n", False)]
)
def test_answer_at_the_terminal(terminal: Terminal, env: dict[str, str], typed: str, answer: bool) -> None:
    thread, answers = in_background("Do you allow it?", env)
    assert "Do you allow it?" in terminal.read_until("yes or no?")
    terminal.type(typed)
    thread.join(WAIT_S)
    assert answers == [answer]


def test_what_was_typed_before_is_no_answer(terminal: Terminal, env: dict[str, str]) -> None:
    """MC-32."""
    terminal.type("yes\n")
    thread, answers = in_background("Allow?", env)
    terminal.read_until("yes or no?")
    terminal.type("no\n")
    thread.join(WAIT_S)
    assert answers == [False]


def test_question_whose_asker_has_gone_is_withdrawn(terminal: Terminal, env: dict[str, str]) -> None:
    """MC-24: an answer that comes later is not applied to anything."""
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(f"{consent.private_folder(env)}/{consent.SOCKET}")
        asker.sendall(b"Allow?")
        asker.shutdown(socket.SHUT_WR)
        terminal.read_until("yes or no?")
    terminal.read_until("no longer asked")
    thread, answers = in_background("And this?", env)
    assert "And this?" in terminal.read_until("yes or no?")
    terminal.type("yes\n")
    thread.join(WAIT_S)
    assert answers == [True]


def test_second_terminal_is_refused_the_first_goes_on(terminal: Terminal, env: dict[str, str]) -> None:
    done = subprocess.run(
        [PROGRAM], env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=WAIT_S
    )
    assert done.returncode == 1
    assert b"answers at" in done.stderr
    thread, answers = in_background("Allow?", env)
    terminal.read_until("yes or no?")
    terminal.type("yes\n")
    thread.join(WAIT_S)
    assert answers == [True]


def test_terminals_that_begin_at_once_are_one(env: dict[str, str]) -> None:
    path = f"{consent.private_folder(env)}/{consent.SOCKET}"
    ready = threading.Barrier(4)

    def begin(_: int) -> socket.socket | None:
        ready.wait(WAIT_S)
        try:
            return consent_terminal.listen(path)
        except FileExistsError:
            return None

    with ThreadPoolExecutor(4) as others:
        for _ in range(200):
            (one,) = [listener for listener in others.map(begin, range(4), timeout=WAIT_S) if listener is not None]
            with one, socket.socket(socket.AF_UNIX) as asker:
                asker.connect(path)
                one.accept()[0].close()


def test_socket_of_a_terminal_that_was_killed_is_taken_over(env: dict[str, str]) -> None:
    first = Terminal(env)
    first.program.kill()
    first.end()
    second = Terminal(env)
    second.end()


def test_answers_by_a_pipe_and_its_end_ends_it(env: dict[str, str]) -> None:
    """As ``insula run`` has it: what came before the question is thrown away there too."""
    with subprocess.Popen([PROGRAM], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert b"Ctrl-C" in program.stdout.read(200)
        program.stdin.write(b"yes\n")
        thread, answers = in_background("Allow?", env)
        shown = b""
        while b"yes or no?" not in shown:
            shown += program.stdout.read(200) or b""
        program.stdin.write(b"no\n")
        thread.join(WAIT_S)
        assert answers == [False]
        thread, answers = in_background("Allow?", env)
        program.stdin.close()
        thread.join(WAIT_S)
        assert answers == [False]
        assert program.wait(WAIT_S) == 0
    assert not Path(env["XDG_RUNTIME_DIR"], "insula", consent.SOCKET).exists()


def test_question_is_shown_without_control_characters() -> None:
    """MC-103."""
    assert consent_terminal.printable(b"a\x1b[2J\nb\x07\xff\xe2\x80\xae") == "a [2J b \N{REPLACEMENT CHARACTER} "


def test_import_is_cheap() -> None:
    """It is part of every use of a key."""
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); import insula_agent.consent; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout.split()
    assert not {"socket", "subprocess", "threading", "typing"}.intersection(loaded)
