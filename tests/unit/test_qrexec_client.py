"""``qrexec-client`` as a process: a daemon and the other end of the data channel are small peers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from qrexec_peers import (
    DOMAIN,
    PORT,
    PROGRAMS,
    WAIT_S,
    Peer,
    Server,
    World,
    connect,
    exit_code,
    ident,
    listen,
    params,
    qube,
)

from insula.qrexec.client import Options, UsageError, main
from insula_proto import qrexec
from insula_proto.vchan import Place


@pytest.fixture
def world() -> Iterator[World]:
    with World.temporary() as made:
        yield made


def serve(world: World, domain: int) -> Peer:
    """Be the qube that calls the host: server of the data channel, HELLO said."""
    with listen(Path(Place(str(world.folder), domain).served_for(0, PORT))) as listener:
        connection, _ = listener.accept()
    peer = Peer(connection)
    peer.hello()
    return peer


def test_command_gets_stdin_gives_output_and_code(world: World) -> None:
    with qube(world) as called, world.client("-d", "work", "-p", "first ", "u:cmd", stderr=subprocess.PIPE) as client:
        assert called.answer() == (qrexec.EXEC_CMDLINE, params(0, 0, b"u:cmd\0"))
        channel = called.channel()
        assert client.stdin is not None
        client.stdin.write(b"second")
        client.stdin.close()
        data = b""
        while (message := channel.receive())[1]:
            assert message[0] == qrexec.STDIN
            data += message[1]
        assert data == b"first second"
        channel.send(qrexec.STDOUT, b"out")
        channel.send(qrexec.STDERR, b"err")
        channel.send(qrexec.STDOUT)
        assert client.stdout is not None
        assert client.stdout.read() == b"out", "its end is passed on before the call ends"
        channel.send(qrexec.STDERR)
        channel.send(*exit_code(42))
        assert client.wait(WAIT_S) == 42
        assert client.stderr is not None
        assert client.stderr.read() == b"err"


@pytest.mark.parametrize(("options", "code"), [((), 255), (("-E",), 0)])
def test_channel_lost_before_the_code_is_255(world: World, options: tuple[str, ...], code: int) -> None:
    with qube(world) as called, world.client(*options, "-d", "work", "u:cmd") as client:
        called.answer()
        channel = called.channel()
        channel.send(qrexec.STDOUT, b"some")
        channel.close()
        assert client.stdout is not None
        assert client.stdout.read() == b"some"
        assert client.wait(WAIT_S) == code


def test_service_that_ends_without_reading_still_gives_its_code(world: World) -> None:
    with qube(world) as called, world.client("-d", "work", "u:cmd") as client:
        called.answer()
        channel = called.channel()
        assert client.stdin is not None
        channel.send(qrexec.STDOUT, b"out")
        channel.send(*exit_code(3))
        channel.close()
        with suppress(BrokenPipeError):
            for _ in range(16):
                os.write(client.stdin.fileno(), bytes(65536))
        assert client.stdout is not None
        assert client.stdout.read() == b"out"
        assert client.wait(WAIT_S) == 3


@pytest.mark.parametrize(
    "body",
    [
        qrexec.HEADER.pack(qrexec.STDOUT, 65537),
        qrexec.HEADER.pack(0x999, 0),
        qrexec.HEADER.pack(qrexec.EXIT_CODE, 5) + bytes(5),
        (qrexec.HEADER.pack(qrexec.STDOUT, 0)) * 2,
    ],
)
def test_service_that_breaks_the_protocol_is_255(world: World, body: bytes) -> None:
    """MC-11, MC-21."""
    with qube(world) as called, world.client("-d", "work", "u:cmd", stderr=subprocess.DEVNULL) as client:
        called.answer()
        channel = called.channel()
        channel.connection.sendall(body)
        assert client.wait(WAIT_S) == 255


def test_service_of_version_2_gets_small_messages(world: World) -> None:
    with qube(world) as called, world.client("-d", "work", "u:cmd") as client:
        called.answer()
        channel = connect(Path(Place(str(world.folder), DOMAIN).served_by(0, PORT)))
        channel.send(qrexec.HELLO, struct.pack("<I", 2))
        assert channel.receive() == (qrexec.HELLO, struct.pack("<I", 4))
        assert client.stdin is not None
        client.stdin.write(bytes(20000))
        client.stdin.close()
        sizes = []
        while (message := channel.receive())[1]:
            sizes.append(len(message[1]))
        assert sum(sizes) == 20000
        assert max(sizes) <= 4096
        channel.send(*exit_code(0))
        assert client.wait(WAIT_S) == 0


def test_reader_that_is_slow_loses_nothing_and_holds_up_the_sender(world: World) -> None:
    """MC-14: what is not taken is not read from the qube either."""
    with qube(world) as called, world.client("-d", "work", "u:cmd") as client:
        called.answer()
        channel = called.channel()
        chunk = bytes(range(256)) * 256
        channel.connection.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                channel.send(qrexec.STDOUT, chunk)
                sent += 1
        assert sent * len(chunk) < 4 << 20
        resident = int(Path(f"/proc/{client.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 60 << 20
        assert client.stdout is not None
        head = client.stdout.read(sent * len(chunk))
        assert head == chunk * sent


def test_output_is_cleaned_for_terminals_when_asked(world: World) -> None:
    with qube(world) as called, world.client("-t", "-T", "-d", "work", "u:cmd", stderr=subprocess.PIPE) as client:
        called.answer()
        channel = called.channel()
        channel.send(qrexec.STDOUT, b"a\x1b[2Jb\n\t\r\b\a\xc3\xa4\0")
        channel.send(qrexec.STDERR, b"\x9b31m")
        channel.send(*exit_code(0))
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stdout.read() == b"a_[2Jb\n\t\r\b\a___"
        assert client.stderr.read() == b"_31m"


def test_local_program_is_the_other_end(world: World) -> None:
    program = 'read x; echo "got $x from $QREXEC_REMOTE_DOMAIN"; exit 5'
    with qube(world) as called, world.client("-d", "work", "-l", program, "u:cmd") as client:
        called.answer()
        channel = called.channel()
        channel.send(qrexec.STDOUT, b"hello\n")
        assert channel.receive() == (qrexec.STDIN, b"got hello from work\n")
        assert channel.receive() == (qrexec.STDIN, b"")
        channel.send(*exit_code(0))
        assert client.wait(WAIT_S) == 5, "its own code counts if the service's is 0"


def test_detached_command_sends_no_input(world: World) -> None:
    with qube(world) as called, world.client("-e", "-d", "work", "u:cmd", stdin=subprocess.DEVNULL) as client:
        assert called.answer() == (qrexec.JUST_EXEC, params(0, 0, b"u:cmd\0"))
        called.channel().send(*exit_code(0))
        assert client.wait(WAIT_S) == 0


def test_one_socket_for_both_directions(world: World) -> None:
    ours, theirs = socket.socketpair()
    arguments = ("--use-stdin-socket", "-d", "work", "u:cmd")
    with ours, qube(world) as called, world.client(*arguments, stdin=theirs.fileno()) as client:
        theirs.close()
        called.answer()
        channel = called.channel()
        ours.sendall(b"in")
        ours.shutdown(socket.SHUT_WR)
        assert channel.receive() == (qrexec.STDIN, b"in")
        assert channel.receive() == (qrexec.STDIN, b"")
        channel.send(qrexec.STDOUT, b"out")
        channel.send(*exit_code(0))
        assert ours.recv(16) == b"out"
        assert client.wait(WAIT_S) == 0


def test_standard_streams_keep_their_mode(world: World) -> None:
    """They are somebody else's too."""
    out, into = os.pipe()
    streams = {"stdin": subprocess.DEVNULL, "stdout": into}
    with qube(world) as called, world.client("-d", "work", "u:cmd", **streams) as client:
        called.answer()
        called.channel().send(*exit_code(0))
        assert client.wait(WAIT_S) == 0
    assert os.get_blocking(into)
    os.close(into)
    os.close(out)


