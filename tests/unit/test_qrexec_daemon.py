"""``qrexec-daemon`` as a process, with small peers around it."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qrexec_peers import (
    DOMAIN,
    NAME,
    PROGRAMS,
    UUID,
    Peer,
    Server,
    World,
    connect,
    exit_code,
    ident,
    listen,
    params,
    trigger,
    until,
)

from insula.qrexec.daemon import Options, UsageError, main
from insula_proto import qrexec
from insula_proto.vchan import Place


@pytest.fixture
def world() -> Iterator[World]:
    with World.temporary() as made:
        yield made


def ask(agent: Peer, service: bytes, target: bytes = b"vault", name: bytes = b"SOCKET1") -> None:
    agent.send(qrexec.TRIGGER_SERVICE4, trigger(target, name, service))


def refused(agent: Peer, name: bytes = b"SOCKET1") -> bool:
    return agent.receive() == (qrexec.SERVICE_REFUSED, ident(name))


def serve_vchan(world: World, port: int) -> Peer:
    """Be the qube that serves a data channel for the host; return the host's connection, HELLO said."""
    with listen(Path(Place(str(world.folder), DOMAIN).served_for(0, port))) as listener:
        connection, _ = listener.accept()
    peer = Peer(connection)
    peer.hello()
    return peer


# start and end


def test_ready_soon_after_start_and_clean_end(world: World) -> None:
    with world.agent() as accept, world.daemon() as daemon:
        agent = accept()
        agent.hello()
        until((world.folder / f"qrexec.{DOMAIN}").exists)
        # Of the CPU, whatever else wants it; 0.3 s by the clock are promised (benchmarks/rpc_vchan.py).
        assert cpu_seconds(daemon.pid) < 1.0
        for name in (NAME, f"uuid:{UUID}"):
            assert (world.folder / f"qrexec.{name}").readlink() == Path(f"qrexec.{DOMAIN}")
            world.local(name).close()
        assert (world.folder / f"qrexec.{DOMAIN}").stat().st_mode & 0o777 == 0o777
        daemon.terminate()
        assert daemon.wait() == 0
    assert [path.name for path in world.folder.glob("qrexec.*")] == []


def test_agent_that_comes_after_the_daemon_is_found(world: World) -> None:
    with world.daemon():
        time.sleep(0.2)
        with world.agent() as accept:
            accept().hello()


def test_no_agent_in_time_is_exit_code_3(world: World) -> None:
    world.environment["QREXEC_STARTUP_TIMEOUT"] = "1"
    with world.daemon() as daemon:
        assert daemon.wait() == 3


@pytest.mark.parametrize("greeting", [struct.pack("<III", qrexec.HELLO, 4, 1), b"", b"\0" * 12])
def test_agent_without_a_proper_hello_is_exit_code_1(world: World, greeting: bytes) -> None:
    """MC-12."""
    with world.agent() as accept, world.daemon() as daemon:
        agent = accept()
        agent.connection.sendall(greeting)
        agent.close()
        assert daemon.wait() == 1


def background(world: World, *options: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            PROGRAMS / "qrexec-daemon", f"--uuid={UUID}", f"--socket-dir={world.folder}", *options, str(DOMAIN), NAME,
        ],
        env={**world.environment, **environment},
        stderr=subprocess.PIPE,
        check=False,
    )  # fmt: skip


def background_pid(world: World) -> int:
    """Of the daemon that serves the world, by its socket's credentials."""
    peer = connect(world.folder / f"qrexec.{DOMAIN}")
    pid: int = struct.unpack("iII", peer.connection.getsockopt(1, 17, 12))[0]
    peer.close()
    return pid


def test_background_returns_when_the_agent_is_there(world: World) -> None:
    def greet(accept: Callable[[], Peer]) -> None:
        accept().hello()

    with world.agent() as accept:
        thread = threading.Thread(target=greet, args=(accept,))
        thread.start()
        done = background(world)
        thread.join()
        assert done.returncode == 0
        assert b"connected" in done.stderr
        pid = background_pid(world)
        assert os.getsid(pid) == pid
        os.kill(pid, signal.SIGTERM)
        until(lambda: not (world.folder / f"qrexec.{DOMAIN}").exists())
    assert (world.folder / f"qrexec.{NAME}.log").exists()


