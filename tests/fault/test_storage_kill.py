"""SIGKILL before every single change an operation makes to the disk (MC-62), and while the tool writes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
import storage_scenarios as scenarios

from insula.model.block import MIB
from insula.testing import guest_disk

STEPS = frozenset(
    {os.write, os.pwrite, os.ftruncate, os.truncate, os.fsync, os.copy_file_range}
    | {os.rename, os.replace, os.unlink, os.link, os.mkdir, os.rmdir}
)
MOST_STEPS = 200
"""No operation has as many; a scenario that never completes must not run for ever."""
DEADLINE_S = 120


class Killer:
    """A profile function: ends this process before its n-th call of one of STEPS, in whatever thread."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and arg in STEPS:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; returns its wait status (0: it completed)."""
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work)
    return os.waitpid(pid, 0)[1]


def _work_and_exit(work: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    finally:
        # No cleaning up of what belongs to the parent, pytest included.
        os._exit(status)


def copy_pool(source: Path, target: Path) -> None:
    """With holes and hard links."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True, timeout=DEADLINE_S)


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_killed_before_any_step_leaves_old_or_new(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.storage.manifest.LAYERS_WANTED", scenarios.LAYERS_WANTED)
    scenario = scenarios.SCENARIOS[name]
    prepared, folder = tmp_path / "prepared", tmp_path / "pool"
    scenarios.run(scenario.prepare(prepared))

    async def operate() -> None:
        await scenario.operation(scenarios.open_pool(folder))

    for step in range(1, MOST_STEPS):
        copy_pool(prepared, folder)

        def killed_at_step(at: int = step) -> None:
            killer = Killer(at)
            threading.setprofile(killer)
            sys.setprofile(killer)
            asyncio.run(operate())

        status = in_child(killed_at_step)
        assert status in (0, signal.SIGKILL), f"step {step}: the operation failed"
        scenarios.run(scenarios.check(folder, scenario.allowed))
        if status == 0:
            assert step > 2, "the operation has no steps: nothing was tested"
            return
    pytest.fail(f"more than {MOST_STEPS} steps")


def tools_working_on(folder: Path) -> list[int]:
    """Processes whose command line names a file in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        os.sched_yield()


def test_killed_while_the_tool_folds_leaves_content_and_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    size = 256 * MIB
    spec = replace(scenarios.ROOT, size=size, revisions_to_keep=0)

    async def prepare() -> tuple[Path, Path]:
        pool = scenarios.open_pool(folder)
        await pool.create(spec)
        source = await pool.activate(spec)
        guest_disk.write(source, 0, size, 1)
        await pool.deactivate(spec, commit=True)
        return source.layers[1].path, source.layers[0].path

    async def fold() -> None:
        os.nice(19)  # whoever watches it must not come second
        pool = scenarios.open_pool(folder)
        await pool.recover(frozenset())
        await pool.settle()

    base, upper = scenarios.run(prepare())
    pid = os.fork()
    if pid == 0:
        _work_and_exit(lambda: asyncio.run(fold()))
    try:
        wait_until(lambda: base.stat().st_blocks * 512 > MIB, "the fold writes to the base")
        assert upper.exists(), "the fold was over before it could be killed: make it larger"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wait_until(lambda: not tools_working_on(folder), "the sandbox ends with the daemon")

    async def look() -> bytes:
        pool = scenarios.open_pool(folder)
        content = guest_disk.content(await pool.activate(spec))
        await pool.deactivate(spec, commit=False)
        await pool.recover(frozenset())
        await pool.settle()
        source = await pool.activate(spec)
        assert len(source.layers) == 2, "folded after the restart"
        assert guest_disk.content(source) == content
        await pool.aclose()
        return content

    assert scenarios.run(look()) == bytes([1]) * size