def test_nobody_connects_in_time_is_125(world: World) -> None:
    with qube(world) as called, world.client("-w1", "-d", "work", "u:cmd", stderr=subprocess.DEVNULL) as client:
        called.answer()
        assert client.wait(WAIT_S) == 125
    assert list(world.folder.glob("vchan.0.*")) == []


def test_no_daemon_is_125_and_with_k_the_qube_is_killed(world: World) -> None:
    arguments = ("-k", "-d", "work", "u:cmd")
    with (
        Server(world.folder / "qubesd.sock", lambda _: b"0\0") as qubesd,
        world.client(*arguments, stderr=subprocess.DEVNULL) as client,
    ):
        assert client.wait(WAIT_S) == 125
    assert qubesd.requests == [b"admin.vm.Kill+ dom0 name work\0"]


@pytest.mark.parametrize("bad", [b"", qrexec.HEADER.pack(0x999, 0), struct.pack("<III", qrexec.HELLO, 4, 2)])
def test_daemon_that_breaks_the_protocol_is_125(world: World, bad: bytes) -> None:
    with qube(world) as called, world.client("-d", "work", "u:cmd", stderr=subprocess.DEVNULL) as client:
        connection, _ = called.listener.accept()
        connection.sendall(bad)
        connection.close()
        assert client.wait(WAIT_S) == 125


