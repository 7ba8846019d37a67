"""``insula screenshot`` where no picture can be taken; pictures: ``tests/desktop/test_screenshot.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as made:
        yield made


def test_without_a_display_it_says_so(cli: Cli) -> None:
    ran = cli.run("screenshot", DISPLAY="", WAYLAND_DISPLAY="", QT_QPA_PLATFORM="")
    assert ran.code == 1
    assert "there is no display" in ran.err


@pytest.mark.parametrize("words", [("work", "--window"), ("work", "--region"), ("--window", "--region")])
def test_one_thing_at_a_time(cli: Cli, words: tuple[str, ...]) -> None:
    ran = cli.run("screenshot", *words)
    assert ran.code == 2
    assert "exclude each other" in ran.err


def test_on_a_desktop_that_is_not_of_x11_it_names_the_desktops_own_way(tmp_path: Path) -> None:
    """(Qt's back end without a screen stands for Wayland: neither has an X server. In a process of its own: there can
    be one application of Qt in each.)"""
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    ran = subprocess.run(
        [sys.executable, "-m", "insula.cli.main", "screenshot"],
        env={**kept, "QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 1
    assert "take the picture with the desktop's own one" in ran.stderr
    assert list(tmp_path.glob("**/*.png")) == []
