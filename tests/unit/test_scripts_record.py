"""``scripts/record.py``: a scene is played, and what does not work ends it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "record.py"


def play(tmp_path: Path, scene: str) -> tuple[int, list[str]]:
    """Exit code, and what was shown without its times."""
    path = tmp_path / "x.scene"
    path.write_text(scene)
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(path)], check=False, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return ran.returncode, [re.sub(r"^ *\d+\.\d s  ", "", line) for line in ran.stdout.splitlines() if line]


def test_commands_are_shown_with_the_last_version_of_every_line(tmp_path: Path) -> None:
    scene = "# nobody sees this\n= Two commands\n$ printf 'half\\rwhole\\n\\033[1mbold\\033[0m\\n'\n& echo two\nwait\n"
    assert play(tmp_path, scene) == (
        0,
        [
            "== Two commands",
            "$ printf 'half\\rwhole\\n\\033[1mbold\\033[0m\\n'",
            "whole",
            "bold",
            "$ echo two",
            "two",
        ],
    )


def test_command_that_fails_ends_the_scene(tmp_path: Path) -> None:
    assert play(tmp_path, "$ exit 3\n$ echo never\n") == (3, ["$ exit 3"])


def test_line_that_is_none_is_refused(tmp_path: Path) -> None:
    code, shown = play(tmp_path, "% echo\n")
    assert (code, shown) == (1, [])
