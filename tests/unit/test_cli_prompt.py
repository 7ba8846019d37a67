"""``insula prompt``: what it says where it cannot ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.daemon.paths import Paths
from insula.testing.cli_runner import run_cli


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "run")


def test_without_a_display_the_terminal_is_offered(paths: Paths) -> None:
    ran = run_cli(paths, "prompt", DISPLAY="", WAYLAND_DISPLAY="", QT_QPA_PLATFORM="")
    assert ran.code == 1
    assert "there is no display" in ran.err
    assert "hint: insula prompt --terminal" in ran.err
    assert not paths.policy_agent_socket.exists()


def test_terminal_that_is_none_is_refused(paths: Paths) -> None:
    ran = run_cli(paths, "prompt", "--terminal")
    assert (ran.code, ran.err) == (1, "insula: error: this is no terminal: keys cannot be read one by one\n")


def test_damaged_mark_is_told_and_kept(paths: Paths) -> None:
    paths.data.mkdir()
    paths.host_mark.write_text("something\n")
    ran = run_cli(paths, "prompt", "--terminal")
    assert ran.code == 1
    assert "does not hold a mark" in ran.err
    assert paths.host_mark.read_text() == "something\n"


def test_install_says_what_it_wrote_and_uninstall_what_it_removed(paths: Paths, tmp_path: Path) -> None:
    ran = run_cli(paths, "prompt", "--install", XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert (ran.code, len(ran.lines)) == (0, 3)
    ran = run_cli(paths, "prompt", "--uninstall", XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert [line.split(":")[0] for line in ran.lines] == ["removed"] * 3
    assert run_cli(paths, "prompt", "--install", "--terminal").code == 2
