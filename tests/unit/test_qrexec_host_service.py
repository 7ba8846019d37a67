from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from insula.qrexec import host_service
from insula.qrexec.host_service import Started, StartFailed, start
from insula_proto.services import SocketService, TcpService


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def output(started: Started) -> bytes:
    """All it says, and its end."""
    started.output.end()
    os.set_blocking(started.inlet.fd, True)
    data = b""
    while part := os.read(started.inlet.fd, 4096):
        data += part
    started.inlet.close()
    if started.pid:
        os.waitpid(started.pid, 0)
    return data


def test_argument_and_environment_reach_a_program_unchanged(services: Path) -> None:
    """MC-17: whatever it looks like."""
    script(services / "a.B", 'printf "%s|%s" "$1" "$#"; env | grep ^QREXEC | sort | tr "\\n" ,')
    text = output(start(b"QUBESRPC a.B+--help work keyword adminvm", "work")).decode()
    assert text.startswith("--help|1QREXEC_AGENT_PID=")
    for part in (
        "QREXEC_REMOTE_DOMAIN=work", "QREXEC_SERVICE_FULL_NAME=a.B+--help", "QREXEC_SERVICE_ARGUMENT=--help",
        "QREXEC_REQUESTED_TARGET_TYPE=keyword", "QREXEC_REQUESTED_TARGET_KEYWORD=adminvm",
    ):  # fmt: skip
        assert f"{part}," in text


def test_variables_of_another_call_are_not_passed_on(services: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QREXEC_SERVICE_ARGUMENT", "old")
    monkeypatch.setenv("QREXEC_ANYTHING", "old")
    script(services / "a.B", "env")
    text = output(start(b"QUBESRPC a.B work", "work")).decode()
    assert "old" not in text
    assert f"QREXEC_SERVICE_PATH={services}\n" in text


def test_other_text_is_for_the_shell() -> None:
    assert output(start(b'echo "$QREXEC_REMOTE_DOMAIN" x', "work")) == b"work x\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"QUBESRPC a.Gone work", 127),
        (b"QUBESRPC a.Text work", 125),
        (b"QUBESRPC a.B", 125),
        (b"QUBESRPC ../a.B work", 125),
        (b"QUBESRPC a.B+set work", 125),
        (b"QUBESRPC a.Dead work", 125),
    ],
)
def test_service_that_cannot_be_started(services: Path, command: bytes, code: int) -> None:
    """MC-16."""
    script(services / "a.B", "exit 0")
    (services / "a.Text").write_text("x")
    (services / "config" / "a.B+set").write_text("wrong = \n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(services / "a.Dead"))
    with pytest.raises(StartFailed) as failed:
        start(command, "work")
    assert failed.value.code == code


def test_wait_for_session_comes_first_unless_told_otherwise(services: Path) -> None:
    log = services / "log"
    script(services / "qubes.WaitForSession", f'echo "waited for $QREXEC_REMOTE_DOMAIN" >> {log}; exit 3')
    script(services / "a.B", f"cat {log} 2> /dev/null")
    (services / "config" / "a.B").write_text("wait-for-session = true\n")
    assert output(start(b"nogui:QUBESRPC a.B work", "work")) == b""
    assert output(start(b"QUBESRPC a.B work", "work")) == b"waited for work\n"
    (services / "qubes.WaitForSession").unlink()
    assert output(start(b"QUBESRPC a.B work", "work")) == b"waited for work\n"


def test_socket_service_is_told_of_the_call_unless_it_does_not_want_to(
    services: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = services / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(deep))
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(deep)
        listener.bind("a.Socket")
        listener.listen(4)
        assert len(str(deep / "a.Socket")) > 107
        started = start(b"QUBESRPC a.Socket+x work name dom0", "work")
        assert started.before == b"a.Socket+x work name dom0\0"
        assert started.pid == 0
        (services / "config" / "a.Socket").write_text("skip-service-descriptor = true\nexit-on-client-eof = true\n")
        again = start(b"QUBESRPC a.Socket+x work name dom0", "work")
        assert again.before == b""
        assert again.settings.exit_on_client_eof
        for one in (started, again):
            one.output.close()
            one.inlet.close()


def test_connect_tcp_takes_addresses_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = host_service._connect(TcpService("127.0.0.1", server.getsockname()[1]))
        connection, _ = server.accept()
        with connection:
            started.output.write([b"hello"])
            assert connection.recv(16) == b"hello"
        started.inlet.close()
        started.output.close()
    for host in ("localhost", "127.0.0.1.example", "-x"):
        with pytest.raises(socket.gaierror):
            host_service._connect(TcpService(host, 1))


def test_connect_unix_to_no_socket_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        host_service._connect(SocketService(str(tmp_path / "gone")))
