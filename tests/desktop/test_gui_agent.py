"""Programs of a guest, on the host's screen: two real X servers, the real agent, the real host, and no machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.testing.desktop import Desktop, Picture, Window, desktop
from insula.testing.gui_guest import RealGuest, agent_of, program, real_agent, real_guest, shown_by_host

pytestmark = pytest.mark.desktop

BLUE, RED = 0x3465A4, 0xCC0000

EDITOR = """\
import sys
from PySide6.QtWidgets import QApplication, QMainWindow, QPlainTextEdit
app = QApplication([])
window = QMainWindow()
window.setWindowTitle("Editor")
text = QPlainTextEdit("from the guest")
text.setCursorWidth(0)
text.textChanged.connect(lambda: print(ascii(text.toPlainText()), flush=True))
window.setCentralWidget(text)
menu = window.menuBar().addMenu("File")
menu.addAction("Open", lambda: print("opened", flush=True))
menu.addAction("Quit", app.quit)
window.setGeometry(60, 60, 420, 260)
window.show()
print("shown", flush=True)
app.exec()
"""

PAINTER = """\
from PySide6.QtCore import QTimer
from PySide6.QtGui import QColor, QPainter
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication([])
class Painter(QWidget):
    number = 0
    def paintEvent(self, event):
        self.number += 1
        QPainter(self).fillRect(self.rect(), QColor(self.number & 255, 100, 200))
window = Painter()
window.setWindowTitle("Painter")
window.resize(800, 600)
timer = QTimer()
timer.timeout.connect(window.update)
timer.start(0)
window.show()
QTimer.singleShot(2000, lambda: print(window.number, flush=True))
app.exec()
"""


DIALOG = """\
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QApplication, QDialog, QPushButton, QWidget
app = QApplication(["plan", "-name", "sheet"])
app.setApplicationName("Plan")
class Main(QWidget):
    def mousePressEvent(self, event):
        print("clicked", flush=True)
window = Main()
window.setWindowTitle("Main")
window.setGeometry(60, 60, 420, 260)
dialog = QDialog(window)
dialog.setWindowTitle("Question")
dialog.setWindowModality(Qt.WindowModality.WindowModal)
dialog.resize(200, 100)
button = QPushButton("Answer", dialog)
button.setGeometry(0, 0, 200, 100)
button.clicked.connect(lambda: (print("answered", flush=True), dialog.accept()))
window.show()
QTimer.singleShot(500, dialog.open)
app.exec()
"""

WISHES = """\
import os, sys
import xcffib, xcffib.xproto as x
connection = xcffib.connect(os.environ["DISPLAY"])
core, screen = connection.core, connection.get_setup().roots[0]
def atom(name):
    return core.InternAtom(False, len(name), name).reply().atom
def window(name):
    made = connection.generate_id()
    core.CreateWindow(24, made, screen.root, 0, 0, 300, 200, 0, 1, screen.root_visual, x.CW.BackPixel, [0x204060])
    core.ChangeProperty(0, made, x.Atom.WM_NAME, x.Atom.STRING, 8, len(name), name)
    hints = [64, 0, 0, 0, 0, 0, 0, 0, leader or made]
    core.ChangeProperty(0, made, x.Atom.WM_HINTS, x.Atom.WM_HINTS, 32, 9, hints)
    return made
def ask(window, kind, *numbers):
    data = x.ClientMessageData.synthetic([*numbers, *[0] * (5 - len(numbers))], "IIIII")
    event = x.ClientMessageEvent.synthetic(32, window, atom(kind), data)
    core.SendEvent(False, screen.root, x.EventMask.SubstructureRedirect | x.EventMask.SubstructureNotify, event.pack())
leader = 0
leader = window("First")
second = window("Second")
palette = window("Palette")
core.ChangeProperty(0, palette, x.Atom.WM_TRANSIENT_FOR, x.Atom.WINDOW, 32, 1, [screen.root])
kind = [atom("_NET_WM_WINDOW_TYPE_UTILITY")]
core.ChangeProperty(0, palette, atom("_NET_WM_WINDOW_TYPE"), x.Atom.ATOM, 32, 1, kind)
for each in (leader, second):
    core.MapWindow(each)
    connection.flush()
