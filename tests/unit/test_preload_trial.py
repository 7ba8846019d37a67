from __future__ import annotations

import os
import subprocess
import sys

from insula.preload import trial

TRIAL = "import asyncio; from insula.preload import trial; print(asyncio.run(trial.problem(None)))"


async def test_process_gets_into_its_sandbox_on_this_machine() -> None:
    assert await trial.problem(0x70000000 if os.geteuid() == 0 else None) == ""


def test_machine_that_forbids_namespaces_is_told_why() -> None:
    command = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--", sys.executable, "-c", TRIAL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "unshare" in done.stdout
    assert "user namespaces" in done.stdout
