"""The user's keyboard and screens in a qube: two real X servers and the real agent; no machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import xcffib
import xcffib.xkb
import xcffib.xtest

from insula.testing.desktop import Desktop, desktop
from insula.testing.gui_guest import RealGuest, program, real_guest

pytestmark = pytest.mark.desktop

BLUE = 0x3465A4

READER = """\
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QLineEdit
app = QApplication([])
line = QLineEdit()
line.setWindowTitle("Line")
line.setGeometry(60, 60, 300, 60)
line.textChanged.connect(lambda text: print(ascii(text), flush=True))
line.show()
app.exec()
"""


@pytest.fixture
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


@pytest.fixture
def guest(screen: Desktop) -> Iterator[RealGuest]:
    with real_guest(screen, "work", BLUE) as made:
        yield made


def run(where: Desktop, *words: str) -> str:
    done = subprocess.run(words, env=where.environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def layout_in(guest: RealGuest) -> list[str]:
    lines = run(guest.inside, "setxkbmap", "-query").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(("layout", "variant", "options"))]


def focus(screen: Desktop) -> None:
    window = screen.window(r"\[work\] Line")
    screen.click(window.x + 100, window.y + 50)
    screen.wait(lambda: screen.focused() == window.number, "the window has no focus")


def monitors_in(guest: RealGuest) -> set[str]:
    """As ``xrandr`` writes them: pixels/millimetres, place."""
    lines = run(guest.inside, "xrandr", "--listmonitors").splitlines()
    return {line.split()[2] for line in lines[1:]}


class Hand:
    """Presses keys by their places; ``xdotool`` would choose a layout of its own for each."""

    def __init__(self, screen: Desktop) -> None:
        self._connection: Any = xcffib.connect(screen.display)
        self._test = self._connection(xcffib.xtest.key)
        self._xkb = self._connection(xcffib.xkb.key)
        self._xkb.UseExtension(1, 0).reply()

    def press(self, code: int) -> None:
        for kind in (2, 3):
            self._test.FakeInput(kind, code, 0, 0, 0, 0, 0)
        self._connection.flush()

    def switch(self, group: int) -> None:
        """To another of the layouts, as the desktop's switch does."""
        self._xkb.LatchLockStateChecked(xcffib.xkb.ID.UseCoreKbd, 0, 0, True, group, 0, 0, 0).check()


Z_KEY, MINUS_KEY = 29, 20
"""X key codes: right of T, right of 0."""


def test_same_key_gives_the_same_letter_on_the_host_and_in_the_qube(screen: Desktop, guest: RealGuest) -> None:
    run(screen, "setxkbmap", "-layout", "de", "-option", "ctrl:nocaps")
    with program(guest, READER) as reader:
        assert reader.stdout is not None
        hand = Hand(screen)
        focus(screen)
        screen.wait(lambda: layout_in(guest) == ["de", "ctrl:nocaps"], "the qube has another keyboard")
        hand.press(Z_KEY)
        assert reader.stdout.readline() == "'z'\n"
        hand.press(MINUS_KEY)
        assert reader.stdout.readline() == "'z\\xdf'\n"


def test_switching_between_layouts_on_the_host_switches_in_the_qube_with_the_next_key(
    screen: Desktop, guest: RealGuest
) -> None:
    run(screen, "setxkbmap", "-layout", "us,de", "-option", "", "-option", "grp:menu_toggle")
    with program(guest, READER) as reader:
        assert reader.stdout is not None
        hand = Hand(screen)
        focus(screen)
        screen.wait(lambda: layout_in(guest) == ["us,de"], "the qube has another keyboard")
        hand.press(Z_KEY)
        assert reader.stdout.readline() == "'y'\n"
        hand.switch(1)
        hand.press(Z_KEY)
        assert reader.stdout.readline() == "'yz'\n"


def test_programs_know_the_hosts_monitors_and_dots(screen: Desktop) -> None:
    """MC-46: also when they change meanwhile."""
    run(screen, "xrandr", "--setmonitor", "left", "600/160x700/180+0+0", "screen")
    run(screen, "xrandr", "--setmonitor", "right", "400/100x700/180+600+0", "none")
    subprocess.run(["xrdb", "-merge"], input="Xft.dpi:\t144\n", env=screen.environment, check=True, text=True)
    with real_guest(screen, "work", BLUE) as guest:
        places = {"600/160x700/180+0+0", "400/100x700/180+600+0"}
        screen.wait(lambda: monitors_in(guest) == places, "other monitors")
        assert "Xft.dpi:\t144" in run(guest.inside, "xrdb", "-query")


def test_programs_of_a_larger_screen_see_one_monitor_as_large_as_the_hosts(screen: Desktop) -> None:
    """X servers are made before it is known for whom."""
    with real_guest(screen, "work", BLUE, width=1600, height=1000) as guest:

        def sizes() -> list[list[tuple[str, str]]]:
            return [re.findall(r"(\d+)/|\+(\d+)", place) for place in monitors_in(guest)]

        expected = [[("1000", ""), ("700", ""), ("", "0"), ("", "0")]]
        screen.wait(lambda: sizes() == expected, "another monitor")
