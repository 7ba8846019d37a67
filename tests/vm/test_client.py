"""``insula`` for programs, the examples, and ``insula run --dispvm``, with real disposables."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import insula
from insula.testing.daemon import DaemonProcess, processes_under

pytestmark = pytest.mark.vm

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 240.0
"""For anything with a few starts in software emulation on a busy machine."""


@pytest.fixture(autouse=True)
def found_by_programs(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_DATA_DIR", str(daemon.paths.data))
    monkeypatch.setenv("INSULA_RUNTIME_DIR", str(daemon.paths.runtime))


async def disposables(daemon: DaemonProcess) -> list[str]:
    return [row.name for row in await daemon.client.list_qubes() if row.klass == "DispVM"]


async def test_disposable_is_clean_without_network_and_gone_afterwards(daemon: DaemonProcess, tmp_path: Path) -> None:
    for _ in range(2):
        async with insula.disposable("debian-12") as qube:
            assert (await qube.run(["ls", "/home/user/mine"])).exit_code == 2
            await qube.run(["touch", "/home/user/mine"], check=True)
            links = await qube.run(["ls", "/sys/class/net"], check=True)
            assert links.text == "lo"
            name = qube.name
    assert name not in await disposables(daemon)
    assert [line for line in processes_under(daemon.paths.runtime) if name in line] == []
    assert not daemon.paths.qube(name).exists()


async def test_files_and_folders_survive_the_way_through_a_qube(daemon: DaemonProcess, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_bytes(data)
    (tmp_path / "in" / "link").symlink_to("data")
    async with insula.disposable("debian-12") as qube:
        await qube.copy_in(tmp_path / "in", "work/in")
        await qube.copy_in(b"#!/bin/sh\necho ok", "work/in/run")
        await qube.run(["ln", "-s", "/etc/passwd", "bad"], check=True)
        await qube.copy_out("work/in", tmp_path / "out")
        with pytest.raises(insula.CopyFailed):
            await qube.copy_out("bad", tmp_path / "bad")
        with pytest.raises(insula.UnsafeStream):
            await qube.copy_out("/dev/null", tmp_path / "null")
        with pytest.raises(insula.CopyTooLarge):
            await qube.copy_out("work", tmp_path / "big", limit=1000)
    assert (tmp_path / "out" / "data").read_bytes() == data
    assert (tmp_path / "out" / "link").readlink() == Path("data")
    assert (tmp_path / "out" / "run").read_bytes() == b"#!/bin/sh\necho ok"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


async def test_limits_of_life_and_cpu_time_end_the_machine(daemon: DaemonProcess) -> None:
    for limits, reason in (({"timeout": 1.0}, "lifetime"), ({"cpu_time": 1.5, "timeout": 120.0}, "cpu-time")):
        async with insula.disposable("debian-12", **limits) as qube:  # type: ignore[arg-type]
            with pytest.raises(insula.QubeEnded) as raised:
                await qube.run(["sh", "-c", "while :; do :; done"])
            assert raised.value.reason == reason
    assert await disposables(daemon) == []


async def test_machine_that_powers_itself_off_is_told(daemon: DaemonProcess) -> None:
    async with insula.disposable("debian-12") as qube:
        with pytest.raises(insula.QubeEnded) as raised:
            await qube.run(["sh", "-c", "systemctl poweroff --force --force; sleep 100"], user="root")
        assert raised.value.reason == "stopped"


async def test_size_given_is_the_size_of_the_machine(daemon: DaemonProcess) -> None:
    async with insula.disposable("debian-12", memory_mib=300, vcpus=1) as qube:
        total_kib = (await qube.run(["sh", "-c", "grep MemTotal /proc/meminfo"], check=True)).text.split()[1]
        assert 200_000 < int(total_kib) < 300 * 1024
        assert (await qube.run(["nproc"], check=True)).text == "1"


async def test_program_killed_in_the_middle_leaves_nothing(daemon: DaemonProcess) -> None:
    code = "import insula\nwith insula.sync.disposable() as q:\n    print(q.name, flush=True)\n    input()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        name = (await process.stdout.readline()).decode().strip()
        assert name in await disposables(daemon)
        process.kill()
        await process.wait()
        while name in await disposables(daemon):
            await asyncio.sleep(0.05)
    assert [line for line in processes_under(daemon.paths.runtime) if name in line] == []


async def test_daemon_that_dies_ends_what_it_held_when_it_is_back(daemon: DaemonProcess) -> None:
    async with insula.disposable("debian-12") as qube:
        name = qube.name
        daemon.kill()
        await daemon.start()
        assert name not in await disposables(daemon)
        with pytest.raises(insula.QubeEnded):
            await qube.run(["true"])
    assert [line for line in processes_under(daemon.paths.runtime) if name in line] == []


async def test_hidden_template_can_be_removed_and_comes_again(daemon: DaemonProcess) -> None:
    async with insula.disposable("debian-12"):
        pass
    await daemon.client.remove("debian-12-dvm")
    async with insula.disposable("debian-12") as qube:
        assert (await qube.run(["echo", "again"])).text == "again"


# the command


def insula_run(daemon: DaemonProcess, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "insula.cli.main", "run", *words]
    return subprocess.run(
        command, env=daemon.environment, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False
    )


async def test_run_dispvm_gives_streams_and_exit_code_and_leaves_nothing(daemon: DaemonProcess) -> None:
    done = await asyncio.to_thread(
        insula_run, daemon, "--dispvm=debian-12", "sh", "-c", "cat; echo e >&2; exit 5", stdin=b"through"
    )
    assert (done.returncode, done.stdout) == (5, b"through")
    assert done.stderr.endswith(b"e\n")
    assert (await asyncio.to_thread(insula_run, daemon, "--dispvm", "true")).returncode == 0
    assert await disposables(daemon) == []


# the examples


def example_run(daemon: DaemonProcess, name: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name], env=daemon.environment, capture_output=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.parametrize("name", ["one_snippet.py", "files_in_and_out.py", "test_farm.py"])
async def test_example_runs_and_leaves_nothing(daemon: DaemonProcess, name: str) -> None:
    begin = time.monotonic()
    done = await asyncio.to_thread(example_run, daemon, name)
    assert (done.returncode, done.stderr) == (0, b""), time.monotonic() - begin
    expected = {
        "one_snippet.py": [b"hello from disp"],
        "files_in_and_out.py": [b"8 different words"],
        "test_farm.py": [
            b"sum: exit code 0: '499500",
            b"fails: exit code 3",
            b"loops: took more than 20 s",
            b"memory: exit code 1",
            b"MemoryError",
            b"network: exit code 1",
            b"finds something: exit code 0: 'False",
            b"powers off: its machine ended: stopped",
        ],
    }
    assert [text for text in expected[name] if text not in done.stdout] == []
    assert await disposables(daemon) == []
