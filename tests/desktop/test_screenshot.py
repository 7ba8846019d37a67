"""Pictures of a real screen, taken by the real command: what the user sees, and nothing that is not theirs to give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtGui import QImage

from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.policy.agent import Question
from insula.testing.desktop import Desktop, desktop
from insula.testing.gui_guest import program, real_guest, scripted_guests
from insula.testing.prompt_program import running_prompt

pytestmark = pytest.mark.desktop

BLUE, RED, GREEN, SAND = 0x3465A4, 0xCC0000, 0x30C040, 0xC0A040
HOST = 0x161A22
LOWER, UPPER = Rect(100, 100, 300, 200), Rect(250, 200, 300, 200)
UPPER_MIDDLE = (400, 300)
CHOOSER = "^Insula: choose"
PATIENCE_S = 60.0
"""For a command: it loads Qt twice, on a busy machine."""
SPY = """\
from PySide6.QtGui import QGuiApplication
app = QGuiApplication([])
image = app.primaryScreen().grabWindow(0).toImage()
seen = {image.pixel(x, y) & 0xFFFFFF for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
print(" ".join(f"{colour:06x}" for colour in seen), flush=True)
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


@pytest.fixture(autouse=True)
def left_empty(screen: Desktop) -> Iterator[None]:
    """No test takes a window of the one before for its own."""
    yield
    screen.wait(lambda: not screen.windows(r"^\["), "a window stays")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The user's; commands that still run are ended with it."""
    yield tmp_path
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


STARTED: list[subprocess.Popen[str]] = []


def start(screen: Desktop, home: Path, *words: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in screen.environment.items() if not key.startswith("XDG_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "insula.cli.main", "screenshot", *words],
        env={**kept, "HOME": str(home), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> QImage:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    image = QImage(out.strip())
    assert not image.isNull()
    assert Path(out.strip()).stat().st_mode & 0o077 == 0
    return image


def colours(image: QImage, part: Rect | None = None) -> set[int]:
    part = part or Rect(0, 0, image.width(), image.height())
    return {image.pixel(x, y) & 0xFFFFFF for x in range(part.x, part.right, 2) for y in range(part.y, part.bottom, 2)}


@pytest.fixture
def two(screen: Desktop) -> Iterator[None]:
    """Windows of two qubes, one over a part of the other."""
    with scripted_guests(screen, ("work", BLUE), ("untrusted", RED)) as (_, [work, untrusted]):
        work.window(1, LOWER, GREEN)
        screen.window(r"^\[work\]")
        untrusted.window(1, UPPER, SAND)
        upper = screen.window(r"^\[untrusted\]")
        screen.activate(upper.number)
        screen.park()
        screen.wait(
            lambda: (screen.picture().pixel(120, 120), screen.picture().pixel(300, 250)) == (GREEN, SAND), "not drawn"
        )
        yield


@pytest.mark.usefixtures("two")
def test_whole_screen_is_as_the_user_sees_it_in_the_pictures_folder(screen: Desktop, home: Path) -> None:
    image = finish(start(screen, home))
    assert (image.width(), image.height()) == (1000, 700)
    assert {GREEN, SAND, BLUE, RED} <= colours(image)
    assert [path.suffix for path in (home / "Pictures").iterdir()] == [".png"]


@pytest.mark.usefixtures("two")
def test_mc38_window_of_a_qube_has_nothing_of_the_one_above_it(screen: Desktop, home: Path) -> None:
    image = finish(start(screen, home, "work"))
    assert image.width() >= LOWER.width + WINDOW_FRAME.left + WINDOW_FRAME.right
    seen = colours(image)
    assert {GREEN, BLUE, HOST} <= seen
    assert not seen & {SAND, RED}


@pytest.mark.usefixtures("two")
def test_window_is_chosen_by_a_click_or_by_keys_and_escape_chooses_none(screen: Desktop, home: Path) -> None:
    choosing = start(screen, home, "--window")
    screen.window(CHOOSER)
    screen.click(*UPPER_MIDDLE)
    assert {SAND, RED} <= colours(finish(choosing))
    choosing = start(screen, home, "--window", "-o", str(home / "mine.png"))
    screen.window(CHOOSER)
    screen.key("Tab", "Tab", "Return")
    assert {GREEN, BLUE} <= colours(finish(choosing))
    assert (home / "mine.png").exists()
    choosing = start(screen, home, "--window")
    screen.window(CHOOSER)
    screen.key("Escape")
    assert choosing.wait(PATIENCE_S) == 130


@pytest.mark.usefixtures("two")
def test_region_is_what_the_user_draws_a_frame_around(screen: Desktop, home: Path) -> None:
    choosing = start(screen, home, "--region")
    screen.window(CHOOSER)
    screen.do("mousemove", 110, 110, "mousedown", 1, "mousemove", 150, 130, "mousemove", 209, 159, "mouseup", 1)
    image = finish(choosing)
    assert (image.width(), image.height()) == (100, 50)
    assert colours(image) == {GREEN}


def test_mc40_mark_of_the_host_is_in_no_picture(screen: Desktop, home: Path) -> None:
    with running_prompt(screen, home) as prompt:
        prompt.ask(Question("untrusted", "qubes.Gpg", "+", ("vault", "work"), None, {"untrusted": "appvm-red"}))
        window = prompt.settled()
        image = finish(start(screen, home))
    assert colours(image, Rect(window.x, window.y, window.width, window.height)) == {HOST}


def test_no_window_and_a_file_that_is_there_are_said(screen: Desktop, home: Path) -> None:
    missing = start(screen, home, "vault")
    assert "no window of vault can be seen" in missing.communicate(timeout=PATIENCE_S)[1]
    assert missing.returncode == 1
    (home / "mine.png").write_text("something dear")
    taken = start(screen, home, "-o", str(home / "mine.png"))
    assert "cannot be kept" in taken.communicate(timeout=PATIENCE_S)[1]
    assert (home / "mine.png").read_text() == "something dear"
    both = start(screen, home, "--window", "--region")
    both.communicate(timeout=PATIENCE_S)
    assert both.returncode == 2


@pytest.mark.usefixtures("two")
def test_mc38_program_of_a_qube_that_takes_a_picture_sees_nothing_of_the_desktop(screen: Desktop) -> None:
    with real_guest(screen, "spy", 0x555555) as guest, program(guest, SPY) as spying:
        assert spying.stdout is not None
        seen = spying.stdout.readline().split()
    assert seen
    assert not {f"{colour:06x}" for colour in (GREEN, SAND, BLUE, RED)} & set(seen)