wishes = {
    "palette": lambda: core.MapWindow(palette),
    "attention": lambda: ask(leader, "_NET_WM_STATE", 1, atom("_NET_WM_STATE_DEMANDS_ATTENTION")),
    "calm": lambda: ask(leader, "_NET_WM_STATE", 0, atom("_NET_WM_STATE_DEMANDS_ATTENTION")),
    "icon": lambda: ask(leader, "WM_CHANGE_STATE", 3),
}
for line in sys.stdin:
    wishes[line.strip()]()
    connection.flush()
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


@pytest.fixture
def guest(screen: Desktop) -> Iterator[RealGuest]:
    with real_guest(screen, "work", BLUE) as made:
        yield made
    screen.wait(lambda: not screen.windows(r"\[work\]"), "the window stays")


def place_of(window: Window) -> Rect:
    return WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))


def part(picture: Picture, place: Rect) -> Picture:
    return picture.part(place.x, place.y, place.width, place.height)


def wait_equal(screen: Desktop, guest: RealGuest, title: str) -> Rect:
    """Wait until the host shows of that window what the guest's X server has, pixel by pixel; return its place."""
    screen.park()
    places: list[Rect] = []

    def is_equal() -> bool:
        places[:] = [place_of(screen.window(title))]
        [inside] = guest.inside.windows(title.rpartition(r"\] ")[2])
        there = Rect(inside.x, inside.y, inside.width, inside.height)
        theirs = part(guest.inside.picture(), there)
        return theirs.difference(part(screen.picture(), places[0])) == 0.0 and theirs.width == places[0].width

    screen.wait(is_equal, "the host's picture is not the guest's")
    return places[0]


def test_program_looks_on_the_host_as_in_the_guest_in_its_qubes_frame(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, EDITOR):
        place = wait_equal(screen, guest, r"\[work\] Editor")
        assert place == Rect(60, 60, 420, 260)
        picture = screen.picture()
        corners = [
            (place.x - 1, place.y - 1),
            (place.right, place.y - 1),
            (place.x - 1, place.bottom),
            (place.right, place.bottom),
        ]
        assert [picture.pixel(*corner) for corner in corners] == [BLUE] * 4


def test_typing_clicking_and_menus_work(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, EDITOR) as editor:
        place = wait_equal(screen, guest, r"\[work\] Editor")
        assert editor.stdout is not None
        assert editor.stdout.readline() == "shown\n"
        screen.click(place.x + 300, place.y + 150)
        screen.type("Az")
        while editor.stdout.readline() != "'from the guestAz'\n":
            pass
        screen.click(place.x + 20, place.y + 10)

        def menu_is_open() -> bool:
            # Its frame is in the qube's colour, within the window's content.
            return part(screen.picture(), Rect(place.x, place.y + 25, 150, 120)).share(BLUE) > 0.05

        screen.wait(menu_is_open, "no menu with a frame")
        screen.key("Down", "Return")
        assert editor.stdout.readline() == "opened\n"
        screen.wait(lambda: not menu_is_open(), "the menu stays")


