from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from insula_agent import main

SRC = Path(__file__).parents[2] / "src"
COSTLY = {"asyncio", "dataclasses", "typing", "subprocess", "logging", "tempfile", "enum", "inspect", "pathlib", "re"}
"""Each of these takes longer to import than all of the agent."""


def test_options_all_given_are_understood() -> None:
    options = main.parse_options(["--device", "fd:3", "--keys", "/k", "--own-user", "--no-identity"])
    assert options is not None
    assert (options.device, options.keys_folder, options.own_user, options.with_identity) == ("fd:3", "/k", True, False)


@pytest.mark.parametrize("arguments", [["--device"], ["x"], ["--help"], ["--keys"]])
def test_options_not_understood_are_refused(arguments: list[str]) -> None:
    assert main.parse_options(arguments) is None
    assert main.main(arguments) == 2


def test_missing_device_ends_with_1() -> None:
    assert main.main(["--device", "/nonexistent", "--no-identity"]) == 1


def test_import_brings_none_of_the_costly_modules() -> None:
    code = "import sys, insula_agent.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], cwd=SRC, capture_output=True, check=True, timeout=30
    )
    assert not COSTLY & set(done.stdout.decode().split())


@pytest.mark.parametrize("package", ["insula_agent", "insula_proto"])
def test_sources_parse_as_python_3_9(package: str) -> None:
    for path in (SRC / package).rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize("is_abstract", [False, True])
def test_notify_systemd_ready_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool
) -> None:
    name = f"@insula-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        main.notify_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_notify_systemd_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    main.notify_systemd("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    main.notify_systemd("READY=1")


def test_identity_is_applied_once_before_commands_and_its_failure_ends_the_agent() -> None:
    applied: list[dict[str, bytes]] = []
    started: list[str] = []

    def apply(keys: dict[str, bytes]) -> None:
        applied.append(keys)
        if keys.get("/name") == b"bad":
            raise OSError("no private volume")

    agent = main.Agent(main.Options(), apply)
    agent.commands.start = lambda: started.append("commands")  # type: ignore[method-assign]
    with pytest.raises(OSError, match="private"):
        agent._keys_read({"/name": b"bad"})
    assert not started
    agent._keys_read({"/name": b"work"})
    agent._keys_read({"/name": b"work"})
    assert [keys["/name"] for keys in applied] == [b"bad", b"work"]
    assert started == ["commands", "commands"]
