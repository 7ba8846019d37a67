from __future__ import annotations

import pytest

from insula.qrexec import log


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    log.name_program("test")
    for name in ("_second", "_lines", "_dropped"):
        monkeypatch.setattr(log, name, 0)


def test_control_characters_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    """MC-103."""
    log.say("a\x1b[2J\nb\x9b\u202e\udcff")
    assert capfd.readouterr().err == "test: a\\x1b[2J\\nb\\x9b\\u202e\\udcff\n"


def test_flood_is_cut_and_counted(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-103: what a qube can cause."""
    now = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    for number in range(log.LINES_PER_SECOND + 30):
        log.say(f"line {number}")
    assert len(capfd.readouterr().err.splitlines()) == log.LINES_PER_SECOND
    now = 101.0
    log.say("next")
    assert capfd.readouterr().err == "test: 30 more lines\ntest: next\n"


def test_long_line_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    log.say("x" * 100_000)
    assert len(capfd.readouterr().err) < 3000
