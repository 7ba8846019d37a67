"""``qvm-connect-tcp``: a call for each connection, with a stand-in for the client that echoes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula_agent.connect_tcp import parse

AGENT = Path(__file__).parents[2] / "src" / "insula_agent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8022:web:22", (8022, "web", 22)),
        (":web:22", (22, "web", 22)),
        ("8022::22", (8022, "", 22)),
        ("::1", (1, "", 1)),
    ],
)
def test_parse(text: str, expected: tuple[int, str, int]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "22", "a:b", "::", "::0", "::65536", "0:web:22", "x:web:22", "1:2:3:4", "::²"])
def test_parse_not_understood(text: str) -> None:
    assert parse(text) is None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tool = tmp_path / "qrexec-client-vm"
    tool.write_text('#!/bin/sh\necho "$@"\nexec cat\n')
    tool.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "INSULA_LIBRARY": str(AGENT.parent)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def port(environment: dict[str, str]) -> Iterator[int]:
    number = free_port()
    command = [AGENT / "bin" / "qvm-connect-tcp", "--foreground", f"{number}:web:443"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"port 443 of web is port {number} of 127.0.0.1\n".encode()
        yield number
        process.terminate()


def test_each_connection_is_a_call(port: int) -> None:
    connections = [socket.create_connection(("127.0.0.1", port), timeout=120) for _ in range(5)]
    for number, connection in enumerate(connections):
        connection.sendall(b"%d\n" % number)
        connection.shutdown(socket.SHUT_WR)
    for number, connection in enumerate(connections):
        with connection.makefile("rb") as file:
            assert file.read() == b"-- web qubes.ConnectTCP+443\n%d\n" % number
        connection.close()


def test_only_programs_here_reach_it(port: int) -> None:
    with open("/proc/net/tcp", encoding="ascii") as file:  # noqa: PTH123 - a file of the kernel
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert [place for place in listening if int(place.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]


def test_port_in_use_is_said(port: int, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [AGENT / "bin" / "qvm-connect-tcp", f"{port}::22"],
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert b"in use" in done.stderr


def test_in_the_background_it_holds_nothing_of_its_starter(environment: dict[str, str]) -> None:
    """A call that starts it ends; communicate() would not, were its output still held."""
    number = free_port()
    command = [AGENT / "bin" / "qvm-connect-tcp", f"{number}:web:443"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"port 443 of web")
    server = owner(number)
    try:
        with socket.create_connection(("127.0.0.1", number), timeout=120) as connection:
            assert connection.recv(100) == b"-- web qubes.ConnectTCP+443\n"
    finally:
        os.kill(server, signal.SIGTERM)


def owner(port: int) -> int:
    """Who listens on a port of this machine."""
    with open("/proc/net/tcp", encoding="ascii") as file:  # noqa: PTH123 - a file of the kernel
        inodes = [line.split()[9] for line in file if line.split()[1] == f"0100007F:{port:04X}"]
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) == f"socket:[{inodes[0]}]" for link in folder.iterdir()):
                return int(folder.parent.name)
    raise AssertionError("nobody listens")
