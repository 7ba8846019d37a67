"""What the daemon does before it serves; the process itself is tested with guests."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from insula.daemon.insulad import MAX_FILES, usable_pools
from insula.model.system import PoolConfig, System

SHOW_LIMIT = (
    "import resource; from insula.daemon.insulad import raise_file_limit;"
    " raise_file_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
)

LEAVE_TERMINAL = """
import os, fcntl, termios
from insula.daemon.insulad import leave_terminal
from insula.hal.qemu.process import has_terminal
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
before = has_terminal()
leave_terminal()
print(before, has_terminal())
"""


async def test_pool_that_cannot_be_used_does_not_keep_the_others_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    system = System()
    for name, options in (
        ("gone", {"dir_path": str(tmp_path / "file" / "pool")}),
        ("good", {"dir_path": str(tmp_path / "pool")}),
        ("odd", {"dir_path": str(tmp_path / "odd"), "from_a_newer_version": "1"}),
    ):
        system = system.with_pool(PoolConfig(name, "qcow2", options))
    system = system.with_pool(PoolConfig("foreign", "no-such-driver", {}))
    with caplog.at_level(logging.WARNING):
        pools = list(usable_pools(system))
    assert [pool.name for pool in pools] == ["good"]
    assert [record.args[0] for record in caplog.records if record.args] == ["gone", "odd", "foreign"]
    for pool in pools:
        await pool.aclose()


def test_file_limit_is_raised_as_far_as_it_may() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = subprocess.run(
        ["prlimit", f"--nofile=64:{hard}", sys.executable, "-c", SHOW_LIMIT], check=True, capture_output=True, text=True
    )
    assert int(shown.stdout) == min(MAX_FILES, hard)


def test_terminal_is_left_and_what_is_open_stays() -> None:
    ours, theirs = os.openpty()
    try:
        command = [sys.executable, "-c", LEAVE_TERMINAL]
        # In a session of its own the terminal can become its controlling one, as under a shell.
        shown = subprocess.run(
            command, stdin=theirs, stdout=subprocess.PIPE, start_new_session=True, check=True, text=True, timeout=120
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown.stdout == "True False\n"
