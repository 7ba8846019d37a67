"""``insula run``: with a real session process and a real agent, in this machine instead of a guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.cli import streams
from insula.cli.commands.run import RunCommand, command_line, shell_line
from insula.cli.failures import CliError
from insula.cli.main import load
from insula.model.errors import QubesException
from insula.testing.cli_runner import PROGRAM, Cli, served_cli
from insula.testing.local_guest import LocalGuest

TIMEOUT_S = 120


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def guest(cli: Cli, tmp_path: Path) -> Iterator[LocalGuest]:
    """``work`` runs: its agent and its session are served where the Admin API says commands are run."""
    (tmp_path / "work").mkdir()
    made = LocalGuest(tmp_path / "work" / "rpc.sock", tmp_path / "keys")
    try:
        cli.await_in_daemon(made.boot())
        assert cli.run("start", "work").code == 0
        yield made
    finally:
        cli.await_in_daemon(made.end())


def command(cli: Cli, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of a ``insula run`` process."""
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(cli.paths.data),
        "INSULA_RUNTIME_DIR": str(cli.paths.runtime),
    }
    return [sys.executable, "-c", PROGRAM, "run", *arguments], environment


def run(cli: Cli, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv, environment = command(cli, *arguments)
    return subprocess.run(argv, env=environment, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)


# what is asked for


def test_command_line_keeps_every_argument_as_it_is() -> None:
    assert command_line(["ls", "-a", "/home/user"]) == "QUBESRPC qubes.VMExec+ls+--a+-2Fhome-2Fuser dom0"
    assert command_line(["xterm"], "qubes.VMExecGUI") == "QUBESRPC qubes.VMExecGUI+xterm dom0"
    assert shell_line(["echo $HOME", "&&", "ls"]) == "echo $HOME && ls"


@pytest.mark.parametrize(
    ("words", "line"), [([], command_line), ([], shell_line), (["x" * 70000], command_line), (["\udcff"], shell_line)]
)
def test_command_line_impossible_is_wrong_usage(words: list[str], line: Callable[[list[str]], str]) -> None:
    with pytest.raises(CliError) as raised:
        line(words)
    assert raised.value.exit_code == 2


# a command in a qube


def test_arguments_streams_and_exit_code_are_the_callers(cli: Cli, guest: LocalGuest) -> None:
    odd = ["a b", "", "$HOME", "*", "ü", "-n", "'\"\\", "line\nbreak"]
    done = run(cli, "work", "printf", "%s|", *odd)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "".join(f"{item}|" for item in odd), b"")
    done = run(cli, "work", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_binary_data_passes_both_ways_unchanged(cli: Cli, guest: LocalGuest) -> None:
    data = bytes(range(256)) * 4096
    done = run(cli, "work", "cat", stdin=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_shell_line_is_run_by_the_qubes_shell(cli: Cli, guest: LocalGuest) -> None:
    assert run(cli, "--shell", "work", "echo one && echo $((1 + 1))").stdout == b"one\n2\n"
    done = run(cli, "work", "echo one")
    assert done.returncode == 127
    assert b"hint: 'echo one' is one program name; for a shell line use --shell" in done.stderr


def test_no_stdin_is_the_end_of_input_at_once(cli: Cli, guest: LocalGuest) -> None:
    assert run(cli, "-n", "work", "cat", stdin=b"not for you").stdout == b""


def test_json_has_code_and_both_outputs(cli: Cli, guest: LocalGuest) -> None:
    done = run(cli, "--json", "work", "sh", "-c", "printf 'o\\033\\377'; echo e >&2; exit 3")
    assert json.loads(done.stdout) == {"qube": "work", "exit_code": 3, "stdout": "o\x1b\\xff", "stderr": "e\n"}
    assert done.returncode == 3


def test_unread_output_ends_the_command(cli: Cli, guest: LocalGuest) -> None:
    argv, environment = command(cli, "-n", "work", "yes")
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_call_and_the_remote_program(
    cli: Cli, guest: LocalGuest, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    # Its own messages would end the shell before the trap: its outputs are closed by then.
    trap = f"exec 2> /dev/null; trap 'echo hangup > {tmp_path}/fifo; exit' HUP"
    script = f"{trap}; echo ready; while :; do sleep 0.1; done"
    argv, environment = command(cli, "-n", "work", "sh", "-c", script)
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == code
        assert process.stderr is not None
        assert process.stderr.read() == b""
    readable, _, _ = select.select([fifo], [], [], TIMEOUT_S)
    assert readable, "the remote program did not learn of it"
    assert os.read(fifo, 100) == b"hangup\n"
    os.close(fifo)


def test_timeout_ends_it_with_124(cli: Cli, guest: LocalGuest) -> None:
    done = run(cli, "-n", "--timeout", "0.5", "work", "sleep", "600")
    assert done.returncode == 124
    assert done.stderr == b"insula: error: it took longer than 0.5 s and was ended\n"


def on_terminal(cli: Cli, *arguments: str) -> bytes:
    """What a terminal gets to see of standard output."""
    argv, environment = command(cli, "-n", *arguments)
    primary, secondary = pty.openpty()
    try:
        with subprocess.Popen(argv, env=environment, stdout=secondary, stderr=subprocess.PIPE) as process:
            os.close(secondary)
            seen = b""
            with contextlib.suppress(OSError):  # EIO: the last one has closed it
                while chunk := os.read(primary, 4096):
                    seen += chunk
            assert process.wait(TIMEOUT_S) == 0
        return seen
    finally:
        os.close(primary)


def test_output_on_a_terminal_cannot_steer_it(cli: Cli, guest: LocalGuest) -> None:
    script = "printf 'a\\033]0;owned\\007\\tb\\n\\302\\233'"
    assert on_terminal(cli, "work", "sh", "-c", script) == b"a_]0;owned\x07\tb\r\n__"
    assert on_terminal(cli, "--raw", "work", "sh", "-c", script) == b"a\x1b]0;owned\x07\tb\r\n\xc2\x9b"


# before the command


def test_halted_qube_is_started_first(cli: Cli, guest: LocalGuest) -> None:
    assert cli.run("stop", "work").code == 0
    done = run(cli, "work", "true")
    assert done.returncode == 0
    assert re.fullmatch(rb"(work: starting.*\n)*work started in [0-9.]+ s\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("wrok", "true"), 125, "No such qube: 'wrok'\nhint: did you mean work?"),
        (("--no-start", "work", "true"), 125, "work is not running\nhint: insula start work"),
        (("dom0", "true"), 125, "dom0 is this machine"),
        (("--root", "--user", "x", "work", "true"), 2, "--root and --user exclude each other"),
        ((), 2, "Missing argument"),
        (("work",), 2, "there is no command to run"),
        (("--dispvm", "--"), 2, "there is no command to run"),
        (("--dispvm", "--no-start", "true"), 2, "--no-start and --dispvm exclude each other"),
        (("--dispvm=work", "true"), 125, "work does not have template_for_dispvms set"),
        (("--dispvm=nosuch", "true"), 125, "No such qube: 'nosuch'"),
        (("work", "--"), 2, "there is no command to run"),
    ],
)
def test_call_that_cannot_be_made_has_a_code_and_a_reason(
    cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = cli.run("run", *arguments)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith(f"insula: error: {message}")


def test_qube_that_does_not_start_is_125(cli: Cli) -> None:
    cli.in_daemon(lambda: cli.daemon.engine.fail("start", QubesException("no kernel")))
    ran = cli.run("run", "work", "true")
    assert (ran.code, ran.err) == (125, "insula: error: no kernel\n")


def test_paused_qube_is_refused(cli: Cli) -> None:
    cli.run("start", "work")
    cli.run("pause", "work")
    ran = cli.run("run", "work", "true")
    assert (ran.code, ran.err) == (125, "insula: error: work is paused\nhint: insula unpause work\n")


def test_qube_without_session_is_125(cli: Cli) -> None:
    cli.run("start", "work")
    ran = cli.run("run", "work", "true")
    assert ran.code == 125
    assert "hint: insula ls" in ran.err


# in a disposable


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--dispvm", "ls", "-l"], ["--dispvm=", "ls", "-l"]),
        (["--dispvm=x", "ls"], ["--dispvm=x", "ls"]),
        (["-n", "--dispvm", "--root", "ls"], ["-n", "--dispvm=", "--root", "ls"]),
        (["--user", "--dispvm", "work", "ls"], ["--user", "--dispvm", "work", "ls"]),
        (["--timeout", "3", "--dispvm", "--", "ls"], ["--timeout", "3", "--dispvm=", "--", "ls"]),
        (["work", "ls", "--dispvm"], ["work", "ls", "--dispvm"]),
        (["--", "work", "--dispvm"], ["--", "work", "--dispvm"]),
    ],
)
def test_dispvm_takes_no_word_after_it(given: list[str], meant: list[str]) -> None:
    command = load("run")
    assert isinstance(command, RunCommand)
    assert command.with_value(given) == meant


@contextlib.contextmanager
def disposable_run(cli: Cli, tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``insula run`` with a disposable whose commands are run by the agent of ``work``."""
    gate = cli.in_daemon(lambda: cli.daemon.engine.hold("start"))
    argv, environment = command(cli, *arguments)
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not disposables(cli) and process.poll() is None:
            time.sleep(0.01)
        for name in disposables(cli):
            (tmp_path / name).symlink_to(tmp_path / "work")
        cli.in_daemon(gate.set)
        yield process


def disposables(cli: Cli) -> list[str]:
    names = cli.in_daemon(lambda: list(cli.daemon.store.system.qubes))
    return [name for name in names if name.startswith("disp")]


@pytest.mark.parametrize("option", ["--dispvm", "--dispvm=debian-12", "--dispvm=debian-12-dvm"])
def test_command_runs_in_a_disposable_that_is_gone_afterwards(
    cli: Cli, guest: LocalGuest, tmp_path: Path, option: str
) -> None:
    cli.run("create", "debian-12-dvm", "--label", "red")
    cli.run("prefs", "debian-12-dvm", "template_for_dispvms", "True")
    with disposable_run(cli, tmp_path, option, "sh", "-c", "echo out; exit 7") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (7, b"out\n")
    # On a busy machine it is told what it waits for.
    assert re.fullmatch(rb"(disposable: starting.*\n)*", err)
    assert disposables(cli) == []


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--timeout", "0.5", "--dispvm", "sleep", "600"), 124), (("--dispvm", "nosuch"), 127)]
)
def test_command_that_fails_in_a_disposable_leaves_none(
    cli: Cli, guest: LocalGuest, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    with disposable_run(cli, tmp_path, *arguments) as process:
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    assert disposables(cli) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signal_leaves_no_disposable(
    cli: Cli, guest: LocalGuest, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with disposable_run(cli, tmp_path, "--dispvm", "sh", "-c", "echo ready; sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    while disposables(cli):
        time.sleep(0.01)


# streams


def test_safe_for_terminal_keeps_length_and_lets_nothing_act() -> None:
    filtered = streams.safe_for_terminal(bytes(range(256)))
    assert len(filtered) == 256
    assert set(filtered) <= {*range(0x20, 0x7F), *b"\t\n\r\b\a"}
    assert streams.safe_for_terminal(filtered) == filtered


async def test_delivered_gives_everything_before_the_block_ends() -> None:
    got = streams.Collector(10**6)
    async with streams.delivered(got) as fd:
        os.write(fd, b"x" * 60000)
    assert bytes(got.data) == b"x" * 60000


async def test_delivered_failure_closes_the_pipe_and_comes_out() -> None:
    async def write(fd: int) -> None:
        while True:
            with contextlib.suppress(BrokenPipeError):
                os.write(fd, b"x")
            await asyncio.sleep(0)

    with pytest.raises(streams.TooMuchOutput):
        async with streams.delivered(streams.Collector(100)) as fd:
            assert await streams.while_read([fd], write(fd)) is None


def test_service_is_called_as_the_host_and_gets_its_argument(cli: Cli, guest: LocalGuest) -> None:
    done = run(cli, "--service", "qubes.VMExec+echo+a--b", "work")
    assert (done.returncode, done.stdout) == (0, b"a-b\n")
    assert run(cli, "--service", "test.None", "work").returncode == 127


@pytest.mark.parametrize(
    "arguments", [("-s", "a/b", "work"), ("-s", "a.B", "work", "true"), ("-s", "a.B"), ("-s", "+x", "work")]
)
def test_service_that_is_none_or_comes_with_a_command_is_wrong_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    """MC-16."""
    assert run(cli, *arguments).returncode == 2
