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

START_TIMEOUT_S = 15.0
"""Opening the store, the pools and finding running qubes again; a second is usual."""
POLL_S = 0.05


class DaemonUnavailable(Exception):
    """The daemon did not come up; the message says where its log is."""


def is_running(paths: Paths) -> bool:
    """Whether something answers on the admin socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(paths.admin_socket))
        except OSError:
            return False
        return True


async def ensure_daemon(paths: Paths) -> bool:
    """Make sure the daemon answers; True if it had to be started. :raise DaemonUnavailable:"""
    if is_running(paths):
        return False
    paths.make()
    log_file = paths.logs / "insulad.log"
    process = _spawn(paths, log_file)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if is_running(paths):
            return True
        if process.poll() not in (None, 0):
            break
        await asyncio.sleep(POLL_S)
    raise DaemonUnavailable(f"insulad did not start; its log: {log_file}\n{_tail(log_file)}")


def _spawn(paths: Paths, log_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "insula.daemon.insulad"]
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(paths.data),
        "INSULA_RUNTIME_DIR": str(paths.runtime),
    }
    if _has_user_systemd():
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
            *command,
        ]
    with log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            cwd="/",
        )


def _has_user_systemd() -> bool:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return bool(runtime and shutil.which("systemd-run") and (Path(runtime) / "systemd" / "private").exists())


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