def test_background_that_finds_no_agent_says_so(world: World) -> None:
    done = background(world, "-q", QREXEC_STARTUP_TIMEOUT="1")
    assert done.returncode == 3
    assert b"giving up" in done.stderr
    assert b"waiting" not in done.stderr


def test_background_with_nowait_returns_at_once_and_connects_later(world: World) -> None:
    assert background(world, QREXEC_STARTUP_NOWAIT="1").returncode == 0
    with world.agent() as accept:
        accept().hello()
        os.kill(background_pid(world), signal.SIGTERM)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["42"], ["42", "a"], ["--uuid=u", "0", "a"], ["--uuid=u", "-1", "a"], ["--uuid=u", "x", "a"],
        ["--uuid=u", "1", "a/b"], ["--uuid=u/v", "1", "a"], ["--uuid=u", "1", ""], ["--uuid=u", "1", "a", "b", "c"],
        ["--wrong", "1", "a"], ["--uuid=u", "4294967296", "a"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert "Usage:" in capsys.readouterr().err


def test_options_in_any_order_and_form() -> None:
    options = Options(["7", "-D", "work", "-u", "some", "--socket-dir", "/s", "-p", "/p", "me", "-q"])
    assert options.qube().default_user == "me"
    assert (options.socket_folder, options.policy_program) == ("/s", "/p")
    assert options.is_direct
    assert options.is_quiet
    with pytest.raises(UsageError):
        Options(["-u"])


# the agent


def test_agent_that_breaks_the_protocol_ends_its_daemon(world: World) -> None:
    """MC-11."""
    with world.agent() as accept, world.daemon() as daemon:
        agent = accept()
        agent.hello()
        agent.send(qrexec.TRIGGER_SERVICE4, bytes(96))
        assert agent.connection.recv(1) == b""
        assert daemon.wait() == 1
        assert not (world.folder / f"qrexec.{DOMAIN}").exists()


def test_agent_that_restarts_is_found_again(world: World) -> None:
    path = world.folder / f"qrexec.{DOMAIN}"
    with world.daemon():
        with world.agent() as accept:
            accept().hello()
            client = world.local()
        assert client.connection.recv(1) == b"", "clients of the old agent are closed"
        until(lambda: not path.exists())
        with world.agent() as accept:
            accept().hello()
            world.local().close()


def test_agent_that_does_not_read_holds_up_nobody_but_itself(world: World) -> None:
    """MC-14: it floods and never reads; the daemon's memory is bounded, and it can still be ended."""
    with world.agent() as accept, world.daemon() as daemon:
        agent = accept()
        agent.hello()
        message = qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 161) + bytes(161)
        agent.connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                agent.connection.sendall(message * 100)
        resident = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 60 << 20
        daemon.terminate()
        assert daemon.wait() == 0


# requests


def test_request_is_refused_by_policy(world: World) -> None:
    with world.agent() as accept, world.daemon():
        agent = accept()
        agent.hello()
        ask(agent, b"test.A+x")
        assert refused(agent)


@pytest.mark.parametrize("answer", [b"", b"result=maybe\n", b"result=allow\n", b"result=deny\nuser=x\n", b"\0", b"x"])
def test_daemon_of_policy_without_an_answer_has_the_program_asked(world: World, answer: bytes) -> None:
    world.script(world.policy_program, f'echo "$@" > {world.folder}/asked; echo result=deny; exit 1')
    with (
        Server(world.folder / "policy.sock", lambda _: answer) as policy,
        world.agent() as accept,
        world.daemon(),
    ):
        agent = accept()
        agent.hello()
        ask(agent, b"test.A+x")
        assert refused(agent)
    text = f"source={NAME}\nrequested_source=\nintended_target=vault\nservice_and_arg=test.A+x\n\n"
    assert policy.requests == [text.encode()]
    assert (world.folder / "asked").read_text() == f"-- {NAME} vault test.A+x\n"


def test_policy_program_that_fails_is_a_refusal_whatever_it_says(world: World) -> None:
    world.allow("vault")
    world.policy_program.write_text(world.policy_program.read_text() + "exit 3\n")
    with world.agent() as accept, world.daemon():
        agent = accept()
        agent.hello()
        ask(agent, b"test.A")
        assert refused(agent)


