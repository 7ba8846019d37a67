"""``qrexec-policy-daemon`` and ``qrexec-policy-exec`` as processes: a policy on disk, a qubesd, an agent that asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qrexec_peers import (
    PROGRAMS,
    WAIT_S,
    Server,
    World,
    connect,
    exit_code,
    listen,
    params,
    qube,
    system_info,
    until,
)

from insula_proto import qrexec

RULES = """\
test.Allow * work vault allow user=someone
test.Ask   * work vault ask
test.Ask   * work dvm   ask
test.Host  * work @adminvm allow
test.Disp  * work @dispvm allow
test.Notify * work vault deny notify=yes
test.Off   * work vault allow autostart=no
"""


@pytest.fixture
def world() -> Iterator[World]:
    with World.temporary() as made:
        (made.folder / "policy.d").mkdir()
        (made.folder / "policy.d" / "30-test.policy").write_text(RULES)
        yield made


@pytest.fixture
def qubesd(world: World) -> Iterator[Server]:
    with Server(world.folder / "qubesd.internal.sock", lambda _: system_info()) as server:
        yield server


@contextmanager
def daemon(world: World) -> Iterator[subprocess.Popen[bytes]]:
    sockets = {"socket-path": "policy.sock", "eval-socket-path": "simple.sock", "gui-socket-path": "gui.sock"}
    options = [f"--{key}={world.folder}/{name}" for key, name in sockets.items()]
    program = [PROGRAMS / "qrexec-policy-daemon", f"--policy-path={world.folder}/policy.d", *options]
    with subprocess.Popen(program, env=world.environment, stderr=subprocess.DEVNULL) as process:
        try:
            until((world.folder / "policy.sock").exists)
            yield process
        finally:
            process.terminate()
            assert process.wait(WAIT_S) == 0
    assert not list(world.folder.glob("policy.sock")), "its sockets are gone with it"


def ask(world: World, service: str, target: str = "vault", source: str = "work", more: str = "") -> dict[str, str]:
    text = f"source={source}\nintended_target={target}\nservice_and_arg={service}\n{more}\n"
    return lines(exchange(world.folder / "policy.sock", text.encode(), half_close=False))


def lines(answer: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in answer.decode().splitlines())


def exchange(path: Path, data: bytes, *, half_close: bool = True) -> bytes:
    peer = connect(path)
    peer.connection.sendall(data)
    if half_close:
        peer.connection.shutdown(socket.SHUT_WR)
    answer = b""
    while part := peer.connection.recv(4096):
        answer += part
    return answer


def program(world: World, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [PROGRAMS / "qrexec-policy-exec", f"--path={world.folder}/policy.d", *arguments]
    return subprocess.run(command, env=world.environment, stdout=subprocess.PIPE, check=False, timeout=WAIT_S)


ALLOWED = {
    "result": "allow",
    "user": "someone",
    "target": "vault",
    "target_uuid": "uuid:22222222-0000-0000-0000-000000000000",
    "autostart": "True",
    "requested_target": "vault",
}


@pytest.mark.usefixtures("qubesd")
def test_daemon_and_program_answer_alike(world: World) -> None:
    cases = {
        ("test.Allow+x", "vault"): ALLOWED,
        ("test.Allow", "dvm"): {"result": "deny"},
        ("test.Gone", "vault"): {"result": "deny"},
        ("test.Host", "dom0"): {
            "result": "allow", "user": "DEFAULT", "target": "dom0", "autostart": "True", "requested_target": "dom0",
        },
        ("test.Disp", "@dispvm"): {
            "result": "allow", "user": "DEFAULT", "target": "@dispvm:dvm", "autostart": "True",
            "target_uuid": "@dispvm:uuid:33333333-0000-0000-0000-000000000000", "requested_target": "@dispvm",
        },
        ("test.Ask", "vault"): {"result": "deny"},
    }  # fmt: skip
    with daemon(world):
        for (service, target), expected in cases.items():
            assert ask(world, service, target) == expected
            done = program(world, "--", "work", target, service)
            assert lines(done.stdout) == expected
            assert done.returncode == (0 if expected["result"] == "allow" else 1)


@pytest.mark.usefixtures("qubesd")
def test_just_evaluate_asks_nobody(world: World) -> None:
    with daemon(world):
        evaluate = "just_evaluate=yes\n"
        assert ask(world, "test.Allow", more=evaluate) == {"result": "allow"}
        assert ask(world, "test.Ask", more=evaluate) == {"result": "deny"}
        assert ask(world, "test.Ask", more=evaluate + "assume_yes_for_ask=yes\n") == {"result": "allow"}
        assert ask(world, "test.Ask", "dom0", more=evaluate + "assume_yes_for_ask=yes\n") == {"result": "deny"}
    for arguments, code in (((), 1), (("--assume-yes-for-ask",), 0)):
        done = program(world, "--just-evaluate", *arguments, "work", "vault", "test.Ask")
        assert (done.returncode, done.stdout) == (code, b"")


@pytest.mark.usefixtures("qubesd")
@pytest.mark.parametrize("data", [b"", b"domain_id=1\n\n", b"source=a\nsource=a\n\n", b"\xff\n\n", b"source=work\n\n"])
def test_bad_question_is_closed_without_an_answer(world: World, data: bytes) -> None:
    """MC-12."""
    with daemon(world):
        assert exchange(world.folder / "policy.sock", data) == b""
        assert ask(world, "test.Allow") == ALLOWED


def test_without_word_of_the_system_everything_is_denied(world: World) -> None:
    with daemon(world):
        assert ask(world, "test.Allow") == {"result": "deny"}
        for bad in (b"", b"0\0", b"0\0{}", b"2\0Failed\0\0no\0", b"0\0" + b"[" * 100_000):
            with Server(world.folder / "qubesd.internal.sock", lambda _, bad=bad: bad):
                assert ask(world, "test.Allow") == {"result": "deny"}


@pytest.mark.usefixtures("qubesd")
def test_changed_policy_judges_the_next_question(world: World) -> None:
    """MC-30: never an old answer."""
    file = world.folder / "policy.d" / "30-test.policy"
    with daemon(world):
        for number in range(40):
            action = ("allow", "deny")[number % 2]
            new = file.with_name("new")
            new.write_text(f"test.Allow * work vault {action}\n")
            new.replace(file)
            assert ask(world, "test.Allow")["result"] == action
        file.write_text("not a rule\n")
        assert ask(world, "test.Allow") == {"result": "deny"}, "MC-25"
        file.unlink()
        assert ask(world, "test.Allow") == {"result": "deny"}, "MC-27"


# qubes that ask


@pytest.mark.usefixtures("qubesd")
def test_eval_simple_answers_a_qube(world: World) -> None:
    with daemon(world):
        path = world.folder / "simple.sock"
        head = b"policy.EvalSimple+test.Ask+x anybody keyword adminvm\0"
        assert exchange(path, head + b"work\0vault") == b"result=allow\n"
        assert exchange(path, head + b"vault\0work") == b"result=deny\n"
        assert exchange(path, head + b"work\0va ult") == b""
        assert exchange(path, head.replace(b"Simple", b"GUI") + b"work\0vault") == b""
        assert path.stat().st_mode & 0o777 == 0o660


def test_eval_gui_answers_only_about_qubes_on_the_callers_desktop(world: World) -> None:
    tagged = {"work": {"tags": ["guivm-gui"]}, "vault": {"tags": ["guivm-gui"]}}
    info = system_info(**tagged)  # type: ignore[arg-type]
    with Server(world.folder / "qubesd.internal.sock", lambda _: info), daemon(world):
        path = world.folder / "gui.sock"
        assert exchange(path, b"policy.EvalGUI+test.Ask gui keyword adminvm\0work\0vault") == b"result=allow\n"
        assert exchange(path, b"policy.EvalGUI+test.Ask other keyword adminvm\0work\0vault") == b""
        assert exchange(path, b"policy.EvalGUI+test.Ask gui keyword adminvm\0work\0dvm") == b""
        assert exchange(path, b"policy.EvalGUI+test.Ask gui keyword adminvm\0work\0gone") == b""


# the user


@pytest.mark.usefixtures("qubesd")
@pytest.mark.parametrize(
    ("said", "result"),
    [(b"allow:vault", "allow"), (b"deny", "deny"), (b"allow:dom0", "deny"), (b"", "deny"), (b"allow:", "deny")],
)
def test_user_is_asked_and_only_what_was_offered_counts(world: World, said: bytes, result: str) -> None:
    with Server(world.folder / "policy-agent.sock", lambda _: said) as agent, daemon(world):
        answer = ask(world, "test.Ask+x")
    assert answer["result"] == result
    header, _, body = agent.requests[0].partition(b"\0")
    assert header == b"policy.Ask dom0 name dom0"
    question = json.loads(body)
    assert question["targets"] == ["dvm", "vault"]
    assert (question["source"], question["service"], question["argument"]) == ("work", "test.Ask", "+x")


@pytest.mark.usefixtures("qubesd")
def test_user_is_told_of_a_denial(world: World) -> None:
    with Server(world.folder / "policy-agent.sock", lambda _: b"") as agent, daemon(world):
        assert ask(world, "test.Notify") == {"result": "deny"}
        until(lambda: bool(agent.requests))
    assert agent.requests[0].startswith(b"policy.Notify dom0 name dom0\0")
    assert json.loads(agent.requests[0].partition(b"\0")[2])["resolution"] == "deny"


@pytest.mark.usefixtures("qubesd")
def test_caller_that_leaves_takes_the_question_back(world: World) -> None:
    """MC-24. That it says nothing more is not yet leaving."""
    with listen(world.folder / "policy-agent.sock") as agent, daemon(world):
        peer = connect(world.folder / "policy.sock")
        peer.connection.sendall(b"source=work\nintended_target=vault\nservice_and_arg=test.Ask\n\n")
        peer.connection.shutdown(socket.SHUT_WR)
        prompt, _ = agent.accept()
        with prompt:
            prompt.settimeout(WAIT_S)
            while prompt.recv(65536):
                pass
            prompt.setblocking(False)
            time.sleep(0.2)
            prompt.send(b"")
            peer.close()
            until(lambda: is_hung_up(prompt))


def is_hung_up(connection: socket.socket) -> bool:
    try:
        connection.send(b"x")
    except BrokenPipeError:
        return True
    except BlockingIOError:
        return False
    return False


@pytest.mark.parametrize(("said", "result"), [(b"allow:vault", "allow"), (b"allow:work", "deny"), (b"x" * 500, "deny")])
def test_user_of_another_desktop_is_asked_there(world: World, said: bytes, result: str) -> None:
    """By the service policy.Ask of the qube that has the caller's desktop."""
    info = system_info(work={"guivm": "gui"})
    with (
        Server(world.folder / "qubesd.internal.sock", lambda _: info),
        daemon(world),
        qube(world, "gui") as desktop,
    ):
        peer = connect(world.folder / "policy.sock")
        peer.connection.sendall(b"source=work\nintended_target=vault\nservice_and_arg=test.Ask\n\n")
        assert desktop.answer() == (qrexec.EXEC_CMDLINE, params(0, 0, b"DEFAULT:QUBESRPC policy.Ask dom0\0"))
        channel = desktop.channel()
        body = b""
        while (message := channel.receive())[1]:
            body += message[1]
        assert json.loads(body)["targets"] == ["dvm", "vault"]
        channel.send(qrexec.STDOUT, said)
        with contextlib.suppress(BrokenPipeError):  # who says too much is not listened to any longer
            channel.send(*exit_code(0))
        assert lines(peer.connection.recv(4096))["result"] == result