# requests that wait


def test_two_qubes_are_joined(world: World) -> None:
    arguments = ("-W", "-d", "vault", "-c", f"SOCKET7,work,{DOMAIN}", "u:cmd")
    with qube(world, "vault", 43) as target, qube(world) as source, world.client(*arguments) as client:
        assert target.answer() == (qrexec.EXEC_CMDLINE, params(DOMAIN, 0, b"u:cmd\0"))
        assert source.hear() == (qrexec.SERVICE_CONNECT, params(43, PORT, ident(b"SOCKET7")))
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(0.3)
        target.client.close()
        assert client.wait(WAIT_S) == 0


def test_two_qubes_that_cannot_be_joined_are_137(world: World) -> None:
    arguments = ("-d", "vault", "-c", f"SOCKET7,work,{DOMAIN}", "u:cmd")
    with world.client(*arguments, stderr=subprocess.DEVNULL) as client:
        assert client.wait(WAIT_S) == 137


@pytest.mark.parametrize("name", ["dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"])
def test_service_of_the_host_for_a_request(world: World, name: str) -> None:
    world.script(world.services / "test.Host", 'cat; echo "$1 $QREXEC_REQUESTED_TARGET" ; exit 9')
    command = "QUBESRPC test.Host+x work name dom0"
    with qube(world) as source, world.client("-d", name, "-c", f"SOCKET7,work,{DOMAIN}", command) as client:
        assert source.answer() == (qrexec.SERVICE_CONNECT, params(0, 0, ident(b"SOCKET7")))
        channel = serve(world, DOMAIN)
        channel.send(qrexec.STDIN, b"in ")
        channel.send(qrexec.STDIN)
        output = [(qrexec.STDOUT, b"in x dom0\n"), (qrexec.STDOUT, b"")]
        assert channel.rest() == [(qrexec.STDERR, b""), *output, exit_code(9)]
        assert client.wait(WAIT_S) == 9


def test_host_calls_itself(world: World) -> None:
    world.script(world.services / "test.Host", 'read x; echo "$x $1"; exit 4')
    with world.client("-d", "dom0", "DEFAULT:QUBESRPC test.Host+y dom0 name dom0") as client:
        output, _ = client.communicate(b"in\n", WAIT_S)
        assert output == b"in y\n"
        assert client.returncode == 4


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("root:QUBESRPC test.Host dom0", 125),
        ("DEFAULT:true", 125),
        ("DEFAULT:QUBESRPC test.Gone dom0", 127),
        ("DEFAULT:QUBESRPC test.Socket dom0", 125),
        ("DEFAULT:QUBESRPC test.Host", 125),
    ],
)
def test_host_calls_itself_wrongly(world: World, command: str, code: int) -> None:
    arguments = ("-d", "dom0", command)
    with listen(world.services / "test.Socket"), world.client(*arguments, stderr=subprocess.DEVNULL) as client:
        assert client.wait(WAIT_S) == code


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["u:cmd"], ["-d", "work"], ["-d", "work", "-e", "-l", "p", "u:c"], ["-d", "w", "-c", "a,b,1", "-e", "u:c"],
        ["-d", "w", "-c", "a,b", "u:c"], ["-d", "w", "-c", "a,dom0,1", "u:c"], ["-d", "w", "-c", "a,b,0", "u:c"],
        ["-d", "w", "-c", "x" * 32 + ",b,1", "u:c"], ["-d", "w", "-w", "-1", "u:c"], ["-d", "w", "-p", "a", "-p", "b"],
        ["-d", "dom0", "-c", ",b,1", "u:c"], ["--wrong"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert "Usage:" in capsys.readouterr().err


def test_options_after_the_command_and_together() -> None:
    options = Options(["-Ed", "work", "-w0", "u:c", "-W"])
    assert not options.passes_code
    assert options.waits_for_end
    assert (options.qube, options.limit_s, options.command) == ("work", 0, b"u:c")
    with pytest.raises(UsageError):
        Options(["-d", "w", "-w", "x", "u:c"])


def test_help_is_exit_code_0() -> None:
    done = subprocess.run([PROGRAMS / "qrexec-client", "--help"], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: qrexec-client")