def test_call_of_another_qube_tells_both_daemons(world: World) -> None:
    """The lower domain's daemon allots even ports to calls with the other."""
    world.allow("vault", user="someone")
    with (
        world.agent() as accept,
        world.agent(99) as accept_target,
        world.daemon(),
        world.daemon("--uuid=other", domain=99, name="vault"),
    ):
        agent, target = accept(), accept_target()
        agent.hello()
        target.hello()
        until((world.folder / "qrexec.vault").exists)
        ask(agent, b"test.A")
        command = b"someone:QUBESRPC test.A+ work\0"
        assert target.receive() == (qrexec.EXEC_CMDLINE, params(DOMAIN, 513, command))
        assert agent.receive() == (qrexec.SERVICE_CONNECT, params(99, 513, ident(b"SOCKET1")))
        # The same answer again, by somebody else, is not passed on.
        client = world.local()
        client.send(qrexec.SERVICE_CONNECT, params(99, 513, ident(b"SOCKET1")))
        assert client.connection.recv(1) == b""


def test_call_of_a_halted_qube_starts_it_if_the_rule_says_so(world: World) -> None:
    world.allow("vault", autostart=True)
    failure = b"2\0QubesVMError\0\0it will not\0"
    with (
        Server(world.folder / "qubesd.sock", lambda _: failure) as qubesd,
        world.agent() as accept,
        world.daemon(),
    ):
        agent = accept()
        agent.hello()
        ask(agent, b"test.A")
        assert refused(agent)
        assert qubesd.requests == [b"admin.vm.Start+ dom0 name vault\0"]
        world.allow("vault", autostart=False)
        ask(agent, b"test.A", name=b"S2")
        assert refused(agent, b"S2")
        assert len(qubesd.requests) == 1


@pytest.mark.parametrize("by_uuid", [False, True])
def test_call_of_a_disposable_makes_it_and_ends_it(world: World, by_uuid: bool) -> None:
    name = "uuid:22222222-0000-0000-0000-000000000000" if by_uuid else "disp1"
    world.allow("@dispvm:dvm")
    if by_uuid:
        world.policy_program.write_text(world.policy_program.read_text() + "echo target_uuid=@dispvm:uuid:3\n")
    with world.agent(99) as accept_target, world.agent() as accept, world.daemon() as _:
        agent = accept()
        agent.hello()
        started: list[subprocess.Popen[bytes]] = []

        def answer(request: bytes) -> bytes:
            if request.startswith(b"admin.vm.CreateDisposable"):
                return b"0\0" + name.encode()
            if request.startswith(b"admin.vm.Start"):
                started.append(
                    subprocess.Popen(
                        [
                            PROGRAMS / "qrexec-daemon", "-D", f"--socket-dir={world.folder}",
                            "--uuid=22222222-0000-0000-0000-000000000000", "99", "disp1",
                        ],
                        env=world.environment,
                    )
                )  # fmt: skip
                accept_target().hello()
                until((world.folder / "qrexec.disp1").exists)
            return b"0\0"

        with Server(world.folder / "qubesd.sock", answer) as qubesd:
            ask(agent, b"test.A", target=b"@dispvm")
            assert agent.receive() == (qrexec.SERVICE_CONNECT, params(99, 513, ident(b"SOCKET1")))
            assert len(qubesd.requests) == 2, "it is not ended before the call is"
            started[0].terminate()
            started[0].wait()
            until(lambda: len(qubesd.requests) == 3)
        base, payload = (b"uuid:3", b"uuid") if by_uuid else (b"dvm", b"")
        assert qubesd.requests == [
            b"admin.vm.CreateDisposable+ dom0 name " + base + b"\0" + payload,
            b"admin.vm.Start+ dom0 name " + name.encode() + b"\0",
            b"admin.vm.Kill+ dom0 name " + name.encode() + b"\0",
        ]


def test_agent_lost_takes_the_question_back(world: World) -> None:
    """MC-24: policy, which may be asking the user, is hung up on."""
    listener = listen(world.folder / "policy.sock")
    with listener, world.daemon():
        with world.agent() as accept:
            agent = accept()
            agent.hello()
            ask(agent, b"test.A")
            question, _ = listener.accept()
            question.settimeout(120)
            assert question.recv(65536).startswith(b"source=")
        assert question.recv(1) == b""
        question.close()


