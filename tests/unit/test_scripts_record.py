"""``scripts/record.py``: a scene is played, and what does not work ends it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "record.py"
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(picture).iter(f"{SVG}text")]


def play(tmp_path: Path, scene: str, *more: str) -> tuple[int, list[str]]:
    """Exit code, and what was shown without its times."""
    path = tmp_path / "x.scene"
    path.write_text(scene)
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), *more], check=False, stdout=subprocess.PIPE, text=True, timeout=120
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


def test_program_on_the_right_asks_and_is_answered(tmp_path: Path) -> None:
    said = tmp_path / "said"
    asks = f"printf 'yes or no? '; read answer; echo \"so $answer\"; touch {said}"
    code, shown = play(tmp_path, f"beside {asks}\nreply yes\n$ until [ -e {said} ]; do sleep 0.05; done; echo done\n")
    assert code == 0
    assert [line for line in shown if "so yes" in line] == [" " * 36 + "| so yes"]


def test_what_is_prepared_is_not_shown_and_must_work(tmp_path: Path) -> None:
    assert play(tmp_path, "( echo hidden\n$ echo shown\n") == (0, ["$ echo shown", "shown"])
    assert play(tmp_path, "( exit 4\n$ echo never\n") == (4, [])


def test_picture_has_every_line_as_text_whatever_its_letters(tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    assert play(tmp_path, "= A & B\n$ echo '<b>&amp;\"</b>'\n", "--svg", str(picture))[0] == 0
    shown = [text for text in texts(picture) if not re.fullmatch(r" *[0-9.]+ s", text)]
    assert shown == ["A & B", "$ echo '<b>&amp;\"</b>'", '<b>&amp;"</b>']


def test_scene_that_failed_leaves_no_picture(tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    assert play(tmp_path, "$ exit 3\n", "--svg", str(picture))[0] == 3
    assert not picture.exists()


def test_picture_in_the_readme_is_of_the_scene_as_it_is() -> None:
    scene = (ROOT / "docs/recordings/calls.scene").read_text().splitlines()
    shown = texts(ROOT / "docs/recordings/calls.svg")
    for line in scene:
        word, _, rest = line.partition(" ")
        if word in ("$", "&"):
            assert f"$ {rest}" in shown
        elif word == "=":
            assert rest in shown
    assert "docs/recordings/calls.svg" in (ROOT / "README.md").read_text()
