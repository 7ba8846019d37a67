from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.events.bus import EventBus
from insula.rpc import call_log
from insula.rpc.call_log import CallLog, CallRecord, LogReader, older


def record(number: int, argument: str = "+") -> CallRecord:
    return CallRecord(number, "work", "a.B", argument, "vault", decision="allowed", rule="50-a.policy:1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.log"


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def log(path: Path, bus: EventBus) -> Iterator[CallLog]:
    made = CallLog(path, bus)
    yield made
    made.close()


def numbers(reader: LogReader) -> list[object]:
    return [found["number"] for found in reader.read()]


def test_each_call_is_a_line_of_json_and_a_long_argument_is_cut(log: CallLog, path: Path) -> None:
    log.ended(record(1, "+" + "x" * 500))
    [line] = path.read_text().splitlines()
    found = json.loads(line)
    assert found["number"] == 1
    assert len(found["argument"]) == call_log.MAX_ARGUMENT + 1


def test_reader_goes_on_where_it_was_also_over_a_file_put_aside(
    log: CallLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = LogReader(path)
    assert numbers(reader) == []
    for number in range(3):
        log.ended(record(number))
    assert numbers(reader) == [0, 1, 2]
    assert numbers(reader) == []
    monkeypatch.setattr(log._file, "maxBytes", path.stat().st_size + 10)
    log.ended(record(3))
    assert older(path).exists()
    log.ended(record(4))
    assert numbers(reader) == [3, 4]
    assert numbers(LogReader(path))[-2:] == [3, 4]


def test_file_has_a_limit_and_there_is_one_before_it(log: CallLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log._file, "maxBytes", 1000)
    for number in range(50):
        log.ended(record(number))
    assert path.stat().st_size <= 1000
    assert older(path).stat().st_size <= 1000
    assert sorted(found.name for found in path.parent.iterdir()) == ["calls.log", "calls.log.1"]


def test_reader_passes_over_what_is_no_record(path: Path) -> None:
    path.write_text('nonsense\n{"number": 1}\n[]\n\n{"half')
    assert list(LogReader(path).read()) == []


def test_disk_that_is_full_is_said_once_and_fails_no_call(
    log: CallLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # cannot be opened for writing
    for number in range(10):
        log.ended(record(number))
    assert len([entry for entry in caplog.records if "could not be written down" in entry.message]) == 1


def test_events_are_published_a_bounded_number_a_second(log: CallLog, bus: EventBus) -> None:
    """MC-15: calls must not fill the queues of whoever listens for other things."""
    listener = bus.listen(max_queued=10_000)
    for number in range(5000):
        log.ended(record(number))
    assert len(listener._queue) <= call_log.EVENTS_BURST + 5 * call_log.EVENTS_PER_SECOND
    event = listener._queue[0]
    assert (event.subject, event.name, event.kwargs["rule"]) == ("work", "call-ended", "50-a.policy:1")
    listener.close()
