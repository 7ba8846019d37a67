"""What the daemon does before it serves; the process itself is tested with guests."""

from __future__ import annotations

import logging
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
