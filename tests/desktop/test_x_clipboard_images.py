"""Images from qube to qube: real programs, real agents that take files apart and make them, the real board."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from insula.gui.control import Configure
from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.testing.desktop import Desktop, desktop
from insula.testing.gui_guest import (
    Host,
    RealGuest,
    ScriptedGuest,
    program,
    real_agent,
    scripted_guests,
    shown_by_host,
)
from insula.testing.image_owner import IMAGE_OWNER, SIDE_X, SIDE_Y
from insula_proto import gui, limits

pytestmark = pytest.mark.desktop

BLUE, RED = 0x3465A4, 0xCC0000
TRIES = 5
COPIER = """\
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication([])
window = QWidget()
window.setWindowTitle("Copier")
window.setGeometry(40, 60, 200, 100)
window.show()
image = QImage(320, 200, QImage.Format.Format_ARGB32)
image.fill(QColor(10, 200, 30, 255))
image.setPixelColor(319, 199, QColor(250, 20, 40, 128))
app.clipboard().setImage(image)
print("copied", flush=True)
app.exec()
"""
PASTER = """\
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication([])
window = QWidget()
window.setWindowTitle("Paster")
window.setGeometry(500, 60, 200, 100)
window.show()
def look():
    image = app.clipboard().image()
    if image.isNull():
        return
    colours = [image.pixelColor(x, y).getRgb() for x, y in ((0, 0), (image.width() - 1, image.height() - 1))]
    print(image.width(), image.height(), *colours, app.clipboard().mimeData().hasText(), flush=True)
    timer.stop()
timer = QTimer()
timer.timeout.connect(look)
timer.start(100)
app.exec()
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(900, 600) as shown:
        yield shown


@contextlib.contextmanager
def two(screen: Desktop, policy: str = "allow") -> Iterator[tuple[Host, RealGuest, RealGuest]]:
    with (
        shown_by_host(screen, [("work", BLUE), ("mail", RED)], policy) as (host, [one, other]),
        real_agent(one, host, width=900, height=600) as work,
        real_agent(other, host, width=900, height=600) as mail,
    ):
        yield host, work, mail
    screen.wait(lambda: not screen.windows(r"\["), "a window stays")


def go_to(screen: Desktop, qube: str) -> None:
    window = screen.window(rf"^\[{qube}\]")
    screen.activate(window.number)
    screen.wait(lambda: screen.focused() == window.number, "it has no focus")


def copy(screen: Desktop, host: Host, qube: str, size: int) -> None:
    """Press the keys that copy; a few times, if the program or the qube is too late on a busy machine."""
    go_to(screen, qube)
    copied = f"an image of {size} bytes copied from {qube}"
    for _ in range(TRIES):
        before = host.said()
        screen.key("ctrl+shift+c")
        screen.wait(lambda was=before: host.said() != was, "the user is told nothing")  # type: ignore[misc]
        if copied in host.said():
            return
    raise AssertionError(host.said())


def wait_said(screen: Desktop, host: Host, text: str) -> None:
    screen.wait(lambda: text in host.said(), f"the user was not told {text!r}")


def test_image_of_a_program_is_pasted_into_a_program_of_another_qube(screen: Desktop) -> None:
    """MC-53, MC-54."""
    with two(screen) as (host, work, mail), program(work, COPIER) as copier, program(mail, PASTER) as paster:
        assert copier.stdout is not None
        assert paster.stdout is not None
        assert copier.stdout.readline() == "copied\n"
        screen.window(r"^\[mail\]")
        copy(screen, host, "work", 8 + 4 * 320 * 200)
        go_to(screen, "mail")
        screen.key("ctrl+shift+v")
        wait_said(screen, host, "judged: work to mail, image")
        assert paster.stdout.readline() == "320 200 (10, 200, 30, 255) (250, 20, 40, 128) False\n"
        go_to(screen, "mail")
        screen.key("ctrl+shift+v")
        wait_said(screen, host, "there is nothing to paste")


