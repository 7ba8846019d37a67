"""From a key press on the host to the changed window on the host's screen, and what it is against Xpra's.

The guest's side is a local process: an X server, our agent and a program that changes its whole window with each key;
no machine is around it, neither here nor there, so what is compared is the way of windows alone. The screen is read
where the X server keeps it. Xpra (Debian's package) runs at its best: on this machine, with ``--mmap``, uncompressed.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xcffib
import xcffib.xtest

import report
from insula.gui.geometry import WINDOW_FRAME
from insula.testing.desktop import Desktop, Window, desktop
from insula.testing.gui_guest import real_guest
from insula.testing.gui_painter import TITLE

SIZES = ((800, 600), (1920, 1080))
ROUNDS = 3
"""Of each, in turns: what else the machine does meets both."""
PRESSES = 40
WARM_UP = 10
BAR = 0.35
KEY = 38
PATIENCE_S = 5.0
XPRA_START_S = 40.0
_XWD_WORDS = struct.Struct(">25I")


class Screen:
    """One pixel of the screen, looked at without asking the X server."""

    def __init__(self, screen: Desktop, stack: contextlib.ExitStack) -> None:
        file = stack.enter_context(screen._frame_buffer.open("rb"))
        self._memory = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        fields = _XWD_WORDS.unpack_from(self._memory)
        self._start, self._stride = fields[0] + fields[19] * 12, fields[12]

    def is_light(self, x: int, y: int) -> bool:
        return bool(self._memory[self._start + y * self._stride + 4 * x + 1] > 128)


class Hand:
    """Presses a key by XTEST, as a keyboard would."""

    def __init__(self, screen: Desktop) -> None:
        self._connection: Any = xcffib.connect(screen.display)
        self._test = self._connection(xcffib.xtest.key)
        self._test.GetVersion(2, 2).reply()

    def press(self) -> None:
        for kind in (2, 3):
            self._test.FakeInput(kind, KEY, 0, 0, 0, 0, 0)
        self._connection.flush()


Measure = Callable[[Desktop, Window, tuple[int, int], list[int]], list[float]]
"""Given the screen, the window, the middle of its block, and the processes between its two X servers."""


def measure(screen: Desktop, window: Window, centre: tuple[int, int], processes: list[int]) -> list[float]:
    """Milliseconds of each press."""
    del processes
    screen.activate(window.number)
    screen.click(window.x + 40, window.y + 60)
    generator = random.Random(7)
    with contextlib.ExitStack() as stack:
        pixels, hand = Screen(screen, stack), Hand(screen)
        measured = []
        for _ in range(WARM_UP + PRESSES):
            time.sleep(generator.uniform(0.05, 0.1))
            before = pixels.is_light(*centre)
            start = time.perf_counter()
            hand.press()
            while pixels.is_light(*centre) == before:
                if time.perf_counter() - start > PATIENCE_S:
                    raise TimeoutError("the window does not change")
                time.sleep(0.0001)
            measured.append(1000 * (time.perf_counter() - start))
    return measured[WARM_UP:]


@contextlib.contextmanager
def painter(environment: dict[str, str], size: tuple[int, int], per_second: float | None) -> Iterator[None]:
    options = [] if per_second is None else [str(per_second)]
    process = subprocess.Popen(
        [sys.executable, "-m", "insula.testing.gui_painter", *map(str, size), *options],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait_for_block(screen: Desktop, centre: tuple[int, int], is_there: Callable[[], bool]) -> None:
    """Wait until the window is painted: the block is of one colour, noise is not."""
    screen.park()
    screen.wait(is_there, f"nothing is painted at {centre}")


def is_painted(screen: Desktop, centre: tuple[int, int]) -> bool:
    block = screen.picture().part(centre[0] - 5, centre[1] - 5, 10, 10)
    return max(block.share(0x000000), block.share(0xFFFFFF)) == 1.0


def ours(size: tuple[int, int], measure: Measure, per_second: float | None = None) -> list[float]:
    """Without ``per_second`` the window changes with each key."""
    width, height = size
    with (
        desktop(width + 120, height + 160) as screen,
        real_guest(screen, "work", 0x3465A4, width=width + 120, height=height + 160) as guest,
        painter(dict(guest.inside.environment), size, per_second),
    ):
        window = screen.window(rf"\[work\] {TITLE}")
        screen.do("windowmove", "--sync", window.number, 30, 60)
        window = screen.window(rf"\[work\] {TITLE}")
        centre = (window.x + WINDOW_FRAME.left + width // 2, window.y + WINDOW_FRAME.top + height // 2)
        wait_for_block(screen, centre, lambda: is_painted(screen, centre))
        return measure(screen, window, centre, [guest.agent.pid, *guest.host.pids])


XPRA_OPTIONS = [
    *("--mdns=no", "--pulseaudio=no", "--speaker=no", "--microphone=no", "--webcam=no", "--printing=no"),
    *("--file-transfer=no", "--notifications=no", "--dbus-launch=no", "--systemd-run=no", "--daemon=no", "--bell=no"),
    *("--system-tray=no", "--cursors=no", "--mmap=yes"),
]


@contextlib.contextmanager
def running(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


DISPLAYS = itertools.count(4000 + os.getpid() % 1000 * 10)
"""Numbers for Xpra's X servers; none is used twice, for the last one's may still be ending."""


def answers(path: Path) -> bool:
    """Whether somebody listens there: Xpra's client tries once."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def xpra(size: tuple[int, int], measure: Measure, per_second: float | None = None) -> list[float]:
    """As :func:`ours`."""
    width, height = size
    with tempfile.TemporaryDirectory(prefix="insula-xpra-") as folder, desktop(width + 120, height + 160) as screen:
        socket_path, number = Path(folder, "socket"), next(DISPLAYS)
        environment = {**screen.environment, "HOME": folder, "XDG_RUNTIME_DIR": folder, "XPRA_ALLOW_ROOT": "1"}
        server = {key: value for key, value in environment.items() if key != "DISPLAY"}
        xvfb = f"/usr/bin/Xvfb +extension Composite -screen 0 {width + 120}x{height + 160}x24 -nolisten tcp -noreset"
        start = ["xpra", "start", f":{number}", f"--xvfb={xvfb}", f"--bind={socket_path}", "--html=off", *XPRA_OPTIONS]
        with running([*start, "--exit-with-children=no"], server) as there:
            end = time.monotonic() + XPRA_START_S
            while not answers(socket_path):
                if time.monotonic() > end:
                    raise TimeoutError("xpra does not start")
                time.sleep(0.1)
            attach = ["xpra", "attach", f"socket:{socket_path}", "--opengl=no", "--encoding=rgb", "--title=@title@"]
            with (
                painter({"DISPLAY": f":{number}"}, size, per_second),
                running([*attach, *XPRA_OPTIONS], environment) as here,
            ):
                window = screen.window(f"^{TITLE}$")
                screen.do("windowmove", "--sync", window.number, 30, 60)
                window = screen.window(f"^{TITLE}$")
                centre = (window.x + width // 2, window.y + height // 2)
                wait_for_block(screen, centre, lambda: is_painted(screen, centre))
                return measure(screen, window, centre, [there.pid, here.pid])


def main() -> None:
    cases = []
    for size in SIZES:
        mine: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            mine += ours(size, measure)
            if shutil.which("xpra"):
                theirs += xpra(size, measure)
        if not theirs:
            print("xpra is not installed; nothing to compare with", file=sys.stderr)
        name = f"gui_latency_{size[0]}x{size[1]}"
        for suffix, percent in (("", 50.0), ("_p95", 95.0)):
            value = report.percentile(mine, percent)
            baseline = report.percentile(theirs, percent) if theirs else None
            is_promise = not suffix
            bar = f"median at most {BAR} times Xpra's" if is_promise else "reported"
            verdict = value <= BAR * baseline if baseline and is_promise else None
            cases.append(
                report.Case(name + suffix, value, "ms", baseline, "Xpra 3, mmap, rgb", bar, verdict, len(mine))
            )
    report.publish("gui_latency", cases)


if __name__ == "__main__":
    main()
