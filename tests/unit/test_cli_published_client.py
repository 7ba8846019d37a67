"""``insula-qrexec-client``: as ``qvm-run`` calls it, with a real session and a real agent in this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, served_cli
from insula.testing.local_guest import LocalGuest

PROGRAM = "import sys; from insula.cli.published_client import main; sys.exit(main())"
TIMEOUT_S = 120


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def guest(cli: Cli) -> Iterator[LocalGuest]:
    folder = cli.paths.qube("work")
    folder.mkdir(parents=True)
    made = LocalGuest(folder / "rpc.sock", folder / "keys")
    try:
        cli.await_in_daemon(made.boot())
        yield made
    finally:
        cli.await_in_daemon(made.end())


def run(cli: Cli, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "INSULA_RUNTIME_DIR": str(cli.paths.runtime), "INSULA_DATA_DIR": str(cli.paths.data)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.usefixtures("guest")
class TestClient:
    def test_service_is_called_with_streams_and_exit_code(self, cli: Cli) -> None:
        done = run(cli, "-d", "work", "DEFAULT:QUBESRPC qubes.VMShell+ dom0", stdin=b"cat; echo err >&2; exit 3\n")
        assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"err\n")

    def test_prefix_comes_before_stdin_and_stdin_is_the_commands(self, cli: Cli) -> None:
        done = run(
            cli, "-d", "work", "-p", "cat; exit 4\n", "DEFAULT:QUBESRPC qubes.VMShell+ dom0", stdin=b"to the command"
        )
        assert (done.returncode, done.stdout) == (4, b"to the command")

    def test_output_for_a_terminal_is_made_harmless(self, cli: Cli) -> None:
        done = run(cli, "-t", "-d", "work", "DEFAULT:printf 'a\\033[31mb'")
        assert done.stdout == b"a_[31mb"

    def test_local_program_is_joined_to_the_service(self, cli: Cli, tmp_path: Path) -> None:
        done = run(cli, "-l", f"cat > {tmp_path}/said", "-d", "work", "DEFAULT:echo said")
        assert done.returncode == 0
        assert (tmp_path / "said").read_text() == "said\n"

    def test_detached_command_is_started_and_not_waited_for(self, cli: Cli, tmp_path: Path) -> None:
        done = run(cli, "-e", "-d", "work", f"DEFAULT:sleep 0.2; touch {tmp_path}/done")
        assert (done.returncode, done.stdout) == (0, b"")

    def test_exit_code_is_dropped_if_asked(self, cli: Cli) -> None:
        assert run(cli, "-E", "-d", "work", "DEFAULT:exit 9").returncode == 0

    def test_service_that_is_none_is_127(self, cli: Cli) -> None:
        assert run(cli, "-d", "work", "DEFAULT:QUBESRPC test.None+ dom0").returncode == 127


@pytest.mark.parametrize(
    "arguments",
    [
        ("-d", "other", "DEFAULT:true"),
        ("-d", "../work", "DEFAULT:true"),
        ("-d", "work", "true"),
        ("-d", "work", "-c", "SOCKET1,work,1", "DEFAULT:true"),
    ],
)
def test_call_that_cannot_be_made_is_125(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = run(cli, *arguments)
    assert done.returncode == 125
    assert done.stderr.startswith(b"insula-qrexec-client: ")


def test_wrong_usage_is_1(cli: Cli) -> None:
    assert run(cli, "-x").returncode == 1
