"""The prompt and what is around it: the daemon's labels, the broker, the screen's lock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from insula.daemon.paths import Paths
from insula.daemon.prompt_program import PromptProgram
from insula.policy.agent import Notice, Question, Resolution
from insula.testing.cli_runner import served_cli
from insula.testing.desktop import Desktop, desktop
from insula.testing.prompt_program import TITLE, WAIT_S, Asking, is_listening, running_prompt

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


async def test_question_starts_who_asks_it_again_after_a_crash_and_nobody_is_left(
    screen: Desktop, tmp_path: Path
) -> None:
    """MC-31: nobody had started a prompt. What is started is the real program, as the daemon does it."""
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.make()
    desk = PromptProgram(paths, screen.environment)
    for end in ("crash", "close"):
        await desk.open()
        asking = Asking(paths.policy_agent_socket, QUESTION)
        window = await asyncio.to_thread(screen.window, TITLE)
        assert asking.is_open
        assert desk._process is not None
        if end == "crash":
            desk._process.kill()
            await desk._process.wait()
        else:
            await desk.close()
        assert asking.answer() == b""
        asking.close()
        await asyncio.to_thread(screen.wait, lambda: not screen.windows(TITLE), f"{window} is left")
    assert not is_listening(paths.policy_agent_socket)


def test_wayland_shows_question_and_notice_without_a_complaint_of_qt(tmp_path: Path) -> None:
    """Nothing can be clicked without a screen; that the windows come and the program goes on can be seen."""
    log = tmp_path / "weston.log"
    runtime = tmp_path / "wayland"
    runtime.mkdir(mode=0o700)
    paths = {"INSULA_DATA_DIR": str(tmp_path / "data"), "INSULA_RUNTIME_DIR": str(tmp_path / "run")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("QT_", "DBUS_", "DISPLAY"))}
    environment = {**kept, **paths, "XDG_RUNTIME_DIR": str(runtime), "WAYLAND_DISPLAY": "wayland-test"}
    with contextlib.ExitStack() as stack:
        weston = ["weston", "--backend=headless-backend.so", "--socket=wayland-test", f"--log={log}"]
        process_on(stack, weston, {**kept, "XDG_RUNTIME_DIR": str(runtime)})
        wait_for((runtime / "wayland-test").exists)
        program = process_on(
            stack, [sys.executable, "-m", "insula.cli.main", "prompt"], {**environment, "WAYLAND_DEBUG": "1"}
        )
        wait_for(lambda: is_listening(tmp_path / "run" / "policy-agent.sock"))
        said = program.stderr
        assert said is not None
        patience = threading.Timer(WAIT_S, program.kill)  # then all has been said
        patience.start()
        stack.callback(patience.cancel)
        asking = Asking(tmp_path / "run" / "policy-agent.sock", QUESTION)
        read_until(said, 'set_title("Insula asks")')
        notice = Asking(
            tmp_path / "run" / "policy-agent.sock", Notice(Resolution.DENY, "qubes.Gpg", "+", "web", "vault")
        )
        assert notice.answer() == b""
        told = read_until(said, 'set_title("Insula")')
        assert "Failed" not in told
        assert asking.is_open
        assert program.poll() is None
        notice.close()
        asking.close()


def process_on(stack: contextlib.ExitStack, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def end() -> None:
        process.terminate()
        process.communicate(timeout=WAIT_S)

    stack.callback(end)
    return process


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def read_until(stream: Iterable[str], wanted: str) -> str:
    """All up to the line with ``wanted``."""
    lines = []
    for line in stream:
        lines.append(line)
        if wanted in line:
            return "".join(lines)
    raise AssertionError("".join(lines[-20:]))
