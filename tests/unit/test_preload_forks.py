from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.preload import forks
from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.testing import sandbox_probe

PATIENCE = 120.0

REFUSED_BY_KERNEL = """
import asyncio, sys
from insula.preload.forks import PreloadedParent
from insula.testing import sandbox_probe
async def main():
    async with PreloadedParent([sandbox_probe.PROGRAM]) as parent:
        try:
            await sandbox_probe.fork_probe(parent, None, stderr=2)
        except OSError as error:
            print(error)
        children = open(f"/proc/{parent.pid}/task/{parent.pid}/children").read()
        sys.exit(f"left: {children}" if children else 0)
asyncio.run(main())
"""


@pytest.fixture
async def parent() -> AsyncIterator[PreloadedParent]:
    async with PreloadedParent([sandbox_probe.PROGRAM]) as made:
        yield made


async def forked(parent: PreloadedParent) -> tuple[ForkedProcess, socket.socket]:
    async with asyncio.timeout(PATIENCE):
        return await sandbox_probe.fork_probe(parent, None, stderr=2)


async def ended(process: ForkedProcess) -> int:
    return await asyncio.wait_for(process.wait(), PATIENCE)


def children(parent: PreloadedParent) -> list[str]:
    """Zombies included."""
    assert parent.pid is not None
    return Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()


async def test_process_is_a_child_of_the_parent_and_its_exit_code_is_told(parent: PreloadedParent) -> None:
    process, connection = await forked(parent)
    with connection:
        assert children(parent) == [str(process.pid)]
        await asyncio.get_running_loop().sock_sendall(connection, b"\x2a")
        assert await ended(process) == 42
    assert children(parent) == []


async def test_killed_process_ends_by_the_signal_however_often_it_is_killed(parent: PreloadedParent) -> None:
    process, connection = await forked(parent)
    with connection:
        process.kill()
        assert [await ended(process), await ended(process)] == [-signal.SIGKILL] * 2
        process.kill()
    assert children(parent) == []


async def test_many_at_once_are_all_made(parent: PreloadedParent) -> None:
    made = await asyncio.gather(*(forked(parent) for _ in range(12)))
    assert sorted(children(parent)) == sorted(str(process.pid) for process, _ in made)
    for _, connection in made:
        connection.close()
    assert [await ended(process) for process, _ in made] == [0] * 12


async def test_program_that_raises_says_where_on_its_stderr(parent: PreloadedParent) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as words:
        try:
            process = await parent.fork(sandbox_probe.request(None), [writer])
        finally:
            os.close(writer)
        assert await ended(process) == 70
        said = words.read().decode()
    assert said.startswith("Traceback")
    assert "sandbox_probe.py" in said
    assert said.endswith("ValueError: 0 descriptors\n")


async def test_cancelled_request_leaves_no_process(parent: PreloadedParent) -> None:
    first = asyncio.create_task(forked(parent))
    while parent._life is None or not parent._life._waiting:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    # Requests are answered in order; the one that nobody waits for is killed when its answer comes.
    process, connection = await forked(parent)
    with connection:
        async with asyncio.timeout(PATIENCE):
            while children(parent) != [str(process.pid)]:
                await asyncio.sleep(0.01)
    assert await ended(process) == 0


async def test_parent_killed_takes_its_processes_along_and_another_is_started(parent: PreloadedParent) -> None:
    process, connection = await forked(parent)
    before = parent.pid
    assert before is not None
    with connection:
        os.kill(before, signal.SIGKILL)
        assert await ended(process) == forks.LOST
    process, connection = await forked(parent)
    assert parent.pid not in (None, before)
    connection.close()
    assert await ended(process) == 0


async def test_parent_killed_while_it_is_asked_is_an_error_then_all_is_well(parent: PreloadedParent) -> None:
    asking = asyncio.create_task(forked(parent))
    while parent._life is None or not parent._life._waiting:
        await asyncio.sleep(0)
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="ended"):
        await asking
    process, connection = await forked(parent)
    connection.close()
    assert await ended(process) == 0


async def test_parent_that_cannot_import_its_program_is_an_error_of_each_request(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with PreloadedParent(["insula.nonesuch"]) as parent:
        for _ in range(2):
            with pytest.raises(OSError, match="ended"):
                await forked(parent)
    assert "ModuleNotFoundError" in capfd.readouterr().err


async def test_parent_that_does_not_answer_is_given_up(
    parent: PreloadedParent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "FORK_TIMEOUT", 0.1)
    monkeypatch.setattr(forks, "END_TIMEOUT", 0.1)
    process, connection = await forked_patiently(parent, monkeypatch)
    with connection:
        assert parent.pid is not None
        os.kill(parent.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="did not answer"):
            await forked(parent)
        assert await ended(process) == forks.LOST


async def forked_patiently(
    parent: PreloadedParent, monkeypatch: pytest.MonkeyPatch
) -> tuple[ForkedProcess, socket.socket]:
    """The first fork waits for the parent's own start."""
    with monkeypatch.context() as patience:
        patience.setattr(forks, "FORK_TIMEOUT", PATIENCE)
        return await forked(parent)


async def test_closed_parent_ends_its_processes_and_makes_no_more(parent: PreloadedParent) -> None:
    process, connection = await forked(parent)
    with connection:
        await parent.close()
        assert await ended(process) == forks.LOST
        assert not Path(f"/proc/{process.pid}").exists()
        with pytest.raises(OSError, match="closed"):
            await forked(parent)


def test_sandbox_refused_by_the_kernel_is_an_error_and_no_process_runs() -> None:
    """As where user namespaces are forbidden to ordinary users: here inside one that allows no other."""
    done = subprocess.run(
        ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--",
         sys.executable, "-c", REFUSED_BY_KERNEL],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unshare" in done.stdout
    assert "user namespaces" in done.stdout


def test_command_is_isolated_from_settings_and_names_the_folders_of_the_packages() -> None:
    command = forks.command(["a", "b"], 5)
    assert command[1:4] == ["-I", "-S", "-c"]
    assert command[-3:] == ["5", "a", "b"]
    assert Path(forks.__file__).parents[2] in map(Path, command[5].split(":"))
