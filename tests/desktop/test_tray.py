"""Icons of qubes in a real tray of the host: in their colour, clicked without focus, shown nowhere without one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from insula.gui.geometry import ICON_FRAME, Rect
from insula.testing.desktop import WAIT_S, Desktop, desktop
from insula.testing.gui_guest import (
    ScriptedGuest,
    agent_of,
    program,
    real_guest,
    scripted_guest,
    scripted_guests,
    shown_by_host,
)
from insula_proto import gui

pytestmark = pytest.mark.desktop

BLUE, RED, GREEN = 0x3465A4, 0xCC0000, 0x73D216
TRAY = Rect(0, 0, 1000, 32)
"""Where the tray is: along the upper edge, as wide as its icons need, at the left."""
PLAYER = """\
from PySide6.QtGui import QColor, QIcon, QPixmap
from PySide6.QtWidgets import QApplication, QMenu, QSystemTrayIcon
app = QApplication([])
app.setQuitOnLastWindowClosed(False)
pixmap = QPixmap(22, 22)
pixmap.fill(QColor("#73d216"))
icon = QSystemTrayIcon(QIcon(pixmap))
icon.activated.connect(lambda reason: print(reason.name, flush=True))
icon.show()
print("shown", flush=True)
app.exec()
"""

SHY = """\
from PySide6.QtCore import QTimer
from PySide6.QtGui import QColor, QIcon, QPixmap
from PySide6.QtWidgets import QApplication, QSystemTrayIcon
app = QApplication([])
app.setQuitOnLastWindowClosed(False)
pixmap = QPixmap(22, 22)
pixmap.fill(QColor("#ffffff"))
icon = QSystemTrayIcon(QIcon(pixmap))
def show():
    icon.show()
    print("shown again", flush=True)
def hide(reason):
    icon.hide()
    print("hidden", flush=True)
    QTimer.singleShot(5000, show)
