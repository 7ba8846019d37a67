"""The prompt as a process on a screen, and the caller's end of its questions; for tests of windows.

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

from insula.policy import agent
from insula.testing.desktop import Desktop, Picture, Window

TITLE = "^Insula asks$"
WAIT_S = 60.0
LEFT_ALONE_S = 2.0
"""After a click: until the question counts again, on a busy machine."""
MARK = "0123456789abcdef\n"
"""Content of the file with the mark of the host."""

OTHER_WINDOW = """\
import sys
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QWidget
app = QApplication([])
window = QWidget()
window.setWindowTitle("another window")
window.setPalette(QPalette(QColor("#00ff00")))
window.setGeometry(*map(int, sys.argv[1:5]))
window.showFullScreen() if sys.argv[5:] else window.show()
app.exec()
"""


def is_listening(path: Path) -> bool:
    """The file is there a moment before anybody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


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


class PromptWindow:
    """The window of whatever program asks on a screen."""

    def __init__(self, screen: Desktop) -> None:
        self.screen = screen

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

    def deny_all_button(self, window: Window) -> tuple[int, int]:
        return window.x + window.width - 100, window.y + window.height - 82

    def row(self, window: Window, number: int, rows: int) -> tuple[int, int]:
        """The middle of a row of the list, from 0; ``rows``: how many are shown."""
        return window.x + 120, window.y + window.height - 111 - 26 * (rows - number) + 13

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

    def choose(self, number: int, rows: int) -> Window:
        """Select a row once the question counts, which is when nobody has clicked for a second; returns the window."""
        window = self.settled()

        def is_chosen() -> bool:
            self.screen.click(*self.row(window, number, rows))
            end = time.monotonic() + LEFT_ALONE_S
            while time.monotonic() < end:
                if self.is_enabled(self.allow_button(window)):
                    return True
            return False

        self.screen.wait(is_chosen, "no target can be chosen")
        return window


class PromptProgram(PromptWindow):
    """The program, as a process on a screen."""

    def __init__(self, screen: Desktop, folder: Path, stack: ExitStack, **environment: str) -> None:
        super().__init__(screen)
        self._stack = stack
        self._socket = folder / "run" / "policy-agent.sock"
        self._environment = {
            **screen.environment,
            "INSULA_DATA_DIR": str(folder / "data"),
            "INSULA_RUNTIME_DIR": str(folder / "run"),
            **environment,
        }
        self.process = self.start([sys.executable, "-m", "insula.cli.main", "prompt"])
        screen.wait(lambda: is_listening(self._socket), "nobody listens")

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=self._environment)

        def end() -> None:
            process.terminate()
            process.wait(WAIT_S)

        self._stack.callback(end)
        return process

    def ask(self, request: agent.Request) -> Asking:
        asking = Asking(self._socket, request)
        self._stack.callback(asking.close)
        return asking

    def cover(self, window: Window, *, is_full_screen: bool = False) -> Window:
        """Another window where ours is."""
        place = map(str, (window.x - 20, window.y - 20, 600, 500))
        self.start([sys.executable, "-c", OTHER_WINDOW, *place, *(["full"] if is_full_screen else [])])
        return self.screen.window("another window")


@contextlib.contextmanager
def running_prompt(screen: Desktop, folder: Path, mark: str = MARK, **environment: str) -> Iterator[PromptProgram]:
    for name in ("data", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "data" / "host-mark").write_text(mark)
    with ExitStack() as stack:
        screen.park()
        yield PromptProgram(screen, folder, stack, **environment)
    screen.wait(lambda: not screen.windows("Insula|another window"), "windows are left")
