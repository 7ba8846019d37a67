"""The entry point: help, version, usage errors, faults, signals, completion, start-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula import __version__
from insula.cli import completion, connection
from insula.cli.catalogue import COMMANDS
from insula.daemon.paths import Paths
from insula.testing.cli_runner import PROGRAM, Cli, Ran, run_cli, served_cli

PROCESS_TIMEOUT_S = 120


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def nobody(tmp_path: Path) -> Paths:
    """Folders that no daemon serves."""
    return Paths(tmp_path / "data", tmp_path / "run")


def complete(cli: Cli | Paths, *words: str) -> list[str]:
    """What the shell would offer for the last word."""
    paths = cli.paths if isinstance(cli, Cli) else cli
    ran = run_cli(
        paths,
        _INSULA_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(("insula", *words)),
        COMP_CWORD=str(len(words)),
    )
    assert ran.code == 0, ran.err
    return ran.out.split()


def test_version_is_the_packages(nobody: Paths) -> None:
    assert run_cli(nobody, "--version") == Ran(0, f"insula {__version__}\n", "")


def test_help_names_every_command_and_starts_nothing(nobody: Paths) -> None:
    for arguments in (("--help",), ("-h",), ()):
        ran = run_cli(nobody, *arguments)
        assert ran.code == 0
        assert set(COMMANDS) <= set(ran.out.split())
    assert not nobody.runtime.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(nobody: Paths, command: str) -> None:
    ran = run_cli(nobody, command, "--help")
    assert ran.code == 0
    assert f"Usage: insula {command}" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frob",), "No such command 'frob'"),
        (("ls", "--nonsense"), "No such option: --nonsense"),
        (("start",), "Missing argument 'QUBE…'"),
        (("volume",), "Missing command"),
    ],
)
def test_wrong_usage_exits_2_with_one_line_and_a_hint(nobody: Paths, arguments: tuple[str, ...], message: str) -> None:
    ran = run_cli(nobody, *arguments)
    assert (ran.code, ran.out) == (2, "")
    first, hint = ran.err.splitlines()
    assert first.startswith(f"insula: error: {message}")
    assert hint.startswith("hint: insula")


def test_misspelt_command_is_guessed(nobody: Paths) -> None:
    ran = run_cli(nobody, "strat", "work")
    assert (ran.code, ran.err) == (2, "insula: error: No such command 'strat'\nhint: did you mean start?\n")


def test_a_fault_is_one_line_without_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(connection, "run_async", lambda main: (main.close(), broken()))
    ran = cli.run("ls")
    assert ran.code == 1
    assert ran.err.splitlines()[0] == "insula: error: a fault in insula: ZeroDivisionError: division by zero"
    for arguments, environment in ((("--debug", "ls"), {}), (("ls",), {"INSULA_DEBUG": "1"})):
        with pytest.raises(ZeroDivisionError):
            cli.run(*arguments, **environment)


def test_user_made_text_cannot_act_on_the_terminal(cli: Cli) -> None:
    ran = cli.run("ls", "\x1b[2Jwork", terminal=True)
    assert "\x1b[2J" not in ran.err
    assert "\\x1b[2Jwork" in ran.err


# without a daemon


def test_daemon_that_does_not_start_exits_3_with_its_log(nobody: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    ran = run_cli(nobody, "ls")
    assert ran.code == 3
    assert ran.err.startswith("insula: error: insulad did not start")
    assert ran.err.endswith(f"hint: the daemon's log: {nobody.logs / 'insulad.log'}\n")


# completion


def test_completion_offers_commands_and_what_the_daemon_knows(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "TIMEOUT_S", PROCESS_TIMEOUT_S)
    assert complete(cli, "st") == ["start", "stop"]
    assert complete(cli, "start", "w") == ["work"]
    assert complete(cli, "prefs", "work", "mem") == ["memory"]
    assert complete(cli, "prefs", "--global", "default_t") == ["default_template"]
    assert complete(cli, "create", "x", "--label", "bl") == ["blue", "black"]
    assert complete(cli, "create", "x", "--class", "App") == ["AppVM"]
    assert complete(cli, "ls", "--state", "ru") == ["running"]
    assert complete(cli, "pool", "info", "def") == ["default"]
    assert complete(cli, "volume", "info", "work", "pri") == ["private"]
    cli.run("tags", "work", "--add", "finance")
    cli.run("features", "work", "x-note", "1")
    assert complete(cli, "tags", "work", "fin") == ["finance"]
    assert complete(cli, "features", "work", "x-") == ["x-note"]


def test_completion_without_daemon_offers_nothing_and_starts_none(nobody: Paths) -> None:
    assert complete(nobody, "start", "w") == []
    assert complete(nobody, "prefs", "work", "m") == []
    assert not nobody.runtime.exists()


def test_show_completion_prints_a_script(nobody: Paths) -> None:
    ran = run_cli(nobody, "--show-completion", "bash")
    assert (ran.code, "_INSULA_COMPLETE" in ran.out) == (0, True)


# as a process


def start(paths: Paths, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "INSULA_DATA_DIR": str(paths.data), "INSULA_RUNTIME_DIR": str(paths.runtime)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_ends_with_its_code_and_no_traceback(cli: Cli, number: signal.Signals, code: int) -> None:
    with start(cli.paths, "events", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "connection-established"
        process.send_signal(number)
        out, err = process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert (process.returncode, out, err) == (code, "", "")


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "--json"), ("prefs", "work", "--help-properties"), ("--help",)])
def test_reader_that_leaves_early_is_no_complaint(cli: Cli, arguments: tuple[str, ...]) -> None:
    with start(cli.paths, *arguments) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(PROCESS_TIMEOUT_S) in (1, 141)
    assert err == ""


def test_ls_does_not_import_what_makes_it_slow(cli: Cli) -> None:
    """The promise of a quick command: nothing of rich, pydantic or the daemon's rooms for a plain listing."""
    script = (
        "import sys; from insula.cli.main import main; code = main(['ls']);"
        "slow = {'rich.console', 'pydantic', 'msgspec', 'sqlite3', 'insula.store', 'insula.lifecycle'};"
        "sys.exit(f'imported: {slow & sys.modules.keys()}' if slow & sys.modules.keys() else code)"
    )
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(cli.paths.data),
        "INSULA_RUNTIME_DIR": str(cli.paths.runtime),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
