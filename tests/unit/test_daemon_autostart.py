"""Starting the daemon on first use, with a process that behaves like one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insula.daemon import autostart
from insula.daemon.autostart import DaemonUnavailable, ensure_daemon, is_running
from insula.daemon.paths import Paths

PYTHON = sys.executable
FAKE_DAEMON = """
import fcntl, json, os, socket, sys, time
from pathlib import Path
runtime = Path(os.environ["INSULA_RUNTIME_DIR"])
report = {"pid": os.getpid(), "argv": sys.argv[1:], "sid": os.getsid(0), "cwd": os.getcwd(),
          "data": os.environ["INSULA_DATA_DIR"]}
(runtime / f"started.{os.getpid()}").write_text(json.dumps(report))
print("fake insulad here", flush=True)
behaviour = os.environ.get("FAKE_DAEMON", "serve")
if behaviour == "crash":
    print("the store is broken", file=sys.stderr)
    sys.exit(1)
if behaviour == "hang":
    time.sleep(600)
lock = os.open(runtime / "insulad.lock", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(0)
listening = socket.socket(socket.AF_UNIX)
listening.bind(str(runtime / "insulad.sock"))
listening.listen()
time.sleep(600)
"""

FAKE_SYSTEMD_RUN = """
import json, os, subprocess, sys
from pathlib import Path
if os.environ.get("FAKE_SYSTEMD") == "refuse":
    sys.exit("Failed to connect to bus")
arguments = sys.argv[1:]
split = arguments.index("--")
settings = [a.removeprefix("--setenv=").split("=", 1) for a in arguments[:split] if a.startswith("--setenv=")]
environment = {**os.environ, **dict(settings)}
Path(environment["INSULA_RUNTIME_DIR"], "unit").write_text(json.dumps(arguments[:split]))
subprocess.Popen(arguments[split + 1:], env=environment, start_new_session=True)
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """Folders whose daemon is the fake one; whatever was started is ended afterwards."""
    made = Paths(tmp_path / "data", tmp_path / "run")
    interpreter = tmp_path / "python"
    (tmp_path / "daemon.py").write_text(textwrap.dedent(FAKE_DAEMON))
    write_tool(interpreter, f'exec {PYTHON} {tmp_path}/daemon.py "$@"')
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    yield made
    for report in started(made):
        with contextlib.suppress(ProcessLookupError):
            os.kill(report["pid"], signal.SIGKILL)
    for process in autostart._spawned:
        process.kill()
        process.wait()
    autostart._spawned.clear()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's systemd as far as can be seen, with a tool of ours; returns where the tool notes its arguments."""
    (tmp_path / "xdg/systemd").mkdir(parents=True)
    (tmp_path / "xdg/systemd/private").touch()
    (tmp_path / "systemd_run.py").write_text(textwrap.dedent(FAKE_SYSTEMD_RUN))
    (tmp_path / "bin").mkdir()
    write_tool(tmp_path / "bin/systemd-run", f'exec {PYTHON} {tmp_path}/systemd_run.py "$@"')
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "run" / "unit"


def write_tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def started(paths: Paths) -> list[dict[str, Any]]:
    """What the fake daemons said about themselves."""
    return [json.loads(path.read_text()) for path in paths.runtime.glob("started.*")]


async def test_absent_daemon_is_started_detached_with_its_folders_and_log(paths: Paths) -> None:
    assert not is_running(paths)
    assert await ensure_daemon(paths) is True
    assert is_running(paths)
    [report] = started(paths)
    assert report["argv"] == ["-m", "insula.daemon.insulad"]
    assert report["data"] == str(paths.data)
    assert report["sid"] != os.getsid(0)
    assert report["cwd"] == "/"
    assert "fake insulad here" in (paths.logs / "insulad.log").read_text()


async def test_running_daemon_is_left_alone(paths: Paths) -> None:
    assert await ensure_daemon(paths) is True
    assert await ensure_daemon(paths) is False
    assert len(started(paths)) == 1


async def test_two_commands_at_once_get_one_daemon(paths: Paths) -> None:
    """Both are served; who looks after the other's daemon is up rightly says that it did not start it."""
    before = len(autostart._spawned)
    has_started = await asyncio.gather(ensure_daemon(paths), ensure_daemon(paths))
    assert any(has_started)
    assert is_running(paths)
    # A second one that was started finds the first and ends.
    processes = autostart._spawned[before:]
    assert 1 <= sum(has_started) <= len(processes) <= 2
    async with asyncio.timeout(120):
        while sum(process.poll() is None for process in processes) != 1:
            await asyncio.sleep(0.01)
    assert is_running(paths)


async def test_daemon_that_fails_is_told_with_the_end_of_its_log(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "crash")
    with pytest.raises(DaemonUnavailable) as raised:
        await ensure_daemon(paths)
    assert str(paths.logs / "insulad.log") in str(raised.value)
    assert str(raised.value).endswith("the store is broken")


async def test_daemon_that_never_listens_is_given_up(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "hang")
    monkeypatch.setattr(autostart, "START_TIMEOUT_S", 0.2)
    with pytest.raises(DaemonUnavailable, match="did not start"):
        await ensure_daemon(paths)


async def test_users_systemd_starts_it_as_a_unit(paths: Paths, systemd: Path) -> None:
    assert await ensure_daemon(paths) is True
    arguments = json.loads(systemd.read_text())
    assert arguments[0] == "--user"
    assert "--property=KillMode=process" in arguments
    assert f"--property=StandardError=append:{paths.logs / 'insulad.log'}" in arguments
    assert started(paths)[0]["data"] == str(paths.data)


async def test_systemd_that_refuses_is_done_without(
    paths: Paths, systemd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SYSTEMD", "refuse")
    assert await ensure_daemon(paths) is True
    assert not systemd.exists()
    assert is_running(paths)


def test_socket_file_without_listener_is_not_running(paths: Paths) -> None:
    paths.make()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(paths.admin_socket))
    assert not is_running(paths)


def test_listener_with_a_full_queue_is_running(paths: Paths) -> None:
    paths.make()
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as callers:
        busy.bind(str(paths.admin_socket))
        busy.listen(0)
        for _ in range(3):
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(str(paths.admin_socket))
        assert is_running(paths)
