"""The prompt on a real screen: what is typed and clicked when, and what is seen (MC-24, MC-32, MC-40).

Places are counted from the edges of the window, as its layout has them.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from insula.manager.prompt import ARM_DELAY_S
from insula.model.labels import BUILTIN_LABELS
from insula.policy import agent
from insula.policy.agent import Notice, Question, Resolution
from insula.testing.desktop import Desktop, Picture, Window, desktop

pytestmark = pytest.mark.desktop

TITLE = "^Insula asks$"
WAIT_S = 20.0
RED = BUILTIN_LABELS["red"].color
YELLOW = BUILTIN_LABELS["yellow"].color
ICONS = {
    "untrusted": "appvm-red",
    "personal": "appvm-yellow",
    "vault": "appvm-black",
    "work": "appvm-blue",
    "@dispvm:web": "dispvm-orange",
}
QUESTION = Question("untrusted", "qubes.Filecopy", "+", ("personal", "vault", "work", "@dispvm:web"), "work", ICONS)
MANY = Question(
    "personal", "qubes.Gpg", "+", ("finance", "mail", "personal-web", "shop", "vault", "web", "work"), None, ICONS
)
MARK = "0123456789abcdef\n"
OTHER_MARK = "fedcba9876543210\n"

OTHER_WINDOW = """\
import sys
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication([])
window = QWidget()
window.setWindowTitle("another window")
window.setPalette(QPalette(QColor("#00ff00")))
window.setGeometry(*map(int, sys.argv[1:5]))
window.show()
app.exec()
"""


class Asking:
    """The caller's end of a question."""

    def __init__(self, path: Path, request: agent.Request) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(WAIT_S)
        self._connection.connect(str(path))
        self._connection.sendall(agent.encode(request))
        self._connection.shutdown(socket.SHUT_WR)

    def answer(self) -> bytes:
        return self._connection.recv(100)

    @property
    def is_open(self) -> bool:
        """No answer so far."""
        self._connection.setblocking(False)
        try:
            return self._connection.recv(100, socket.MSG_PEEK) is None
        except BlockingIOError:
            return True
        finally:
            self._connection.settimeout(WAIT_S)

    def close(self) -> None:
        self._connection.close()


class Prompt:
    """The program, as a process on a screen."""

    def __init__(self, screen: Desktop, folder: Path, stack: ExitStack, **environment: str) -> None:
        self.screen = screen
        self._stack = stack
        self._socket = folder / "run" / "policy-agent.sock"
        self._environment = {
            **screen.environment,
            "INSULA_DATA_DIR": str(folder / "data"),
            "INSULA_RUNTIME_DIR": str(folder / "run"),
            **environment,
        }
        self.process = self.start([sys.executable, "-m", "insula.cli.main", "prompt"])
        screen.wait(self._socket.exists, "no socket")

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=self._environment)

        def end() -> None:
            process.terminate()
            process.wait(WAIT_S)

        self._stack.callback(end)
        return process

    def ask(self, request: agent.Request = QUESTION) -> Asking:
        asking = Asking(self._socket, request)
        self._stack.callback(asking.close)
        return asking

    @property
    def window(self) -> Window:
        return self.screen.window(TITLE)

    def settled(self) -> Window:
        """Where the window is once nothing moves any more and the frame is painted."""
        before: list[Window] = []

        def is_settled() -> bool:
            now = self.screen.windows(TITLE)
            is_same, before[:] = now == before and bool(now), now
            return is_same and self.screen.picture().pixel(now[0].x + 2, now[0].y + now[0].height - 3) != 0

        self.screen.wait(is_settled, "no window that stays")
        return before[0]

    def allow_button(self, window: Window) -> tuple[int, int]:
        return window.x + window.width - 74, window.y + window.height - 38

    def deny_button(self, window: Window) -> tuple[int, int]:
        return window.x + window.width - 188, window.y + window.height - 38

    def row(self, window: Window, number: int, rows: int) -> tuple[int, int]:
        """The middle of a row of the list, from 0; ``rows``: how many are shown."""
        return window.x + 120, window.y + window.height - 67 - 26 * (rows - number) + 13

    def is_enabled(self, place: tuple[int, int]) -> bool:
        """Whether the text of a button is black; that of one that is disabled is grey."""
        self.screen.park()
        x, y = place
        return self.screen.picture().part(x - 30, y - 10, 60, 20).darkest < 0x60

    def armed(self) -> Window:
        window = self.settled()
        self.screen.wait(lambda: self.is_enabled(self.allow_button(window)), "the button is not enabled")
        return window

    def picture(self, window: Window) -> Picture:
        self.screen.park()
        return self.screen.picture().part(window.x, window.y, window.width, window.height)

    def cover(self, window: Window) -> Window:
        """Another window where ours is."""
        self.start([sys.executable, "-c", OTHER_WINDOW, *map(str, (window.x - 20, window.y - 20, 600, 500))])
        return self.screen.window("another window")


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1024, 768) as shown:
        yield shown


