"""The launcher on a real screen: by keys alone, by the pointer, and given up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, served_cli
from insula.testing.desktop import WAIT_S, Desktop, Window, desktop

pytestmark = pytest.mark.desktop

TITLE = "^Insula: start an application$"
BLUE, RED = 0x3465A4, 0xCC0000
CHOOSE = """\
from insula.manager.menu import Entry
from insula.manager.qt_launcher import choose
chosen = choose([
    Entry("untrusted", 0xCC0000, "web", "Web Browser", "<b>Look</b> at pages"),
    Entry("work", 0x3465A4, "edit", "Editor"),
    Entry("work", 0x3465A4, "web", "Web Browser"),
])
print(chosen and f"{chosen.id} of {chosen.qube}", flush=True)
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


class Choosing:
    def __init__(self, screen: Desktop) -> None:
        self._screen = screen
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHOOSE], env=screen.environment, stdout=subprocess.PIPE, text=True
        )
        self.window = screen.window(TITLE)
        screen.wait(lambda: screen.focused() == self.window.number, "it has no focus")
        screen.wait(lambda: RED in self.colours(), "nothing is drawn")

    def colours(self) -> set[int]:
        """Down the middle of where the qubes' names stand."""
        picture = self._screen.picture()
        return {picture.pixel(self.window.x + 14, self.window.y + y) for y in range(self.window.height)}

    def row(self, number: int) -> tuple[int, int]:
        """The middle of a row: each begins with its qube's colour."""
        picture, x = self._screen.picture(), self.window.x + 14
        ys = [y for y in range(self.window.y, self.window.y + self.window.height) if picture.pixel(x, y) in (BLUE, RED)]
        return x + 200, ys[0] + 20 + 44 * number

    def chosen(self) -> str:
        return self._process.communicate(timeout=WAIT_S)[0].strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def choosing(screen: Desktop) -> Iterator[Choosing]:
    screen.park()
    made = Choosing(screen)
    yield made
    made.end()


def test_letters_and_enter_choose(screen: Desktop, choosing: Choosing) -> None:
    screen.type("work web")
    screen.wait(lambda: RED not in choosing.colours(), "the list is not filtered")
    screen.key("Return")
    assert choosing.chosen() == "web of work"


def test_arrows_choose_and_a_page_goes_to_the_end(screen: Desktop, choosing: Choosing) -> None:
    screen.key("Next", "Up", "Down", "Up", "Return")
    assert choosing.chosen() == "edit of work"


def test_escape_gives_up_and_enter_without_a_match_does_nothing(screen: Desktop, choosing: Choosing) -> None:
    screen.type("nothing")
    screen.key("Return", "Escape")
    assert choosing.chosen() == "None"


def test_click_chooses(screen: Desktop, choosing: Choosing) -> None:
    assert {BLUE, RED} <= choosing.colours()
    screen.click(*choosing.row(1))
    assert choosing.chosen() == "edit of work"


def test_leaving_the_window_gives_up(screen: Desktop, choosing: Choosing) -> None:
    other = subprocess.Popen(["xmessage", "-center", "elsewhere"], env=screen.environment)
    try:
        window: Window = screen.window("xmessage")
        screen.do("windowactivate", window.number)
        assert choosing.chosen() == "None"
    finally:
        other.kill()
        other.wait()


def test_command_opens_the_window_on_a_desktop_and_lists_where_there_is_none(screen: Desktop, tmp_path: Path) -> None:
    with served_cli(tmp_path) as cli:
        folders = {"INSULA_DATA_DIR": str(cli.paths.data), "INSULA_RUNTIME_DIR": str(cli.paths.runtime)}
        process = subprocess.Popen(
            [sys.executable, "-m", "insula.cli.main", "menu"], env={**screen.environment, **folders}
        )
        try:
            screen.window(TITLE)
            screen.wait(lambda: screen.focused() == screen.window(TITLE).number, "it has no focus")
            screen.key("Escape")
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.wait()
        listed(cli)


def listed(cli: Cli) -> None:
    ran = cli.run("menu", DISPLAY="", WAYLAND_DISPLAY="", QT_QPA_PLATFORM="")
    assert ran.code == 0
    assert "Terminal" in ran.out
