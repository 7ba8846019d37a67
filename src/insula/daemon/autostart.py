"""Starting the daemon when a command needs it and it is not there.

Where the user has a systemd instance, it starts as a transient user unit, so that it has a log and ends with the
session; elsewhere as a detached process with its log in the data folder. Two commands at once start one daemon: the
second finds the lock taken and waits for the socket.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from insula.daemon.paths import Paths

START_TIMEOUT_S = 60.0
"""Opening the store, the pools and finding running qubes again: a second is usual, twenty and more take a machine whose
every core is wanted. A daemon that fails is noticed at once."""
POLL_S = 0.05

_spawned: list[subprocess.Popen[bytes]] = []
"""Kept because nobody here waits for their end: a daemon outlives the command that started it."""


class DaemonUnavailable(Exception):
    """The daemon did not come up; the message says where its log is."""


def is_running(paths: Paths) -> bool:
    """Whether something answers on the admin socket. Never waits."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(paths.admin_socket))
        except BlockingIOError:  # it listens, and has more callers than it took in yet
            return True
        except OSError:
            return False
        return True


async def ensure_daemon(paths: Paths) -> bool:
    """Make sure the daemon answers; True if it had to be started. :raise DaemonUnavailable:"""
    if is_running(paths):
        return False
    paths.make()
    log_file = paths.logs / "insulad.log"
    if _has_user_systemd() and await _comes_up(paths, _spawn_unit(paths, log_file)):
        return True
    # Without systemd, or where it refused.
    if await _comes_up(paths, _spawn(paths, log_file)):
        return True
    raise DaemonUnavailable(f"insulad did not start; its log: {log_file}\n{_tail(log_file)}")


async def _comes_up(paths: Paths, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the socket; False at once if the process failed, or after the time limit.

    A process that ends well is no failure: it handed the work to systemd, or found another daemon at it.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_running(paths):
        if process.poll() not in (None, 0) or time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _command() -> list[str]:
    return [sys.executable, "-m", "insula.daemon.insulad"]


def _spawn(paths: Paths, log_file: Path) -> subprocess.Popen[bytes]:
    """A process of its own session that needs nothing of ours."""
    return _popen(_command(), paths, log_file)


def _spawn_unit(paths: Paths, log_file: Path) -> subprocess.Popen[bytes]:
    """A transient unit of the user's systemd; the process is only the request for it."""
    command = [
        "systemd-run",
        "--user",
        "--quiet",
        "--collect",
        f"--setenv=INSULA_DATA_DIR={paths.data}",
        f"--setenv=INSULA_RUNTIME_DIR={paths.runtime}",
        f"--property=StandardError=append:{log_file}",
        # The machines outlive the daemon.
        "--property=KillMode=process",
        "--",
        *_command(),
    ]
    return _popen(command, paths, log_file)


def _popen(command: list[str], paths: Paths, log_file: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(paths.data),
        "INSULA_RUNTIME_DIR": str(paths.runtime),
    }
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
    _spawned.append(process)
    return process


def _has_user_systemd() -> bool:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return bool(runtime and shutil.which("systemd-run") and (Path(runtime) / "systemd" / "private").exists())


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
