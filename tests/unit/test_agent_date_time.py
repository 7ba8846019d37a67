"""The line that sets a clock."""

from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixel_files import SRC, local_client

from insula_agent.date_time import MAX_LINE, is_worth_setting, parse

TIMES = st.datetimes(datetime(2024, 1, 1), datetime(2199, 12, 31)).map(lambda when: when.replace(microsecond=0))  # noqa: DTZ001


@given(TIMES, st.integers(-14 * 60, 14 * 60))
def test_parse_any_time_of_any_zone(when: datetime, offset: int) -> None:
    aware = when.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert parse(aware.isoformat().encode()) == int(aware.timestamp())
    assert parse(aware.strftime("%Y-%m-%dT%H:%M:%S%z").encode() + b"\n") == int(aware.timestamp())


@given(st.binary(max_size=MAX_LINE))
def test_parse_any_bytes_value_error_or_a_time_in_bounds(data: bytes) -> None:
    try:
        seconds = parse(data)
    except ValueError:
        return
    assert 2023 < datetime.fromtimestamp(seconds, UTC).year < 2201


@pytest.mark.parametrize(
    "line",
    [
        b"", b"now", b"2026-01-31 16:10:43+00:00", b"2026-02-29T00:00:00+00:00", b"2026-13-01T00:00:00+00:00",
        b"2026-00-01T00:00:00+00:00", b"2026-01-00T00:00:00+00:00", b"1970-01-01T00:00:00+00:00",
        b"2026-01-31T24:00:00+00:00", b"2026-01-31T16:60:43+00:00", b"2026-01-31T16:10:43+15:00",
        b"2026-01-31T16:10:43Z", b"2026-01-31T16:10:43+00:00; reboot", b"2026-01-31T16:10:43+00:00\n\n\n\nx",
        "２026-01-31T16:10:43+00:00".encode(),
    ],
)  # fmt: skip
def test_parse_no_such_time_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"time"):
        parse(line)


@pytest.mark.parametrize(("off", "worth"), [(0, False), (2, False), (-2, False), (2.1, True), (-2.1, True)])
def test_two_seconds_are_not_worth_it(off: float, worth: bool) -> None:
    assert is_worth_setting(1_800_000_000, 1_800_000_000 + off) == worth


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("date -u -Iseconds", 0),
        ("echo yesterday", 1),
        (":", 1),
        ("date -u -Iseconds; exit 126", 126),
        ("exit 255", 255),
    ],
)
def test_sync_clock_takes_only_a_time_of_a_call_that_went_well(tmp_path: Path, answer: str, code: int) -> None:
    env = local_client(tmp_path, answer)
    before = time.time()
    command = SRC / "insula_agent" / "bin" / "qvm-sync-clock"
    assert subprocess.run([command], env=env, capture_output=True, check=False, timeout=120).returncode == code
    assert (tmp_path / "calls").read_text() == "@default qubes.GetDate\n"
    assert abs(time.time() - before) < 30