def test_icon_of_a_program_is_the_windows_in_the_qubes_colour(screen: Desktop, guest: RealGuest) -> None:
    """MC-40."""
    icon = "window.setWindowIcon(QIcon(QPixmap.fromImage(image)))"
    image = "image = QImage(200, 200, QImage.Format.Format_ARGB32); image.fill(QColor(250, 250, 20))"
    imports = "from PySide6.QtGui import QColor, QIcon, QImage, QPixmap"
    with program(guest, EDITOR.replace("window.show()", f"{imports}\n{image}\n{icon}\nwindow.show()")):
        number = screen.window(r"\[work\] Editor").number

        def icon_colour() -> int:
            words = subprocess.run(
                ["xprop", "-id", str(number), "-f", "_NET_WM_ICON", "32c", "-notype", "_NET_WM_ICON"],
                env=screen.environment, check=True, stdout=subprocess.PIPE, text=True,
            ).stdout.split(",")  # fmt: skip
            return int(words[len(words) // 2]) & 0xFFFFFF

        screen.wait(lambda: icon_colour() != BLUE, "it has no icon of its own")
        colour = icon_colour()
        assert colour & 0xFF > colour >> 16  # more blue than red


def test_window_the_user_makes_larger_is_drawn_larger_by_its_program(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, EDITOR):
        wait_equal(screen, guest, r"\[work\] Editor")
        for width, height in ((608, 426), (308, 226), (708, 526)):
            screen.do("windowsize", "--sync", screen.window(r"\[work\] Editor").number, width, height)
            place = wait_equal(screen, guest, r"\[work\] Editor")
            assert (place.width, place.height) == (width - 8, height - 26)


def test_text_goes_from_a_program_of_one_qube_to_one_of_another_by_the_users_keys_alone(screen: Desktop) -> None:
    with (
        shown_by_host(screen, [("work", BLUE), ("mail", RED)]) as (host, lines),
        real_agent(lines[0], host) as work,
        real_agent(lines[1], host) as mail,
        program(work, EDITOR) as source,
        program(mail, EDITOR.replace("from the guest", "to: ").replace("60, 60", "520, 360")) as target,
    ):
        for editor in (source, target):
            assert editor.stdout is not None
            assert editor.stdout.readline() == "shown\n"
        for guest, title in ((mail, r"\[mail\] Editor"), (work, r"\[work\] Editor")):
            place = wait_equal(screen, guest, title)
            screen.click(place.x + 200, place.y + 150)
        screen.key("ctrl+a", "ctrl+c")

        def is_copied() -> bool:
            # The program may not have seen the first keys yet: a user who was too quick presses again.
            screen.key("ctrl+shift+c")
            time.sleep(0.5)
            return "clipboard: 14 bytes copied from work" in host.said()

        screen.wait(is_copied, "nothing was copied")
        place = place_of(screen.window(r"\[mail\] Editor"))
        screen.click(place.x + 200, place.y + 150)
        screen.key("ctrl+shift+v")
        screen.wait(lambda: "14 bytes pasted from work into mail" in host.said(), "nothing was pasted")
        assert "from the guest" not in host.said()

        def is_pasted() -> bool:
            # The guest tells nobody when it has the text: a user who was too quick presses again.
            screen.key("ctrl+End", "ctrl+v")
            return mail.inside.picture().difference(before) > 0.0

        screen.park()
        before = mail.inside.picture()
        screen.wait(is_pasted, "the text did not arrive")
        assert target.stdout is not None
        assert target.stdout.readline().startswith("'to: from the guest")
        screen.key("ctrl+shift+v")
        screen.wait(lambda: "there is nothing to paste" in host.said(), "it was pasted twice")


SLOW = """\
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QLineEdit
app = QApplication([])
line = QLineEdit()
line.setWindowTitle("Slow")
line.setGeometry(60, 60, 300, 100)
line.textChanged.connect(lambda: QTimer.singleShot(600, lambda: app.clipboard().setText("a slow text")))
line.show()
print("shown", flush=True)
app.exec()
"""


def test_program_that_is_slow_to_copy_is_waited_for(screen: Desktop) -> None:
    with (
        shown_by_host(screen, [("work", BLUE)]) as (host, [line]),
        real_agent(line, host) as work,
        program(work, SLOW) as slow,
    ):
        assert slow.stdout is not None
        assert slow.stdout.readline() == "shown\n"
        place = wait_equal(screen, work, r"\[work\] Slow")
        screen.click(place.x + 50, place.y + 50)
        screen.key("z", "ctrl+shift+c")
        screen.wait(lambda: "11 bytes copied from work" in host.said(), "nothing was copied")
        assert "nothing was copied" not in host.said()


def test_program_that_draws_without_end_is_shown_at_the_screens_pace(screen: Desktop, guest: RealGuest) -> None:
    """MC-43."""
    with program(guest, PAINTER) as painter:
        screen.window(r"\[work\] Painter")
        assert painter.stdout is not None
        drawn = int(painter.stdout.readline())
        assert drawn > 30
        colours = set()
        for _ in range(20):
            time.sleep(0.05)
            colours.add(screen.picture().pixel(500, 400))
        assert len(colours) > 10


def test_program_that_ends_has_no_window_any_more(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, EDITOR):
        wait_equal(screen, guest, r"\[work\] Editor")
    screen.wait(lambda: not screen.windows(r"\[work\]"), "its window stays")
    assert guest.agent.poll() is None


def about(screen: Desktop, window: Window, name: str) -> str:
    """A property of a window of the host, as text."""
    words = ["xprop", "-id", str(window.number), "-notype", name]
    told = subprocess.run(words, env=screen.environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.split("[=#]", told, maxsplit=1)[-1].strip()


def owner_of(screen: Desktop, window: Window) -> int:
    return int(about(screen, window, "WM_TRANSIENT_FOR"), 16)


def test_dialog_belongs_to_its_window_which_waits_for_it(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, DIALOG) as plan:
        assert plan.stdout is not None
        main = screen.window(r"\[work\] Main")
        question = screen.window(r"\[work\] Question")
        assert about(screen, main, "WM_CLASS") == '"work:sheet", "work:Plan"'
        assert owner_of(screen, question) == main.number
        assert "_NET_WM_WINDOW_TYPE_DIALOG" in about(screen, question, "_NET_WM_WINDOW_TYPE")
        assert "_NET_WM_STATE_MODAL" in about(screen, question, "_NET_WM_STATE")
        screen.do("windowmove", "--sync", question.number, main.x + 100, main.y + 120)
        place = wait_equal(screen, guest, r"\[work\] Question")
        screen.click(main.x + 30, main.y + 60)
        screen.click(place.x + 50, place.y + 50)
        assert plan.stdout.readline() == "answered\n"
        screen.wait(lambda: not screen.windows(r"\[work\] Question"), "the dialog stays")
        screen.click(main.x + 30, main.y + 60)
        assert plan.stdout.readline() == "clicked\n"


def test_what_programs_ask_of_their_window_manager_is_told_to_the_desktops(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, WISHES) as wisher:
        assert wisher.stdin is not None

        def wish(what: str) -> None:
            assert wisher.stdin is not None
            wisher.stdin.write(f"{what}\n")
            wisher.stdin.flush()

        first, second = screen.window(r"\[work\] First"), screen.window(r"\[work\] Second")
        screen.activate(second.number)
        wish("palette")
        palette = screen.window(r"\[work\] Palette")
        assert owner_of(screen, palette) == second.number
        assert "_NET_WM_WINDOW_TYPE_UTILITY" in about(screen, palette, "_NET_WM_WINDOW_TYPE")
        wish("attention")
        attention = "_NET_WM_STATE_DEMANDS_ATTENTION"
        screen.wait(lambda: attention in about(screen, first, "_NET_WM_STATE"), "it does not ask for attention")
        wish("calm")
        screen.activate(first.number)
        screen.wait(lambda: attention not in about(screen, first, "_NET_WM_STATE"), "it asks for attention for ever")
        wish("icon")
        screen.wait(lambda: not screen.windows(r"\[work\] First"), "it was not minimised")
        screen.do("windowactivate", first.number)
        screen.window(r"\[work\] First")


def test_users_close_reaches_the_program(screen: Desktop, guest: RealGuest) -> None:
    with program(guest, EDITOR) as editor:
        wait_equal(screen, guest, r"\[work\] Editor")
        screen.activate(screen.window(r"\[work\]").number)
        screen.key("alt+F4")
        assert editor.wait(120) == 0


def test_windows_come_back_with_the_next_host_and_agent(screen: Desktop) -> None:
    """MC-47: the process that shows windows was killed; programs go on, and nothing is shown without its frame."""
    with desktop(1000, 700, window_manager=None) as inside:
        with (
            shown_by_host(screen, [("work", BLUE)]) as (host, [line]),
            agent_of(inside, line, host) as guest,
            contextlib.ExitStack() as later,
        ):
            editor = later.enter_context(program(guest, EDITOR))
            wait_equal(screen, guest, r"\[work\] Editor")
            os.kill(host.pids[0], signal.SIGKILL)
            screen.wait(lambda: not screen.windows(r"\[work\]"), "the window stays")
            assert guest.agent.wait(120) != 0
            later_on = later.pop_all()
        with later_on, shown_by_host(screen, [("work", BLUE)]) as (host, [line]), agent_of(inside, line, host) as guest:
            place = wait_equal(screen, guest, r"\[work\] Editor")
            screen.click(place.x + 300, place.y + 150)
            screen.type("z")
            assert editor.stdout is not None
            assert editor.stdout.readline() == "shown\n"
            assert editor.stdout.readline() == "'from the guestz'\n"
    screen.wait(lambda: not screen.windows(r"\[work\]"), "the window stays")


def test_host_that_goes_ends_the_agent_and_leaves_the_programs(screen: Desktop) -> None:
    with real_guest(screen, "work", BLUE) as guest, program(guest, EDITOR) as editor:
        wait_equal(screen, guest, r"\[work\] Editor")
        guest.host.process.kill()
        assert guest.agent.wait(120) != 0
        assert editor.poll() is None
        assert guest.inside.windows("Editor")