@contextlib.contextmanager
def running(screen: Desktop, folder: Path, mark: str = MARK, **environment: str) -> Iterator[Prompt]:
    for name in ("data", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "host-mark").write_text(mark)
    with ExitStack() as stack:
        screen.park()
        yield Prompt(screen, folder, stack, **environment)
        assert not stack.close()
    screen.wait(lambda: not screen.windows("Insula|another window"), "windows are left")


@pytest.fixture
def prompt(screen: Desktop, tmp_path: Path) -> Iterator[Prompt]:
    with running(screen, tmp_path) as program:
        yield program


def test_mc32_clicks_before_the_delay_is_over_do_nothing_and_begin_it_anew(prompt: Prompt) -> None:
    asking = prompt.ask()
    window = prompt.settled()
    end = time.monotonic() + 3 * ARM_DELAY_S
    while time.monotonic() < end:
        prompt.screen.click(*prompt.allow_button(window))
        time.sleep(ARM_DELAY_S / 5)  # quicker than the delay, as somebody who clicks away in a game
    assert asking.is_open
    clicked_last = time.monotonic()
    prompt.armed()
    assert time.monotonic() - clicked_last > ARM_DELAY_S / 2
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_enter_never_allows(prompt: Prompt) -> None:
    asking = prompt.ask()
    prompt.armed()
    prompt.screen.key("Return", "KP_Enter", "Tab", "Return", "Tab", "Return", "Tab", "Return")
    # Had any of these allowed, the answer would not be that of Escape.
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_mc32_typing_while_it_appears_goes_nowhere(prompt: Prompt) -> None:
    """Somebody writes a letter, with the words and keys that would choose another target and allow it."""
    typing = prompt.start(["xdotool", "type", "--delay", "20", "vault\t\t\t  \n va\t\t  " * 8])
    asking = prompt.ask()
    assert typing.wait(WAIT_S) == 0
    assert asking.is_open
    window = prompt.armed()
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_key_held_down_since_before_does_nothing(prompt: Prompt) -> None:
    prompt.screen.do("keydown", "space")
    try:
        asking = prompt.ask()
        prompt.settled()
        time.sleep(2 * ARM_DELAY_S)  # it repeats all the time
        assert asking.is_open
    finally:
        prompt.screen.do("keyup", "space")
    prompt.armed()
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_mc32_lost_focus_disarms_and_the_click_that_brings_it_back_allows_nothing(prompt: Prompt) -> None:
    asking = prompt.ask()
    window = prompt.armed()
    other = prompt.cover(window)
    prompt.screen.do("windowactivate", "--sync", other.number)
    prompt.screen.wait(lambda: not prompt.is_enabled(prompt.allow_button(window)), "it is still armed")
    prompt.screen.click(*prompt.allow_button(window))
    prompt.screen.wait(lambda: prompt.screen.focused() == window.number, "the focus did not come back")
    assert asking.is_open
    prompt.armed()
    assert asking.is_open
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:work"


def test_mc32_other_window_does_not_cover_it(prompt: Prompt) -> None:
    prompt.ask()
    window = prompt.armed()
    before = prompt.picture(window)
    other = prompt.cover(window)
    prompt.screen.do("windowactivate", "--sync", other.number)
    prompt.screen.do("windowraise", other.number)
    outside = (window.x - 10, window.y + 30)
    prompt.screen.wait(lambda: prompt.screen.picture().pixel(*outside) == 0x00FF00, "the other one is not shown")
    prompt.screen.wait(lambda: not prompt.is_enabled(prompt.allow_button(window)), "it is still armed")
    after = prompt.picture(window)
    assert after.share(0x00FF00) == 0.0
    told = (0, 0, window.width, 160)  # mark, source, what it asks: the rest shows that it is not armed
    assert after.part(*told).difference(before.part(*told)) == 0.0


def test_mc32_next_question_does_not_take_the_second_click_of_two(prompt: Prompt) -> None:
    first, second = prompt.ask(), prompt.ask()
    window = prompt.armed()
    x, y = prompt.allow_button(window)
    prompt.screen.do("mousemove", x, y, "click", "--repeat", "3", "--delay", "50", "1")
    assert first.answer() == b"allow:work"
    assert second.is_open
    # The window is smaller now, as nothing waits: the last click may have gone below it.
    window = prompt.settled()
    prompt.screen.click(window.x + 100, window.y + 20)
    window = prompt.armed()
    prompt.screen.click(*prompt.deny_button(window))
    assert second.answer() == b"deny"


def test_mc24_prompt_disappears_with_its_caller(prompt: Prompt) -> None:
    asking = prompt.ask()
    prompt.armed()
    asking.close()
    prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")


