"""Seeds: the gate between the two halves of a boot, and the journal that keeps nothing."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from insula_agent import seed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = tmp_path / "run"
    monkeypatch.setattr(seed, "RUN", str(run))
    monkeypatch.setattr(seed, "GATE", str(run / "gate"))
    monkeypatch.setattr(seed, "BOOTED", str(run / "booted"))
    monkeypatch.setattr(seed, "JOURNAL_SETTINGS", str(tmp_path / "journald.conf.d" / "90.conf"))
    monkeypatch.setattr(seed, "JOURNAL_GROUP", str(tmp_path / "cgroup.procs"))
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup" / "system.slice").mkdir(parents=True)
    monkeypatch.setattr(seed, "CONTROL_GROUPS", str(tmp_path / "cgroup"))
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"/insula-seed": b"1"}, True), ({"/insula-seed": b"0"}, False), ({"/insula-seed": b""}, False), ({}, False)],
)
def test_seed_is_who_is_told_so(keys: dict[str, bytes], *, expected: bool) -> None:
    assert seed.is_seed(keys) is expected


def test_prepared_seed_is_gated_and_its_journal_keeps_nothing(folder: Path) -> None:
    assert not seed.is_gated()
    seed.prepare()
    seed.prepare()
    assert seed.is_gated()
    assert not seed.is_booted()
    assert "Storage=none" in (folder / "journald.conf.d" / "90.conf").read_text()


def test_gate_where_nobody_waits_stays_shut() -> None:
    seed.prepare()
    assert not seed.open_gate()
    assert seed.is_gated()


def test_gate_lets_the_waiting_one_through_and_is_gone(folder: Path) -> None:
    seed.prepare()
    passed: list[bytes] = []
    waiting = threading.Thread(target=lambda: passed.append(Path(seed.GATE).read_bytes()))
    waiting.start()
    while not seed.open_gate():
        assert waiting.is_alive()
    waiting.join(120)
    assert passed == [b""]
    assert not seed.is_gated()
    assert not (folder / "journald.conf.d" / "90.conf").exists()


def test_journal_of_the_seed_is_ended_once_and_one_that_has_gone_is_no_error(folder: Path) -> None:
    journal = subprocess.Popen(["sleep", "60"])
    (folder / "cgroup.procs").write_text(f"{journal.pid}\n")
    seed.prepare()
    seed._renew_journal()
    assert journal.wait(120) == -seed.SIGTERM
    # The settings are gone: this is the journal of somebody now.
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    seed._renew_journal()
    seed.prepare()
    (folder / "cgroup.procs").write_text(f"{journal.pid}\n")
    seed._renew_journal()


@pytest.fixture
def groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tree = folder / "cgroup"
    for name in ("init.scope", "user.slice", "system.slice/dbus.service", "system.slice/insula-agent.service"):
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name / "cpu.idle").write_text("0")
    (tree / "system.slice" / "cpu.idle").write_text("0")
    (tree / "system.slice" / "dev-mqueue.mount").mkdir()
    (tree / "cpu.stat").touch()
    monkeypatch.setattr(seed, "CONTROL_GROUPS", str(tree))
    return tree


def idle(groups: Path) -> set[str]:
    return {str(path.parent.relative_to(groups)) for path in groups.rglob("cpu.idle") if path.read_text() == "1"}


def test_all_groups_but_ours_are_hushed_until_the_gate_opens(groups: Path) -> None:
    seed.hush(is_wanted=True)
    assert idle(groups) == {"init.scope", "user.slice", "system.slice/dbus.service"}
    assert not (groups / "system.slice" / "dev-mqueue.mount" / "cpu.idle").exists()
    seed.hush(is_wanted=False)
    assert idle(groups) == set()
