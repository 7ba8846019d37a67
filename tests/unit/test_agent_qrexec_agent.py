"""``qrexec-agent`` and ``qrexec-fork-server`` as real processes, over vchans made of unix sockets."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vchan_peers import PATIENCE_S, Peer, Server, connect

from insula_agent.qrexec_agent import parse_options
from insula_proto import qrexec
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    ExitCode,
    JustExec,
    Message,
    ServiceConnect,
    ServiceRefused,
    Stderr,
    Stdin,
    Stdout,
    TriggerService,
)

SOURCES = Path(qrexec.__file__).parents[1]
USER = pwd.getpwuid(os.geteuid()).pw_name
OWN, OTHER, PORT = 5, 7, 520
START = "import sys; from insula_agent.{} import main; sys.exit(main())"


class World:
    """A folder of vchans, an agent, and the ends a test speaks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("rpc", "rpc-config"):
            (folder / name).mkdir()
        self.socket = folder / "agent.sock"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.peers: list[Peer] = []

    def start(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", START.format(module), *arguments],
            cwd=SOURCES,
            env={
                "PATH": os.environ["PATH"],
                "VCHAN_SOCKET_DIR": str(self.folder),
                "VCHAN_DOMAIN": str(OWN),
                "QREXEC_SERVICE_PATH": f"{self.folder}/rpc",
                "QUBES_RPC_CONFIG_PATH": f"{self.folder}/rpc-config",
                **variables,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def start_agent(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        return self.start("qrexec_agent", f"--agent-socket={self.socket}", *arguments, **variables)

    def keep(self, peer: Peer) -> Peer:
        self.peers.append(peer)
        return peer

    def daemon(self, version: int = 4) -> Peer:
        """Be the admin domain's end of the control channel."""
        peer = self.keep(connect(self.folder / f"vchan.{OWN}.0.512.sock"))
        assert peer.greet(version).version == 4
        return peer

    def server(self, domain: int = OTHER, port: int = PORT) -> Server:
        return Server(self.folder / f"vchan.{domain}.{OWN}.{port}.sock")

    def call(self, daemon: Peer, command: str, version: int = 4) -> Peer:
        """Have a command run and be its caller."""
        server = self.server()
        daemon.send(ExecCmdline(OTHER, PORT, f"{USER}:{command}".encode()))
        caller = self.keep(server.accept())
        assert caller.greet(version).version == 4
        return caller

    def end(self) -> None:
        for peer in self.peers:
            peer.close()
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def joined(messages: list[Message], kind: type[Stdout | Stderr]) -> bytes:
    return b"".join([message.data for message in messages if isinstance(message, kind)])


# --- calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 3, 2])
def test_command_runs_and_its_end_is_told(world: World, version: int) -> None:
    world.start_agent("-S")
    daemon = world.daemon(version)
    caller = world.call(daemon, "cat; echo warning >&2; exit 3", version)
    data = os.urandom(20_000)
    caller.send(*[Stdin(data[start : start + 4096]) for start in range(0, len(data), 4096)], Stdin(b""))
    messages = caller.receive_all()
    assert joined(messages, Stdout) == data
    assert joined(messages, Stderr) == b"warning\n"
    assert messages[-1] == ExitCode(3)
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)


def test_version_2_data_comes_in_small_messages(world: World) -> None:
    world.start_agent("-S")
    server = world.server()
    world.daemon().send(ExecCmdline(OTHER, PORT, f"{USER}:head -c 300000 /dev/zero".encode()))
    caller = world.keep(server.accept())
    caller.greet(2)
    received = b""
    while data := caller.connection.recv(65536):
        received += data
    sizes = set()
    while received:
        _, size = qrexec.HEADER.unpack_from(received)
        sizes.add(size)
        received = received[qrexec.HEADER.size + size :]
    assert max(sizes) == 4096


def test_caller_that_comes_late_is_waited_for(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon()
    daemon.send(ExecCmdline(OTHER, PORT, f"{USER}:true".encode()))
    daemon.send(ExecCmdline(OTHER, PORT + 1, f"{USER}:true".encode()))
    # When the second has been carried out, the first has been tried.
    second = world.keep(world.server(port=PORT + 1).accept())
    second.greet()
    assert second.receive_all()[-1] == ExitCode(0)
    first = world.keep(world.server().accept())
    first.greet()
    assert first.receive_all()[-1] == ExitCode(0)


def test_just_exec_says_only_its_code(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon()
    server = world.server()
    daemon.send(JustExec(OTHER, PORT, f"{USER}:touch {world.folder}/done; sleep 1000".encode()))
    caller = world.keep(server.accept())
    caller.greet()
    assert caller.receive_all() == [ExitCode(0)]
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)


def test_caller_that_leaves_has_its_command_ended(world: World) -> None:
    """MC-22."""
    world.start_agent("-S")
    daemon = world.daemon()
    caller = world.call(daemon, "echo $$; exec sleep 1000")
    message = caller.receive()
    assert isinstance(message, Stdout)
    caller.close()
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(message.data), 0)


@pytest.mark.parametrize("data", [b"\0" * 8, qrexec.HEADER.pack(qrexec.STDIN, 65537), qrexec.encode(ExitCode(0))[:6]])
def test_caller_outside_the_protocol_or_half_a_message_ends_only_its_call(world: World, data: bytes) -> None:
    """MC-11, MC-12."""
    world.start_agent("-S")
    daemon = world.daemon()
    caller = world.call(daemon, "sleep 1000")
    caller.connection.sendall(data)
    if len(data) == 6:
        caller.close()
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)
    again = world.call(daemon, "true")
    assert again.receive_all()[-1] == ExitCode(0)


def test_process_that_does_not_read_paces_its_caller_and_no_other(world: World) -> None:
    """MC-14."""
    world.start_agent("-S")
    daemon = world.daemon()
    caller = world.call(daemon, "sleep 1000")
    caller.connection.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            caller.send(Stdin(bytes(65536)))
            sent += 65536
    assert sent < 8_000_000
    server = world.server(port=PORT + 1)
    daemon.send(ExecCmdline(OTHER, PORT + 1, f"{USER}:true".encode()))
    other = world.keep(server.accept())
    other.greet()
    assert other.receive_all()[-1] == ExitCode(0)


# --- control channel -----------------------------------------------------------------------------------------------


def test_control_channel_lost_is_served_again_and_calls_go_on(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon()
    caller = world.call(daemon, "cat")
    daemon.close()
    again = world.daemon()
    caller.send(Stdin(b"still here"), Stdin(b""))
    messages = caller.receive_all()
    assert (joined(messages, Stdout), messages[-1]) == (b"still here", ExitCode(0))
    # That port was another daemon's: nothing is said of it. What is said next is of this one's.
    assert world.call(again, "true").receive_all()[-1] == ExitCode(0)
    assert again.receive() == ConnectionTerminated(OTHER, PORT)


@pytest.mark.parametrize("version", [0, 1])
def test_daemon_too_old_is_not_spoken_to(world: World, version: int) -> None:
    """MC-12."""
    world.start_agent("-S")
    peer = world.keep(connect(world.folder / f"vchan.{OWN}.0.512.sock"))
    peer.greet(version)
    assert peer.receive() is None
    world.daemon()


def test_systemd_is_told_when_the_daemon_has_connected(world: World) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(world.folder / "notify"))
        notices.settimeout(PATIENCE_S)
        world.start_agent("-S", NOTIFY_SOCKET=f"{world.folder}/notify")
        peer = world.keep(connect(world.folder / f"vchan.{OWN}.0.512.sock"))
        notices.setblocking(False)
        with pytest.raises(BlockingIOError):
            notices.recv(100)
        notices.settimeout(PATIENCE_S)
        peer.greet()
        assert notices.recv(100) == b"READY=1"


def test_sigterm_is_a_clean_end_that_leaves_no_socket(world: World) -> None:
    agent = world.start_agent("-S")
    daemon = world.daemon()
    assert world.socket.exists()
    agent.send_signal(signal.SIGTERM)
    assert daemon.receive() is None
    assert agent.wait(PATIENCE_S) == 0
    assert list(world.folder.glob("*.sock")) == []


def test_folder_that_is_not_there_is_said_and_fails(world: World) -> None:
    agent = world.start_agent("-S", VCHAN_SOCKET_DIR=f"{world.folder}/absent")
    assert agent.wait(PATIENCE_S) == 1


# --- requests of programs ------------------------------------------------------------------------------------------


def test_program_becomes_server_of_its_data_channel(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon()
    program = world.start("client_vm", f"--agent-socket={world.socket}", "vault", "a.B+c")
    assert daemon.receive() == TriggerService(b"", b"vault", b"SOCKET1", b"a.B+c")
    daemon.send(ServiceConnect(OTHER, PORT, b"SOCKET1"))
    service = world.keep(connect(world.folder / f"vchan.{OWN}.{OTHER}.{PORT}.sock"))
    service.greet()
    service.send(Stdout(b"answer"), Stdout(b""), ExitCode(7))
    output, _ = program.communicate(b"question", timeout=PATIENCE_S)
    assert (output, program.returncode) == (b"answer", 7)
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)


def test_program_refused_and_program_that_has_gone(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon()
    refused = world.start("client_vm", f"--agent-socket={world.socket}", "vault", "a.B")
    daemon.receive()
    daemon.send(ServiceRefused(b"SOCKET1"))
    assert refused.wait(PATIENCE_S) == 126
    gone = world.start("client_vm", f"--agent-socket={world.socket}", "vault", "a.B")
    daemon.receive()
    gone.kill()
    gone.wait(PATIENCE_S)
    daemon.send(ServiceConnect(OTHER, PORT, b"SOCKET2"))
    # Published daemons know no other word from the agent about this.
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)


def test_daemon_of_version_2_is_asked_in_its_form(world: World) -> None:
    world.start_agent("-S")
    daemon = world.daemon(2)
    for target, service in (("t" * 40, "a.B"), ("vault", "x" * 70)):
        program = world.start("client_vm", f"--agent-socket={world.socket}", target, service)
        assert program.wait(PATIENCE_S) == 126
    world.start("client_vm", f"--agent-socket={world.socket}", "vault", "a.B")
    assert daemon.receive() == TriggerService(None, b"vault", b"SOCKET3", b"a.B")


# --- sessions ------------------------------------------------------------------------------------------------------


def test_call_is_handed_over_to_the_session_that_there_is(world: World) -> None:
    path = world.folder / f"session.{USER}.sock"
    server = world.start("qrexec_fork_server", str(path), DISPLAY=":7")
    assert server.wait(PATIENCE_S) == 0
    assert path.exists()
    world.start_agent(f"--fork-server-socket={world.folder}/session.%s.sock")
    daemon = world.daemon()
    messages = world.call(daemon, "echo $DISPLAY $PPID").receive_all()
    display, pid = joined(messages, Stdout).split()
    assert display == b":7"
    assert daemon.receive() == ConnectionTerminated(OTHER, PORT)
    without = world.call(daemon, "nogui:echo $DISPLAY").receive_all()
    assert joined(without, Stdout) == b"\n"
    os.kill(int(pid), signal.SIGTERM)


def test_no_session_server_runs_the_call_itself(world: World) -> None:
    world.start_agent(f"--fork-server-socket={world.folder}/session.%s.sock")
    assert joined(world.call(world.daemon(), "echo here").receive_all(), Stdout) == b"here\n"


# --- command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "agent_socket", "fork_server"),
    [
        (["--agent-socket=/a", "--fork-server-socket=/f"], "/a", "/f"),
        (["-a", "/a", "-s", "/f"], "/a", "/f"),
        (["-a/a", "-s/f"], "/a", "/f"),
        (["--agent-socket", "/a", "--no-fork-server"], "/a", ""),
        (["-a", "/a", "-S"], "/a", ""),
    ],
)
def test_options_as_published(arguments: list[str], agent_socket: str, fork_server: str) -> None:
    options = parse_options(arguments)
    assert options is not None
    assert (options.agent_socket, options.fork_server) == (agent_socket, fork_server)


@pytest.mark.parametrize("arguments", [["--agent-socket"], ["-x"], ["word"], ["--no-fork-server=1"], ["-Sx"]])
def test_options_that_are_none_refused(arguments: list[str]) -> None:
    assert parse_options(arguments) is None


@pytest.mark.parametrize("module", ["qrexec_agent", "qrexec_fork_server", "client_vm"])
def test_start_imports_nothing_that_makes_it_slow(module: str) -> None:
    """Ready within 0.3 s of its start; in a qube, under software emulation, everything takes ten times as long."""
    code = f"import insula_agent.{module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], cwd=SOURCES, capture_output=True, check=True).stdout
    slow = {
        "asyncio",
        "argparse",
        "ctypes",
        "dataclasses",
        "enum",
        "logging",
        "re",
        "signal",
        "socket",
        "subprocess",
        "typing",
    }
    assert slow.isdisjoint(loaded.decode().split())