def test_user_of_another_desktop_is_told_there(world: World) -> None:
    info = system_info(work={"guivm": "gui"})
    with (
        Server(world.folder / "qubesd.internal.sock", lambda _: info),
        daemon(world),
        qube(world, "gui") as desktop,
    ):
        assert ask(world, "test.Notify") == {"result": "deny"}, "whether or not somebody is told"
        assert desktop.answer() == (qrexec.EXEC_CMDLINE, params(0, 0, b"DEFAULT:QUBESRPC policy.Notify dom0\0"))
        channel = desktop.channel()
        notice = json.loads(channel.receive()[1])
        assert (notice["resolution"], notice["source"], notice["target"]) == ("deny", "work", "vault")
        channel.send(*exit_code(0))


@pytest.mark.parametrize("arguments", [["work", "vault"], ["--wrong"], ["a", "b", "c", "d"], ["--path=a"] * 3])
def test_program_wrongly_used_is_exit_code_2(world: World, arguments: list[str]) -> None:
    command = [PROGRAMS / "qrexec-policy-exec", *arguments]
    done = subprocess.run(command, env=world.environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"Usage:" in done.stderr


@pytest.mark.usefixtures("qubesd")
def test_daemon_ends_cleanly_while_somebody_is_asked(world: World) -> None:
    with listen(world.folder / "policy-agent.sock") as agent, daemon(world) as process:
        peer = connect(world.folder / "policy.sock")
        peer.connection.sendall(b"source=work\nintended_target=vault\nservice_and_arg=test.Ask\n\n")
        prompt, _ = agent.accept()
        with prompt:
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
            assert peer.connection.recv(16) == b""


@pytest.mark.usefixtures("qubesd")
def test_program_with_five_words_makes_the_call(world: World) -> None:
    target = "uuid:22222222-0000-0000-0000-000000000000"
    command = [
        PROGRAMS / "qrexec-policy-exec", f"--path={world.folder}/policy.d",
        "42", "work", "vault", "test.Allow+x", "SOCKET7",
    ]  # fmt: skip
    with (
        qube(world, "work") as source,
        qube(world, target, 43) as vault,
        subprocess.Popen(command, env=world.environment) as process,
    ):
        assert vault.answer() == (qrexec.EXEC_CMDLINE, params(42, 0, b"someone:QUBESRPC test.Allow+x work\0"))
        assert source.hear() == (qrexec.SERVICE_CONNECT, params(43, 513, b"SOCKET7".ljust(32, b"\0")))
        assert process.wait(WAIT_S) == 0


def limit_descriptors(pid: int, number: int) -> None:
    # As one of its group: the daemon joins "qubes" where there is one, and without CAP_SYS_RESOURCE that matters.
    words = ["prlimit", f"--pid={pid}", f"--nofile={number}:4096"]
    [group] = [
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Gid:")
    ]
    subprocess.run(words, check=True, group=int(group) if os.geteuid() == 0 else None)


@pytest.mark.usefixtures("qubesd")
def test_daemon_without_a_descriptor_left_goes_on_when_there_is_one(world: World) -> None:
    """MC-107."""
    with daemon(world) as process:
        assert ask(world, "test.Allow") == ALLOWED
        in_use = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        limit_descriptors(process.pid, in_use)
        peer = connect(world.folder / "policy.sock")
        peer.connection.sendall(b"source=work\nintended_target=vault\nservice_and_arg=test.Allow\n\n")
        time.sleep(0.1)
        limit_descriptors(process.pid, 1024)
        assert lines(peer.connection.recv(4096)) == ALLOWED
