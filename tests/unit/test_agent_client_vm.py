"""``qrexec-client-vm`` as a real process; the agent and the service are played by the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vchan_peers import PATIENCE_S, Peer

from insula_agent import conveyor
from insula_agent.client_vm import UsageError, parse_options
from insula_agent.requests import ANSWER
from insula_agent.sink import HARMLESS
from insula_proto import qrexec
from insula_proto.qrexec import ExitCode, Hello, Message, Stderr, Stdin, Stdout, TriggerService

SOURCES = Path(qrexec.__file__).parents[1]
START = "import sys; from insula_agent.client_vm import main; sys.exit(main())"


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "agent.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(1)
        self._listener.settimeout(PATIENCE_S)
        self._closers: list[Any] = [self._listener]
        self.program: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.program = subprocess.Popen(
            [sys.executable, "-S", "-c", START, f"--agent-socket={self.socket}", *arguments],
            cwd=SOURCES,
            **{**pipes, **options},
        )
        return self.program

    def asked(self) -> tuple[Peer, Message]:
        """Be the agent: return the connection and the request."""
        connection, _ = self._listener.accept()
        peer = Peer(connection)
        self._closers.append(peer)
        request = peer.receive()
        assert request is not None
        return peer, request

    def grant(self, agent: Peer) -> Peer:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(agent.connection, [ANSWER.pack(9, 600)], [theirs.fileno()])
        peer = Peer(ours)
        self._closers.append(peer)
        assert peer.greet() == Hello(4)
        return peer

    def service(self) -> Peer:
        """Grant what is asked for, and be the service."""
        return self.grant(self.asked()[0])

    def end(self) -> None:
        for closer in self._closers:
            closer.close()
        if self.program is not None:
            if self.program.poll() is None:
                self.program.kill()
            for pipe in (self.program.stdin, self.program.stdout, self.program.stderr):
                if pipe is not None:
                    pipe.close()
            self.program.wait(PATIENCE_S)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def read(pipe: Any) -> bytes:
    data: bytes = pipe.read()
    return data


def stdin_of(service: Peer) -> bytes:
    """All input up to its end."""
    data = b""
    while True:
        message = service.receive()
        assert isinstance(message, Stdin)
        if not message.data:
            return data
        data += message.data


# --- request -------------------------------------------------------------------------------------------------------


def test_request_carries_what_was_given(world: World) -> None:
    world.start("-s", "relayed", "$dispvm:work", "a.B+c")
    assert world.asked()[1] == TriggerService(b"relayed", b"@dispvm:work", b"SOCKET", b"a.B+c")


def test_names_too_long_are_cut_and_no_target_is_one(world: World) -> None:
    world.start("-s", "s" * 70, "t" * 70, "a.B")
    assert world.asked()[1] == TriggerService(b"s" * 63, b"t" * 63, b"SOCKET", b"a.B")


@pytest.mark.parametrize("service", ["", "x" * 65001])
def test_service_that_cannot_be_asked_for_is_125(world: World, service: str) -> None:
    program = world.start("vault", service)
    assert program.wait(PATIENCE_S) == 125


def test_refused_says_so_and_starts_no_program(world: World, tmp_path: Path) -> None:
    program = world.start("vault", "a.B", "/usr/bin/touch", str(tmp_path / "started"))
    world.asked()[0].close()
    assert program.wait(PATIENCE_S) == 126
    assert read(program.stderr) == b"Request refused\n"
    assert not (tmp_path / "started").exists()


def test_no_agent_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", START, "-a", str(tmp_path / "absent"), "vault", "a.B"]
    assert subprocess.run(command, cwd=SOURCES, capture_output=True, check=False).returncode == 1


# --- data ----------------------------------------------------------------------------------------------------------


def test_file_as_input_and_output_bulk_arrives_whole(world: World, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        program = world.start("vault", "a.B", stdin=source, stdout=sink)
        service = world.service()
        assert stdin_of(service) == data
        for start in range(0, len(data), 65536):
            service.send(Stdout(data[start : start + 65536]))
        service.send(Stdout(b""), ExitCode(0))
        assert program.wait(PATIENCE_S) == 0
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("size", [65536, 60000, 100])
def test_bulk_of_a_channel_of_pipes_arrives_whole_and_in_order(world: World, tmp_path: Path, size: int) -> None:
    """As much as the pipe holds is taken at once; what is said between, and behind it, is heard all the same."""
    data = os.urandom(3_000_000 if size > 100 else 100_000)
    with (tmp_path / "out").open("wb") as sink:
        program = world.start("vault", "a.B", stdout=sink)
    agent, _ = world.asked()
    their_input, into = os.pipe()
    out, their_output = os.pipe()
    conveyor.enlarge(into, 1 << 20)
    socket.send_fds(agent.connection, [ANSWER.pack(9, 600)], [their_input, their_output])
    os.close(their_input)
    os.close(their_output)
    said = [qrexec.encode(Hello(4))]
    for start in range(0, len(data), size):
        said.append(qrexec.encode(Stdout(data[start : start + size])))
        if start == 20 * size:
            said.append(qrexec.encode(Stderr(b"between\n")))
    said += [qrexec.encode(Stdout(b"")), qrexec.encode(Stderr(b"behind\n")), qrexec.encode(ExitCode(3))]
    with os.fdopen(into, "wb", buffering=0) as channel:
        left = memoryview(b"".join(said))
        while left:
            left = left[channel.write(left) :]
        assert program.wait(PATIENCE_S) == 3
    assert (tmp_path / "out").read_bytes() == data
    assert read(program.stderr) == b"between\nbehind\n"
    os.close(out)


def test_prefix_goes_before_the_input(world: World) -> None:
    program = world.start("-p", "before ", "vault", "a.B")
    assert program.stdin is not None
    program.stdin.write(b"after")
    program.stdin.close()
    assert stdin_of(world.service()) == b"before after"


def test_output_waits_for_a_slow_reader_and_none_is_lost(world: World) -> None:
    """MC-14: the service is paced meanwhile."""
    program = world.start("vault", "a.B")
    service = world.service()
    service.connection.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 50_000_000:
            service.send(Stdout(bytes(65536)))
            sent += 65536
    assert sent < 5_000_000
    reader = threading.Thread(target=lambda: len(read(program.stdout)))
    reader.start()
    reader.join(0.01)
    service.close()
    assert program.wait(PATIENCE_S) == 255
    reader.join(PATIENCE_S)


def test_reader_that_has_gone_does_not_fail_the_call(world: World) -> None:
    program = world.start("vault", "a.B")
    service = world.service()
    assert program.stdout is not None
    program.stdout.close()
    for _ in range(50):
        service.send(Stdout(bytes(65536)))
    service.send(ExitCode(3))
    assert program.wait(PATIENCE_S) == 3


def test_input_that_goes_on_when_the_service_has_ended_is_cut(world: World) -> None:
    program = world.start("vault", "a.B")
    service = world.service()
    service.send(Stdout(b""), Stderr(b""), ExitCode(5))
    assert service.receive_all() == [Stdin(b"")]
    assert program.wait(PATIENCE_S) == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["-t", "-T"], b"a_\t\n\r\b\a_z__"), (["-t", "--no-filter-escape-chars-stdout"], b"a\x1b\t\n\r\b\a\x00z\xc3\xa4")],
)
def test_output_is_made_harmless_if_wanted(world: World, options: list[str], expected: bytes) -> None:
    raw = "a\x1b\t\n\r\b\a\x00zä".encode()
    program = world.start(*options, "vault", "a.B")
    service = world.service()
    service.send(Stdout(raw), Stderr(raw), ExitCode(0))
    assert read(program.stdout) == expected
    assert read(program.stderr) == (expected if "-T" in options else raw)


def test_terminal_gets_harmless_output_by_itself(world: World) -> None:
    controller, terminal = os.openpty()
    try:
        program = world.start("vault", "a.B", stdout=terminal)
        service = world.service()
        service.send(Stdout(b"a\x1bz"), ExitCode(0))
        assert program.wait(PATIENCE_S) == 0
        assert os.read(controller, 100) == b"a_z"
    finally:
        os.close(controller)
        os.close(terminal)


def test_every_byte_is_harmless() -> None:
    printable = set(range(0x20, 0x7F)) | set(b"\t\n\r\b\a")
    assert all(HARMLESS[byte] == (byte if byte in printable else ord("_")) for byte in range(256))


def test_stdin_socket_is_used_for_both_directions(world: World) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            program = world.start("--use-stdin-socket", "vault", "a.B", stdin=theirs, stdout=subprocess.DEVNULL)
        ours.settimeout(PATIENCE_S)
        service = world.service()
        ours.sendall(b"question")
        ours.shutdown(socket.SHUT_WR)
        assert stdin_of(service) == b"question"
        service.send(Stdout(b"answer"), Stdout(b""))
        assert ours.recv(100) == b"answer"
        assert ours.recv(100) == b""
        service.send(ExitCode(2))
        assert program.wait(PATIENCE_S) == 2


def test_stdin_that_is_no_socket_is_not_used_as_one(world: World) -> None:
    assert world.start("--use-stdin-socket", "vault", "a.B").wait(PATIENCE_S) == 2


# --- a local program -----------------------------------------------------------------------------------------------


def test_program_is_connected_and_has_our_descriptors(world: World) -> None:
    script = 'read x; echo "to the caller" >&$SAVED_FD_1; read y <&$SAVED_FD_0; echo "$x $y ${SAVED_FD_2-none}"'
    program = world.start("vault", "a.B", "/bin/sh", "-c", script)
    service = world.service()
    assert program.stdin is not None
    program.stdin.write(b"typed\n")
    program.stdin.close()
    service.send(Stdout(b"question\n"))
    assert stdin_of(service) == b"question typed none\n"
    service.send(ExitCode(0))
    assert read(program.stdout) == b"to the caller\n"
    assert program.wait(PATIENCE_S) == 0


def test_program_has_error_output_too_if_wanted(world: World) -> None:
    environment = {**os.environ, "PASS_LOCAL_STDERR": "1"}
    program = world.start("vault", "a.B", "/bin/sh", "-c", "echo hello >&$SAVED_FD_2", env=environment)
    world.service().send(ExitCode(0))
    assert program.wait(PATIENCE_S) == 0
    assert read(program.stderr) == b"hello\n"


@pytest.mark.parametrize(("local", "remote", "expected"), [(0, 0, 0), (4, 0, 4), (4, 3, 3), (0, 3, 3)])
def test_exit_code_is_the_services_or_else_the_programs(world: World, local: int, remote: int, expected: int) -> None:
    program = world.start("vault", "a.B", "/bin/sh", "-c", f"exit {local}")
    service = world.service()
    assert stdin_of(service) == b""
    service.send(Stdout(b""), ExitCode(remote))
    assert program.wait(PATIENCE_S) == expected


def test_program_may_use_one_socket_after_sigusr1(world: World) -> None:
    script = 'echo first; kill -USR1 "$QREXEC_AGENT_PID"; echo second >&0; read x; echo "got $x" >&0'
    program = world.start("vault", "a.B", "/bin/sh", "-c", script)
    service = world.service()
    service.send(Stdout(b"input\n"))
    assert stdin_of(service) == b"first\nsecond\ngot input\n"
    service.send(ExitCode(0))
    assert program.wait(PATIENCE_S) == 0


def test_signal_before_the_service_is_there_counts(world: World, tmp_path: Path) -> None:
    script = f'kill -USR1 "$QREXEC_AGENT_PID"; echo out >&0; touch {tmp_path}/said; read x'
    program = world.start("vault", "a.B", "/bin/sh", "-c", script)
    agent, _ = world.asked()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(agent.connection, [ANSWER.pack(9, 600)], [theirs.fileno()])
        # Nothing more comes from the program that could wake its caller.
        while not (tmp_path / "said").exists():
            assert program.poll() is None
        service = Peer(ours)
        service.greet()
        assert service.receive() == Stdin(b"out\n")
        program.kill()


def test_program_that_cannot_be_executed_fails_the_call(world: World) -> None:
    program = world.start("vault", "a.B", "/nowhere/program")
    service = world.service()
    assert stdin_of(service) == b""
    service.send(ExitCode(0))
    assert program.wait(PATIENCE_S) == 255


# --- the end -------------------------------------------------------------------------------------------------------


def test_channel_lost_is_255_and_what_came_before_is_written(world: World) -> None:
    program = world.start("vault", "a.B")
    service = world.service()
    service.send(Stdout(b"half an answer"))
    service.close()
    assert program.wait(PATIENCE_S) == 255
    assert read(program.stdout) == b"half an answer"


@pytest.mark.parametrize(
    "data", [qrexec.HEADER.pack(qrexec.STDOUT, 65537), b"\xff" * 8, qrexec.encode(Hello(4)), b"\0" * 8]
)
def test_service_outside_the_protocol_fails(world: World, data: bytes) -> None:
    """MC-11, MC-12."""
    program = world.start("vault", "a.B")
    service = world.service()
    service.connection.sendall(data)
    assert program.wait(PATIENCE_S) == 1


def test_service_that_says_nothing_but_hello_waits_like_any_other(world: World) -> None:
    program = world.start("vault", "a.B")
    world.service()
    program.send_signal(signal.SIGINT)
    assert program.wait(PATIENCE_S) == -signal.SIGINT


# --- command line --------------------------------------------------------------------------------------------------


def test_options_short_long_joined() -> None:
    options = parse_options(
        ["-tTa/x", "--prefix-data=p", "--source-qube", "q", "--buffer-size=4096", "t", "s", "-t", "x"]
    )
    assert options.filters_stdout
    assert options.filters_stderr
    assert (options.agent_socket, options.prefix, options.source) == ("/x", b"p", b"q")
    assert (options.target, options.service, options.program) == (b"t", b"s", ["-t", "x"])


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["t"], ["-x", "t", "s"], ["--nonsense", "t", "s"], ["-a"], ["--agent-socket"], ["--help=1"],
        ["-p", "a", "-p", "b", "t", "s"], ["-s", "a", "-s", "b", "t", "s"], ["--buffer-size=x", "t", "s"],
        ["--buffer-size=-1", "t", "s"], ["--use-stdin-socket", "t", "s", "program"],
    ],
)  # fmt: skip
def test_options_that_are_none_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_options(arguments)
