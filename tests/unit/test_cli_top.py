"""``insula top``: figures of running qubes, once, as JSON, and live."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.usage import HostUsage, Sample, Usage, total_kib, usage
from insula.testing.cli_runner import PROGRAM, Cli, served_cli
from insula.testing.fake_engine import GUEST_USED_KIB

TIMEOUT_S = 120


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


def test_once_prints_what_runs_and_what_could(cli: Cli) -> None:
    cli.run("start", "work")
    ran = cli.run("top", "--once")
    assert ran.code == 0
    headline, titles, row = ran.lines
    assert re.fullmatch(
        r"1 qube with 64\.0 MiB; this machine: .* of .* available, load .*; \d+ more of 400 MiB could be started",
        headline,
    )
    assert titles.split() == ["NAME", "STATE", "MEMORY", "ASSIGNED", "CPU", "%", "DISK"]
    assert row.split()[:7] == ["work", "Running", "64.0", "MiB", "400", "MiB", "0"]


def test_json_has_the_same_in_full(cli: Cli) -> None:
    cli.run("start", "work")
    found = cli.run("top", "--json").json
    [work] = found["qubes"]
    assert (work["name"], work["state"], work["memory_kib"], work["assigned_kib"], work["cpu_percent"]) == (
        "work", "Running", GUEST_USED_KIB, 400 * 1024, 0.0,
    )  # fmt: skip
    assert work["disk_bytes"] >= 0
    assert found["host"]["memory_kib"] >= found["host"]["available_kib"] > 0
    assert found["host"]["startable"]["memory_mib"] == 400


def test_machines_in_waiting_are_counted_with_what_they_take(cli: Cli) -> None:
    assert "in waiting" not in cli.run("top", "--once").out
    cli.run("template", "seed", "build", "work")
    assert "; 1 in waiting with 70.0 MiB; " in cli.run("top", "--once").out
    assert cli.run("top", "--json").json["host"]["in_waiting"] == {"machines": 1, "memory_kib": 70 << 10}
    [_, seed] = cli.run("template", "seed", "list").lines
    assert seed.endswith("1 (70.0 MiB)")


def test_nothing_running_is_an_empty_table(cli: Cli) -> None:
    assert cli.run("top", "--json").json["qubes"] == []
    assert cli.run("top").lines[0].startswith("0 qubes with 0 B")


def test_live_page_shows_qubes_and_gives_the_terminal_back(cli: Cli) -> None:
    cli.run("start", "work")
    primary, secondary = pty.openpty()
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(cli.paths.data),
        "INSULA_RUNTIME_DIR": str(cli.paths.runtime),
        "TERM": "xterm-256color",
        "COLUMNS": "150",
        "LINES": "30",
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "top", "--interval", "0.5"], env=environment, stdin=secondary, stdout=secondary
    ) as process:
        os.close(secondary)
        seen = b""
        while b"64.0 MiB" not in seen.partition(b"Running")[2]:
            seen += os.read(primary, 4096)
        assert b"\x1b[?1049h" in seen
        process.send_signal(signal.SIGINT)
        rest = _until_closed(primary)
        assert process.wait(TIMEOUT_S) == 130
        assert b"\x1b[?1049l" in rest
    os.close(primary)


def _until_closed(fd: int) -> bytes:
    seen = b""
    while True:
        try:
            chunk = os.read(fd, 4096)
        except OSError:  # EIO: the last one has closed it
            return seen
        seen += chunk


def test_cpu_is_what_was_used_between_two_samples() -> None:
    earlier, now = Sample(10.0, 1000, 5, 6), Sample(12.0, 4000, 7, 8)
    assert usage("a", "Running", now, earlier, 9) == Usage("a", "Running", 7, 8, 150.0, 9)


@pytest.mark.parametrize(
    ("now", "earlier"),
    [
        (Sample(12.0, 500, 7, 8), Sample(10.0, 1000, 5, 6)),
        (Sample(10.0, 2000, 7, 8), Sample(10.0, 1000, 5, 6)),
        (Sample(10.0, 2000, 7, 8), None),
    ],
    ids=["started anew", "no time between", "first"],
)
def test_cpu_unknown_is_told_as_unknown(now: Sample, earlier: Sample | None) -> None:
    assert usage("a", "Running", now, earlier, 0).cpu_percent is None


def test_qube_without_figures_is_still_listed() -> None:
    assert usage("a", "Dying", None, None, 3) == Usage("a", "Dying", None, None, None, 3)


@pytest.mark.parametrize(
    ("available_mib", "memory", "count"), [(512, 400, 0), (100, 400, 0), (912, 400, 1), (1400, 400, 2), (9000, 0, 0)]
)
def test_startable_keeps_what_the_host_needs(available_mib: int, memory: int, count: int) -> None:
    assert HostUsage(1 << 24, available_mib * 1024, 2, 0.0, memory).startable == count


def test_total_is_read_from_meminfo() -> None:
    assert total_kib("MemFree: 1 kB\nMemTotal:       24576 kB\n") == 24576
    with pytest.raises(ValueError, match="MemTotal"):
        total_kib("")