# services of the host


def test_service_of_the_host_runs_with_what_is_told_of_the_call(world: World) -> None:
    world.allow("dom0", asked="@adminvm")
    world.script(
        world.services / "test.Host",
        'read line; echo "$1|$line|$QREXEC_REMOTE_DOMAIN|$QREXEC_SERVICE_FULL_NAME|$QREXEC_SERVICE_ARGUMENT"\n'
        'echo "$QREXEC_REQUESTED_TARGET_TYPE|$QREXEC_REQUESTED_TARGET_KEYWORD|$QREXEC_LEFT_OVER"; exit 7',
    )
    world.environment["QREXEC_LEFT_OVER"] = "x"
    with world.agent() as accept, world.daemon():
        agent = accept()
        agent.hello()
        ask(agent, b"test.Host+-x", target=b"@adminvm")
        assert agent.receive() == (qrexec.SERVICE_CONNECT, params(0, 513, ident(b"SOCKET1")))
        channel = serve_vchan(world, 513)
        channel.send(qrexec.STDIN, b"hello\n")
        channel.send(qrexec.STDIN)
        assert channel.rest() == [
            (qrexec.STDERR, b""),
            (qrexec.STDOUT, b"-x|hello|work|test.Host+-x|-x\nkeyword|adminvm|\n"),
            (qrexec.STDOUT, b""),
            exit_code(7),
        ]
        agent.send(qrexec.CONNECTION_TERMINATED, params(0, 513))


def test_service_of_the_host_that_is_not_there_is_127(world: World) -> None:
    world.allow("dom0")
    with world.agent() as accept, world.daemon():
        agent = accept()
        agent.hello()
        ask(agent, b"test.Gone", target=b"dom0")
        agent.receive()
        assert serve_vchan(world, 513).rest() == [(qrexec.STDERR, b""), (qrexec.STDOUT, b""), exit_code(127)]


def test_many_calls_of_the_host_at_once_all_succeed(world: World) -> None:
    world.allow("dom0")
    world.script(world.services / "test.Host", "echo $1")
    with world.agent() as accept, world.daemon():
        agent = accept()
        agent.hello()
        for number in range(24):
            ask(agent, b"test.Host+%d" % number, target=b"dom0", name=b"S%d" % number)
        seen = set()
        for _ in range(24):
            kind, body = agent.receive()
            assert kind == qrexec.SERVICE_CONNECT
            port = struct.unpack("<II", body[:8])[1]
            rest = serve_vchan(world, port).rest()
            assert rest[-1] == exit_code(0)
            seen.add((body[8:].rstrip(b"\0")[1:], rest[1][1].strip()))
        assert seen == {(b"%d" % number,) * 2 for number in range(24)}


def test_requests_without_a_descriptor_left_are_refused_and_later_ones_served(world: World) -> None:
    """MC-107: neither the daemon nor its CPU is lost to it."""
    world.allow("dom0")
    world.script(world.services / "test.Host", "echo x")
    with world.agent() as accept, world.daemon() as daemon:
        agent = accept()
        agent.hello()
        until((world.folder / f"qrexec.{DOMAIN}").exists)
        in_use = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (in_use + 1, 4096))
        ask(agent, b"test.Host", target=b"dom0")
        assert refused(agent)
        first = world.local()
        second = connect(world.folder / f"qrexec.{DOMAIN}")
        before = cpu_seconds(daemon.pid)
        time.sleep(0.3)
        assert cpu_seconds(daemon.pid) - before < 0.2
        first.close()
        assert second.receive()[0] == qrexec.HELLO
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        ask(agent, b"test.Host", target=b"dom0", name=b"S2")
        assert agent.receive()[0] == qrexec.SERVICE_CONNECT
        assert serve_vchan(world, 513).rest()[-1] == exit_code(0)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_folder_that_cannot_be_written_is_exit_code_1(world: World) -> None:
    with world.agent() as accept, world.daemon("--socket-dir=/proc") as daemon:
        accept().hello()
        assert daemon.wait() == 1
