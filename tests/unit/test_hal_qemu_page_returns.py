"""Holes that a VMM punches into its seed's memory are said to be there, those in other files are; real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from insula.hal.qemu import page_returns
from insula.hal.qemu.page_returns import PageReturns

SIZE = 1 << 20
LIMIT_S = 120.0
PUNCH, ZERO = 3, 0x10
PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
for line in sys.stdin:
    descriptor, mode, times = map(int, line.split())
    codes = {libc.fallocate(descriptor, mode, 0, 4096) and ctypes.get_errno() for _ in range(times)}
    print(*codes, flush=True)
"""
"""Of each line: descriptor, mode and how often; prints the errors there were, 0 for none."""


class Vmm:
    """A process that is started as a fork's VMM is."""

    def __init__(self, returns: PageReturns, memory: int, *others: int) -> None:
        self.process = returns.start(lambda: self._start((memory, *others)), memory)

    @staticmethod
    def _start(descriptors: tuple[int, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=descriptors,
        )  # fmt: skip

    def fallocate(self, descriptor: int, mode: int, times: int = 1) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{descriptor} {mode} {times}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def returns() -> Iterator[PageReturns]:
    made = PageReturns()
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[int]:
    made = os.memfd_create("seed", os.MFD_ALLOW_SEALING)
    os.write(made, b"s" * SIZE)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    yield made
    os.close(made)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    made = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.write(made, b"d" * SIZE)
    yield made
    os.close(made)


def test_hole_in_the_seed_is_said_to_be_there_and_one_in_a_disk_is(
    returns: PageReturns, memory: int, disk: int
) -> None:
    vmm = Vmm(returns, memory, disk)
    assert vmm.fallocate(memory, PUNCH) == "0"
    assert os.pread(memory, 4096, 0) == b"s" * 4096
    assert vmm.fallocate(disk, PUNCH) == "0"
    assert os.pread(disk, 4097, 0) == bytes(4096) + b"d"
    # Only what QEMU does to forget a page; everything else is the kernel's answer.
    assert vmm.fallocate(memory, ZERO) != "0"
    assert vmm.fallocate(99, PUNCH) == str(errno.EBADF)
    vmm.end()


def test_another_seeds_memory_is_not_this_ones(returns: PageReturns, memory: int) -> None:
    other = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(other, SIZE)
    fcntl.fcntl(other, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with ExitStack() as stack:
        stack.callback(os.close, other)
        vmm = Vmm(returns, memory, other)
        assert vmm.fallocate(other, PUNCH) == str(errno.EPERM)
        vmm.end()


def test_when_nobody_answers_any_more_the_call_is_not_supported(memory: int, disk: int) -> None:
    returns = PageReturns()
    vmm = Vmm(returns, memory, disk)
    returns.close()
    returns.close()
    assert vmm.fallocate(memory, PUNCH) == str(errno.ENOSYS)
    assert vmm.fallocate(disk, PUNCH) == str(errno.ENOSYS)
    vmm.end()


def test_one_that_asks_all_the_time_waits_and_others_do_not(
    returns: PageReturns, memory: int, disk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_returns, "ANSWERS_PER_S", 50)
    busy, other = Vmm(returns, memory, disk), Vmm(returns, memory)
    begin = time.monotonic()
    assert busy.process.stdin is not None
    busy.process.stdin.write(f"{disk} {PUNCH} 160\n")
    busy.process.stdin.flush()
    assert other.fallocate(memory, PUNCH) == "0"
    assert busy.process.stdout is not None
    assert busy.process.stdout.readline() == "0\n"
    # 160 of 50 a second: at least two whole seconds were over.
    assert time.monotonic() - begin > 2
    for vmm in (busy, other):
        vmm.end()


def test_ended_ones_are_forgotten(returns: PageReturns, memory: int) -> None:
    for _ in range(3):
        vmm = Vmm(returns, memory)
        assert vmm.fallocate(memory, PUNCH) == "0"
        vmm.end()
    assert returns._answering is not None
    end = time.monotonic() + LIMIT_S
    while returns._answering.watched and time.monotonic() < end:
        time.sleep(0.01)
    assert returns._answering.watched == {}


def test_what_cannot_be_started_is_the_callers_error(returns: PageReturns, memory: int) -> None:
    def fail() -> None:
        raise FileNotFoundError("bwrap")

    with pytest.raises(FileNotFoundError, match="bwrap"):
        returns.start(fail, memory)
    assert returns._answering is not None
    assert returns._answering.watched == {}


def test_one_that_starts_nothing_holds_nothing() -> None:
    def descriptors() -> list[str]:
        return sorted(path.name for path in Path("/proc/self/fd").iterdir())

    before = descriptors()
    returns = PageReturns()
    assert descriptors() == before
    returns.close()


def test_without_such_a_filter_it_is_started_all_the_same(
    returns: PageReturns, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(page_returns, "_install", refuse)
    vmm = Vmm(returns, memory)
    assert vmm.fallocate(memory, PUNCH) == str(errno.EPERM)
    vmm.end()


def test_thread_of_the_caller_is_under_no_other_filter_than_before(returns: PageReturns, memory: int) -> None:
    def filters() -> list[str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp"))]

    before = filters()
    Vmm(returns, memory).end()
    assert filters() == before