def test_image_that_a_program_hands_out_in_parts_comes_whole(screen: Desktop) -> None:
    with two(screen) as (host, work, _), program(work, IMAGE_OWNER) as copier:
        assert copier.stdout is not None
        assert copier.stdout.readline() == "copied\n"
        copy(screen, host, "work", 8 + 4 * SIDE_X * SIDE_Y)


# --- guests that lie -------------------------------------------------------------------------------------------------


def window_of(screen: Desktop, guest: ScriptedGuest, qube: str, place: Rect) -> None:
    """Give it one, and go there."""
    guest.window(1, place, 0x30C040)
    guest.wait_for(gui.Painted(1))
    click(screen, guest, qube)


def click(screen: Desktop, guest: ScriptedGuest, qube: str) -> None:
    window = screen.window(rf"\[{qube}\]")
    inner = WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))
    screen.click(inner.x + 20, inner.y + 20)
    guest.wait_for(gui.Focus(1, True))


IMAGE = gui.ClipboardImage(0, 30, 20, bytes(range(240)) * 10)


def test_image_nobody_asked_for_and_one_that_is_too_large_get_nowhere(screen: Desktop) -> None:
    """MC-51, MC-52."""
    work = Configure("work", BLUE, image_limit=100)
    with scripted_guests(screen, work, ("mail", RED)) as (host, [guest, other]):
        window_of(screen, guest, "work", Rect(50, 100, 200, 100))
        guest.say(*[IMAGE] * 5)
        screen.key("ctrl+shift+c")
        guest.wait_for(gui.ClipboardRequest(1))
        guest.say(IMAGE)
        wait_said(screen, host, "nothing was copied from work: the image of 30 x 20 has more than 100 pixels")
        window_of(screen, other, "mail", Rect(500, 100, 200, 100))
        screen.key("ctrl+shift+v")
        wait_said(screen, host, "there is nothing to paste")
        assert other.of(gui.ClipboardImage, gui.ClipboardData) == []


def test_target_that_takes_none_gets_none_and_the_largest_arrives_whole(screen: Desktop) -> None:
    """MC-52, MC-55."""
    mail = Configure("mail", RED, image_limit=0)
    with scripted_guests(screen, ("work", BLUE), mail, ("web", RED)) as (host, [work, other, web]):
        window_of(screen, work, "work", Rect(50, 100, 200, 100))
        screen.key("ctrl+shift+c")
        work.wait_for(gui.ClipboardRequest(1))
        work.say(IMAGE)
        wait_said(screen, host, "copied from work")
        window_of(screen, other, "mail", Rect(500, 100, 200, 100))
        screen.key("ctrl+shift+v")
        wait_said(screen, host, "no images may be copied or pasted there")
        assert other.of(gui.ClipboardImage) == []
        height = limits.GUI_MAX_IMAGE_PIXELS // 2048
        largest = gui.ClipboardImage(0, 2048, height, bytes(range(256)) * (8 * 4 * height))
        click(screen, work, "work")
        screen.key("ctrl+shift+c")
        work.wait_for(gui.ClipboardRequest(1))
        work.say(largest)
        wait_said(screen, host, f"an image of {8 + 8 * 1024 * 1024} bytes copied from work")
        window_of(screen, web, "web", Rect(50, 350, 200, 100))
        screen.key("ctrl+shift+v")
        web.wait_for(gui.ClipboardImage(1, 2048, height, largest.pixels))


def test_policy_that_forbids_leaves_the_target_without_a_word(screen: Desktop) -> None:
    """MC-55."""
    with scripted_guests(screen, ("work", BLUE), ("mail", RED), policy="deny") as (host, [work, mail]):
        window_of(screen, work, "work", Rect(50, 100, 200, 100))
        screen.key("ctrl+shift+c")
        work.wait_for(gui.ClipboardRequest(1))
        work.say(IMAGE)
        wait_said(screen, host, "copied from work")
        window_of(screen, mail, "mail", Rect(500, 100, 200, 100))
        screen.key("ctrl+shift+v")
        wait_said(screen, host, "policy does not let an image go from work to mail")
        assert mail.of(gui.ClipboardImage) == []