def test_deny_works_at_once_and_closing_the_window_denies(prompt: Prompt) -> None:
    asking = prompt.ask()
    prompt.screen.click(*prompt.deny_button(prompt.settled()))
    assert asking.answer() == b"deny"
    prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")
    asking = prompt.ask()
    prompt.settled()
    prompt.screen.key("alt+F4")  # which openbox takes, and asks the window to close
    assert asking.answer() == b"deny"


def test_target_chosen_by_mouse_is_the_answer(prompt: Prompt) -> None:
    asking = prompt.ask()
    window = prompt.armed()
    prompt.screen.click(*prompt.row(window, 3, 4))
    prompt.screen.click(*prompt.allow_button(window))
    assert asking.answer() == b"allow:@dispvm:web"


def test_double_click_on_a_target_chooses_and_does_not_allow(prompt: Prompt) -> None:
    asking = prompt.ask()
    window = prompt.armed()
    x, y = prompt.row(window, 1, 4)
    prompt.screen.do("mousemove", x, y, "click", "--repeat", "2", "--delay", "30", "1")
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"


def test_by_keyboard_alone_filter_choose_allow(prompt: Prompt) -> None:
    asking = prompt.ask(MANY)
    window = prompt.settled()
    status = (window.x + 22, window.y + window.height - 50, 150, 26)
    unarmed = prompt.screen.picture().part(*status)
    prompt.screen.wait(lambda: prompt.screen.picture().part(*status).difference(unarmed) > 0, "it is not armed")
    prompt.screen.type("wor")
    prompt.screen.key("Down", "Tab", "Tab", "space")
    assert asking.answer() == b"allow:work"


def test_nothing_selected_cannot_be_allowed(prompt: Prompt) -> None:
    asking = prompt.ask(MANY)
    window = prompt.settled()
    time.sleep(1.5 * ARM_DELAY_S)
    assert not prompt.is_enabled(prompt.allow_button(window))
    prompt.screen.click(*prompt.allow_button(window))
    prompt.screen.key("Tab", "Tab", "Tab", "space", "Escape")
    assert asking.answer() == b"deny"


def test_frame_has_the_colour_of_the_source_on_all_sides(prompt: Prompt) -> None:
    for question, rgb in ((QUESTION, RED), (MANY, YELLOW)):
        asking = prompt.ask(question)
        window = prompt.settled()
        picture = prompt.picture(window)
        below_mark = window.height - 58
        for part in (
            picture.part(0, 58, 6, below_mark),
            picture.part(window.width - 6, 58, 6, below_mark),
            picture.part(0, window.height - 6, window.width, 6),
        ):
            assert part.share(rgb) == 1.0
        asking.close()
        prompt.screen.wait(lambda: not prompt.screen.windows(TITLE), "it is still there")


def test_mc40_mark_is_that_of_this_computer_and_no_other(screen: Desktop, tmp_path: Path) -> None:
    pictures = []
    for number, mark in enumerate((MARK, MARK, OTHER_MARK)):
        with running(screen, tmp_path / str(number), mark) as program:
            program.ask()
            window = program.armed()
            pictures.append(program.picture(window).part(0, 0, window.width, 58))
            command = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{program.process.pid}/environ").read_bytes()
            assert mark.strip().encode() not in command + environment
    assert pictures[0].difference(pictures[1]) == 0.0
    assert pictures[0].part(16, 10, 38, 38).difference(pictures[2].part(16, 10, 38, 38)) > 0.1


def test_twice_the_pixels_where_the_screen_is_fine(screen: Desktop, tmp_path: Path) -> None:
    with running(screen, tmp_path, QT_SCALE_FACTOR="1.5") as program:
        program.ask()
        window = program.settled()
        assert window.width == 840
        assert program.picture(window).part(0, 87, 9, window.height - 87).share(RED) == 1.0


def test_notice_takes_no_focus_and_goes_by_itself(prompt: Prompt) -> None:
    other = prompt.cover(Window(0, 40, 40, 0, 0))
    prompt.screen.do("windowactivate", "--sync", other.number)
    assert prompt.ask(Notice(Resolution.DENY, "qubes.Gpg", "+", "untrusted", "vault")).answer() == b""
    notice = prompt.screen.window("^Insula$")
    assert notice.x > 600
    assert notice.y > 500
    assert prompt.screen.focused() == other.number
    prompt.screen.wait(lambda: not prompt.screen.windows("^Insula$"), "it is still there")


def test_second_program_leaves_it_to_the_first(prompt: Prompt) -> None:
    second = prompt.start([sys.executable, "-m", "insula.cli.main", "prompt"])
    assert second.wait(WAIT_S) == 0
    asking = prompt.ask()
    prompt.armed()
    prompt.screen.key("Escape")
    assert asking.answer() == b"deny"
