from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from insula.hal.qemu.process import OUTPUT_LIMIT, ProcessIdentity, ReapedChild, VmmProcess, read_output, sealed_output

LIMIT_S = 120.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        child.kill()


def identity_of(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    return identity


def test_identity_survives_its_record() -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    assert ProcessIdentity.from_record(identity.record()) == identity


@pytest.mark.parametrize("record", [{}, {"pid": 1}, {"pid": "1", "start_ticks": 2, "boot_id": "x"}])
def test_incomplete_record_is_no_identity(record: dict[str, str | int]) -> None:
    assert ProcessIdentity.from_record(record) is None


def test_ended_process_has_no_identity_even_as_a_zombie() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ProcessIdentity.of(child.pid) is None


async def test_attached_process_is_watched_and_killed(sleeper: subprocess.Popen[bytes]) -> None:
    process = VmmProcess.attach(identity_of(sleeper))
    assert process is not None
    assert not process.is_gone
    process.kill()
    async with asyncio.timeout(LIMIT_S):
        await process.wait()
    process.kill()
    assert sleeper.wait(LIMIT_S) == -signal.SIGKILL


async def test_pid_with_another_start_time_or_boot_is_not_attached(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    assert VmmProcess.attach(replace(identity, start_ticks=identity.start_ticks + 1)) is None
    assert VmmProcess.attach(replace(identity, boot_id="another")) is None


async def test_closing_does_not_end_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    process = VmmProcess.attach(identity_of(sleeper))
    assert process is not None
    process.close()
    process.close()
    process.kill()
    assert sleeper.poll() is None


async def test_stats_of_a_living_process_and_none_of_another(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    process = VmmProcess.attach(identity)
    assert process is not None
    stats = process.stats(assigned_kib=5, vcpus=3)
    assert stats is not None
    assert (stats.memory_assigned_kib, stats.vcpus) == (5, 3)
    assert stats.memory_kib > 0
    process.identity = replace(identity, start_ticks=0)
    assert process.stats(assigned_kib=5, vcpus=3) is None
    process.close()


@pytest.fixture
def short_lived() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["true"]) as child:
        yield child


async def test_child_is_reaped_when_it_ends(short_lived: subprocess.Popen[bytes]) -> None:
    reaped = ReapedChild(short_lived)
    async with asyncio.timeout(LIMIT_S):
        await reaped.reaped.wait()
    assert short_lived.returncode == 0


def test_output_keeps_the_first_bytes_and_refuses_more() -> None:
    fd = sealed_output()
    try:
        done = subprocess.run(["head", "-c", str(OUTPUT_LIMIT * 4), "/dev/zero"], check=False, stdout=fd, stderr=fd)
        assert done.returncode != 0
        assert os.fstat(fd).st_size == OUTPUT_LIMIT
    finally:
        os.close(fd)


def test_output_is_shown_without_control_characters() -> None:
    fd = sealed_output()
    try:
        os.write(fd, b"bad \x1b[2J\nnews\xff\n")
        assert read_output(fd) == "bad ?[2J\nnews\ufffd"
    finally:
        os.close(fd)
