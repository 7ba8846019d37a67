"""All of the published executables together, host and qubes, as processes over unix-socket vchan."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from qrexec_peers import PROGRAMS, WAIT_S, Server, World, system_info, until

USER = pwd.getpwuid(os.geteuid()).pw_name
UUID = "{0}{0}{0}{0}{0}{0}{0}{0}-0000-0000-0000-000000000000"
QUBES = {"work": (41, UUID.format(1)), "vault": (42, UUID.format(2))}
RULES = f"""\
test.Echo  * work  vault     allow user={USER}
test.Echo  * vault @adminvm  allow
test.Asked * work  vault     ask   user={USER}
"""
ECHO = 'cat; echo " $1 $QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET"; echo log >&2; exit 7'


@pytest.fixture
def system() -> Iterator[World]:
    """Two qubes, each with agent and daemon; a policy daemon; a qubesd that knows the qubes."""
    with World.temporary() as world, ExitStack() as stack:
        folder = world.folder
        (folder / "policy.d").mkdir()
        (folder / "policy.d" / "30-test.policy").write_text(RULES)
        world.script(world.services / "test.Echo", ECHO)
        world.script(world.services / "test.Asked", ECHO)
        stack.enter_context(Server(folder / "qubesd.internal.sock", lambda _: system_info()))
        for name, (domain, uuid) in QUBES.items():
            run = (f"--agent-socket={folder}/agent.{name}", "--no-fork-server")
            stack.enter_context(program(world, "qrexec-agent", *run, domain=domain))
            host = (f"--uuid={uuid}", f"--socket-dir={folder}", "--direct", str(domain), name, USER)
            stack.enter_context(program(world, "qrexec-daemon", *host))
        sockets = {"socket-path": "policy.sock", "eval-socket-path": "simple.sock", "gui-socket-path": "gui.sock"}
        options = [f"--{key}={folder}/{path}" for key, path in sockets.items()]
        stack.enter_context(program(world, "qrexec-policy-daemon", f"--policy-path={folder}/policy.d", *options))
        for path in (*(f"qrexec.{name}" for name in QUBES), "policy.sock"):
            until((folder / path).exists)
        yield world


@contextmanager
def program(world: World, name: str, *arguments: str, domain: int = 0) -> Iterator[None]:
    environment = {**world.environment, "VCHAN_DOMAIN": str(domain)}
    with subprocess.Popen(
        [PROGRAMS / name, *arguments], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def call_from(world: World, qube: str, target: str, service: str, data: bytes = b"in") -> tuple[int, bytes, bytes]:
    domain, _ = QUBES[qube]
    done = subprocess.run(
        [PROGRAMS / "qrexec-client-vm", f"--agent-socket={world.folder}/agent.{qube}", "--", target, service],
        env={**world.environment, "VCHAN_DOMAIN": str(domain)},
        input=data,
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    return done.returncode, done.stdout, done.stderr


def test_calls_between_qubes_and_of_the_host(system: World) -> None:
    assert call_from(system, "work", "vault", "test.Echo+x") == (7, b"in x work \n", b"log\n")
    assert call_from(system, "vault", "@adminvm", "test.Echo+y")[:2] == (7, b"in y vault \n")
    assert call_from(system, "vault", "dom0", "test.Echo")[:2] == (7, b"in  vault dom0\n")
    assert call_from(system, "vault", "work", "test.Echo")[0] == 126
    assert call_from(system, "work", "vault", "test.Gone")[0] == 126


def test_user_who_is_asked_decides(system: World) -> None:
    assert call_from(system, "work", "vault", "test.Asked")[0] == 126, "there is nobody to ask"
    with Server(system.folder / "policy-agent.sock", lambda _: b"allow:vault"):
        assert call_from(system, "work", "vault", "test.Asked")[:2] == (7, b"in  work \n")


def test_host_calls_a_qube(system: World) -> None:
    big = os.urandom(1 << 20)
    with system.client("-d", "vault", "DEFAULT:QUBESRPC test.Echo+z dom0") as client:
        output, _ = client.communicate(big, WAIT_S)
    assert (client.returncode, output) == (7, big + b" z dom0 \n")
    with system.client("-d", f"uuid:{UUID.format(2)}", f"{USER}:exit 5") as client:
        client.communicate(timeout=WAIT_S)
    assert client.returncode == 5


def test_many_calls_at_once_all_succeed(system: World) -> None:
    """More than one after the other, so that ports are given back."""
    for _ in range(2):
        clients = [
            subprocess.Popen(
                [
                    PROGRAMS / "qrexec-client",
                    f"--socket-dir={system.folder}",
                    "-d",
                    "vault",
                    "DEFAULT:QUBESRPC test.Echo dom0",
                ],
                env=system.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for _ in range(12)
        ]
        assert [client.wait(WAIT_S) for client in clients] == [7] * 12
