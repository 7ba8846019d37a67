"""The prompt and what is around it: the daemon's labels, the broker, the screen's lock."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.policy.agent import Question
from insula.testing.cli_runner import served_cli
from insula.testing.desktop import Desktop, desktop
from insula.testing.prompt_program import TITLE, WAIT_S, running_prompt

pytestmark = pytest.mark.desktop

QUESTION = Question("untrusted", "qubes.Gpg", "+", ("vault",), "vault", {"untrusted": "appvm-lilac"})

SCREEN_SAVER = """\
import sys
from PySide6.QtCore import ClassInfo, QCoreApplication, QObject, QSocketNotifier, Signal, Slot
from PySide6.QtDBus import QDBusConnection

@ClassInfo({"D-Bus Interface": "org.freedesktop.ScreenSaver"})
class Saver(QObject):
    ActiveChanged = Signal(bool)

    @Slot(result=bool)
    def GetActive(self):
        return active

active = sys.argv[1] == "locked"
app = QCoreApplication([])
bus = QDBusConnection.sessionBus()
saver = Saver()
everything = QDBusConnection.RegisterOption.ExportAllSlots | QDBusConnection.RegisterOption.ExportAllSignals
assert bus.registerObject("/org/freedesktop/ScreenSaver", saver, everything)
assert bus.registerService("org.freedesktop.ScreenSaver")
print("ready", flush=True)

def follow():
    global active
    line = sys.stdin.readline()
    if not line:
        app.quit()
    elif line.strip():
        active = line.strip() == "lock"
        saver.ActiveChanged.emit(active)

commands = QSocketNotifier(sys.stdin.fileno(), QSocketNotifier.Type.Read)
commands.activated.connect(lambda *_: follow())
app.exec()
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1024, 768) as shown:
        yield shown


@pytest.fixture
def bus() -> Iterator[str]:
    """Address of a session bus of its own."""
    with bus_process() as address:
        yield address


@contextlib.contextmanager
def bus_process() -> Iterator[str]:
    daemon = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
    finally:
        daemon.terminate()
        daemon.communicate()


@contextlib.contextmanager
def screen_saver(address: str, state: str) -> Iterator[subprocess.Popen[str]]:
    """A desktop that tells of its lock; lines ``lock`` and ``unlock`` change it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCREEN_SAVER, state],
        env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.communicate(timeout=WAIT_S)


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def test_label_that_the_user_made_has_its_colour(screen: Desktop, tmp_path: Path) -> None:
    with served_cli(tmp_path) as cli:
        assert cli.run("label", "create", "lilac", "0xc8a2c8").code == 0
        with running_prompt(screen, tmp_path) as prompt:
            prompt.ask(QUESTION)
            window = prompt.settled()
            corner = (window.x + 2, window.y + window.height - 3)
            screen.wait(lambda: screen.picture().pixel(*corner) == 0xC8A2C8, "the frame has another colour")


def test_without_a_daemon_that_label_is_grey_and_the_question_is_asked(screen: Desktop, tmp_path: Path) -> None:
    with running_prompt(screen, tmp_path) as prompt:
        asking = prompt.ask(QUESTION)
        window = prompt.armed()
        assert screen.picture().pixel(window.x + 2, window.y + window.height - 3) == 0x888A85
        screen.click(*prompt.allow_button(window))
        assert asking.answer() == b"allow:vault"


def test_mc31_behind_a_locked_screen_questions_are_denied(screen: Desktop, tmp_path: Path, bus: str) -> None:
    with (
        screen_saver(bus, "unlocked") as saver,
        running_prompt(screen, tmp_path, DBUS_SESSION_BUS_ADDRESS=bus) as prompt,
    ):
        shown, waiting = prompt.ask(QUESTION), prompt.ask(QUESTION)
        prompt.armed()
        tell(saver, "lock")
        assert shown.answer() == b"deny"
        assert waiting.answer() == b"deny"
        screen.wait(lambda: not screen.windows(TITLE), "it is still there")
        assert prompt.ask(QUESTION).answer() == b"deny"
        tell(saver, "unlock")
        # When it is unlocked is not told to us; until then a question is denied.
        asking = prompt.ask(QUESTION)
        while not screen.windows(TITLE):
            if not asking.is_open:
                asking = prompt.ask(QUESTION)
        screen.click(*prompt.deny_button(prompt.settled()))
        assert asking.answer() == b"deny"


def test_mc31_screen_that_is_locked_when_the_prompt_starts(screen: Desktop, tmp_path: Path, bus: str) -> None:
    with (
        screen_saver(bus, "locked"),
        running_prompt(screen, tmp_path, DBUS_SESSION_BUS_ADDRESS=bus) as prompt,
    ):
        assert prompt.ask(QUESTION).answer() == b"deny"