icon.activated.connect(hide)
icon.show()
app.exec()
"""
"""An icon that hides for a while when it is clicked."""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


@pytest.fixture(autouse=True)
def left_empty(screen: Desktop) -> Iterator[None]:
    """No test takes a window of the one before for its own."""
    yield
    screen.wait(lambda: not screen.windows(r"^\["), "a window stays")


@contextlib.contextmanager
def tray(screen: Desktop) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["trayer", "--edge", "top", "--align", "left", "--widthtype", "request", "--heighttype", "pixel",
         "--height", str(TRAY.height), "--iconspacing", "2"],
        env=screen.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        screen.wait(lambda: bool(_windows_of(screen, "trayer")), "there is no tray")
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)


def _windows_of(screen: Desktop, class_name: str) -> list[str]:
    found = subprocess.run(
        ["xdotool", "search", "--onlyvisible", "--class", class_name],
        env=screen.environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return found.stdout.split()


def framed(screen: Desktop, colour: int) -> Rect | None:
    """The smallest rectangle of the tray with all pixels of that colour; None: there are none."""
    picture = screen.picture().part(TRAY.x, TRAY.y, TRAY.width, TRAY.height)
    found = [(x, y) for y in range(picture.height) for x in range(picture.width) if picture.pixel(x, y) == colour]
    if not found:
        return None
    left, top = min(x for x, _ in found), min(y for _, y in found)
    return Rect(left, top, max(x for x, _ in found) - left + 1, max(y for _, y in found) - top + 1)


def icon_of(screen: Desktop, colour: int) -> Rect:
    """Where an icon in a frame of that colour is, once it is there and drawn."""
    seen: list[Rect | None] = [None]

    def is_drawn() -> bool:
        before, seen[0] = seen[0], framed(screen, colour)
        return seen[0] is not None and seen[0] == before and min(seen[0].width, seen[0].height) > 8

    screen.park()
    screen.wait(is_drawn, "no icon in the tray")
    assert seen[0] is not None
    return seen[0]


def docked(guest: ScriptedGuest, number: int, colour: int, side: int = 24) -> None:
    guest.say(gui.Create(number, 0, 0, side, side, 0, True), gui.Dock(number), gui.Map(number, 0, True))
    guest.picture(number, side, side, colour)


def test_icon_of_a_program_is_in_the_tray_in_its_qubes_colour_and_is_clicked(screen: Desktop) -> None:
    with tray(screen), real_guest(screen, "work", BLUE) as guest, program(guest, PLAYER) as player:
        assert player.stdout is not None
        assert player.stdout.readline() == "shown\n"
        outer = icon_of(screen, BLUE)
        picture = screen.picture().part(outer.x, outer.y, outer.width, outer.height)
        inner = ICON_FRAME.inside(Rect(0, 0, outer.width, outer.height))
        assert picture.share(GREEN) == 0.0, "an icon is tinted"
        ring = {
            picture.pixel(x, y)
            for x in range(picture.width)
            for y in range(picture.height)
            if not inner.contains(Rect(x, y, 1, 1))
        }
        assert ring == {BLUE}
        screen.click(outer.x + outer.width // 2, outer.y + outer.height // 2)
        assert player.stdout.readline() == "Trigger\n"
        player.kill()
        screen.wait(lambda: framed(screen, BLUE) is None, "the icon stays")


def test_icon_comes_back_with_the_next_agent_and_goes_and_comes_as_its_program_likes(screen: Desktop) -> None:
    """MC-47."""
    with (
        tray(screen),
        desktop(1000, 700, window_manager=None) as inside,
        shown_by_host(screen, [("work", BLUE), ("next", RED)]) as (host, [line, next_line]),
        agent_of(inside, line, host) as guest,
        program(guest, SHY) as player,
    ):
        assert player.stdout is not None
        icon = icon_of(screen, BLUE)
        screen.click(icon.x + icon.width // 2, icon.y + icon.height // 2)
        assert player.stdout.readline() == "hidden\n"
        screen.wait(lambda: framed(screen, BLUE) is None, "the icon stays")
        assert player.stdout.readline() == "shown again\n"
        icon_of(screen, BLUE)
        guest.agent.kill()
        screen.wait(lambda: framed(screen, BLUE) is None, "the icon stays")
        with agent_of(inside, next_line, host):
            icon_of(screen, RED)


def test_icon_never_has_the_focus_and_gets_clicks_without_it_and_no_keys(screen: Desktop) -> None:
    with tray(screen), scripted_guests(screen, ("work", BLUE), ("untrusted", RED)) as (_, [work, untrusted]):
        work.window(1, Rect(300, 300, 200, 100), 0x204060)
        screen.activate(screen.window(r"^\[work\]").number)
        docked(untrusted, 1, 0xFFFFFF)
        icon = icon_of(screen, RED)
        work.listen()
        screen.click(icon.x + icon.width // 2, icon.y + icon.height // 2)
        untrusted.wait(lambda: len(untrusted.of(gui.Button)) == 2, "the click did not arrive")
        screen.type("secret")
        work.wait(lambda: len(work.of(gui.Key)) >= 12, "the keys did not arrive")
        assert untrusted.of(gui.Key, gui.Focus) == []
        assert work.of(gui.Button) == []


def test_guest_cannot_move_resize_or_hide_its_icon_and_has_no_more_than_a_few(screen: Desktop) -> None:
    """MC-38."""
    with tray(screen), scripted_guest(screen, "work", BLUE) as guest:
        docked(guest, 1, 0xFFFFFF)
        icon = icon_of(screen, BLUE)
        guest.wait(lambda: bool(guest.of(gui.Configure)), "the guest was not told where it is")
        guest.say(gui.Configure(1, 300, 300, 400, 300, True), gui.Unmap(1), gui.Title(1, b"[vault] all is well"))
        told = gui.Configure(1, *_place(ICON_FRAME.inside(icon)), False)
        guest.wait(lambda: guest.of(gui.Configure)[-1] == told, "the host's answer is another place")
        assert icon_of(screen, BLUE) == icon
        for number in range(2, 40):
            docked(guest, number, 0xFFFFFF)
        screen.wait(lambda: (framed(screen, BLUE) or icon).width > 3 * icon.width, "no more icons")
        guest.say(gui.Create(99, 0, 0, 9, 9), gui.Destroy(99))
        guest.wait(lambda: gui.Destroy(99) in guest.heard, "the host does not answer")
        assert (framed(screen, BLUE) or icon).width <= 8 * (icon.width + 4)
        for number in range(1, 40):
            guest.say(gui.Destroy(number))
        screen.wait(lambda: framed(screen, BLUE) is None, "icons stay")


def _place(rect: Rect) -> tuple[int, int, int, int]:
    return rect.x, rect.y, rect.width, rect.height


def test_desktop_without_tray_shows_no_icon_anywhere_and_the_program_goes_on(screen: Desktop) -> None:
    with scripted_guest(screen, "work", BLUE) as guest:
        docked(guest, 1, 0xFFFFFF)
        guest.wait(lambda: bool(guest.of(gui.Painted)), "the program waits for ever")
        guest.window(2, Rect(300, 300, 200, 100), 0x204060)
        window = screen.window(r"^\[work\]")
        assert (window.width, window.height) == (208, 126)
        assert framed(screen, BLUE) is None


def test_tray_that_ends_takes_the_icons_along_and_leaves_none_on_the_screen(screen: Desktop) -> None:
    with scripted_guest(screen, "work", BLUE) as guest:
        with tray(screen):
            docked(guest, 1, 0xFFFFFF)
            icon_of(screen, BLUE)
        screen.wait(lambda: framed(screen, BLUE) is None, "an icon is left where the tray was")
        guest.window(2, Rect(300, 300, 200, 100), 0x204060)
        screen.window(r"^\[work\]")
