"""What ``make run`` shows last: an application of each qube on one desktop, each in the colour of its qube.

On a machine with a display the windows open there and stay. On one without, a virtual X server with a light window
manager is started, and a picture of it is kept: its path is printed. ``--picture FILE``: keep it there as well.

The qubes must be there; they are started if they are off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import xcffib
import xcffib.xproto

from insula.daemon.paths import Paths
from insula.gui.spawn import NoDesktop, view
from insula.model.desktop import desktop_of
from insula.testing.desktop import Desktop, desktop

WIDTH, HEIGHT = 1520, 960
COLUMNS, ROWS = 2, 2
PLACE_WIDTH, PLACE_HEIGHT = WIDTH // COLUMNS, HEIGHT // ROWS
GAP, BAR = 16, 24
"""Pixels around a window; of the window manager's own bar."""
SLACK = 2 * BAR
"""Pixels a window may be off its place: its frames and bars."""
ARRANGEMENTS = 3
"""How often windows are put where they belong."""
GROUND = 0x2B3A4A
SHOWN_TIMEOUT_S = 180.0
"""For the last window to be shown: seconds, a minute on a busy machine under software emulation."""
STILL_S = 3.0
"""Nothing changes any more for that long: programs have drawn themselves."""
STILL_TIMEOUT_S = 60.0
POLL_S = 0.2

INSULA = str(Path(sys.executable).with_name("insula"))

PAGE = """\
<title>A stranger's page</title><body bgcolor="#fff8f0"><h1>You have won!</h1>
<p>Run this program to get your prize. <p>(It finds a machine with nothing in it.)
"""
PREPARE = {
    "work": "mkdir -p ~/Reports; cd ~/Reports; for n in budget minutes offer plan; do echo $n >$n.txt; done",
    "personal": "printf 'Dear Ada,\\n\\nno other qube sees what is written here.\\n' >~/letter.txt",
    "untrusted": f"cat >~/page.html <<'END'\n{PAGE}END",
    "vault": "umask 077; mkdir -p ~/keys; for n in bank mail; do echo $n >~/keys/$n.key; done",
}
"""A shell line for each qube: something for its application to show."""


APPLICATIONS: Mapping[str, list[str]] = {
    "work": ["xfe", "/home/user/Reports"],
    "personal": ["xfwrite", "/home/user/letter.txt"],
    "untrusted": ["dillo", "-g", "760x420", "/home/user/page.html"],
    "vault": [
        *("xterm", "-geometry", "84x18", "-e", "sh", "-c"),
        "echo 'No network here:'; ip -brief address; echo; ls -l ~/keys; exec bash",
    ],
}
"""The command of each qube."""


def insula(environment: Mapping[str, str], *words: str) -> None:
    """:raise subprocess.CalledProcessError: it said why."""
    subprocess.run([INSULA, *words], check=True, env=environment, stdin=subprocess.DEVNULL)


def open_all(environment: Mapping[str, str]) -> dict[str, subprocess.Popen[bytes]]:
    opened = {}
    for qube, command in APPLICATIONS.items():
        insula(environment, "run", "--shell", qube, PREPARE[qube])
        opened[qube] = subprocess.Popen(
            [INSULA, "run", "--gui", qube, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return opened


def paint_ground(screen: Desktop) -> None:
    connection = xcffib.connect(screen.display)
    root = connection.get_setup().roots[0].root
    connection.core.ChangeWindowAttributesChecked(root, xcffib.xproto.CW.BackPixel, [GROUND]).check()
    connection.core.ClearAreaChecked(False, root, 0, 0, 0, 0).check()
    connection.disconnect()


def wait_until_shown(screen: Desktop, opened: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """:raise TimeoutError: :raise RuntimeError: an application ended."""
    end = time.monotonic() + SHOWN_TIMEOUT_S
    while missing := [qube for qube in opened if not screen.windows(rf"^\[{qube}\]")]:
        for qube in missing:
            if (code := opened[qube].poll()) is not None:
                raise RuntimeError(f"the application of {qube} ended with {code}")
        if time.monotonic() > end:
            raise TimeoutError(f"no window of {', '.join(missing)} after {SHOWN_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def place(number: int) -> tuple[int, int]:
    """Where the window of a qube is to be, of those in a row by number."""
    return number % COLUMNS * PLACE_WIDTH + GAP, number // COLUMNS * PLACE_HEIGHT + GAP + BAR


def arrange(screen: Desktop, qubes: Iterable[str]) -> None:
    """Side by side, as the user might."""
    for number, qube in enumerate(qubes):
        for window in screen.windows(rf"^\[{qube}\]"):
            screen.do("windowsize", window.number, PLACE_WIDTH - 2 * GAP, PLACE_HEIGHT - 2 * GAP - BAR)
            screen.do("windowmove", window.number, *place(number))


def is_arranged(screen: Desktop, qubes: Iterable[str]) -> bool:
    """A window that was just shown may still have been put elsewhere by the window manager, or by its application."""
    windows = [
        (window, place(number)) for number, qube in enumerate(qubes) for window in screen.windows(rf"^\[{qube}\]")
    ]
    return all(abs(window.x - x) <= SLACK and abs(window.y - y) <= SLACK for window, (x, y) in windows)


def wait_until_still(screen: Desktop) -> None:
    """Return when nothing changes any more, or after a while: a cursor may blink for ever."""
    end = time.monotonic() + STILL_TIMEOUT_S
    last, since = screen.picture(), time.monotonic()
    while time.monotonic() < min(end, since + STILL_S):
        time.sleep(POLL_S)
        now = screen.picture()
        if now.data != last.data:
            last, since = now, time.monotonic()


def show_on_virtual_screen(pictures: list[Path]) -> None:
    with desktop(WIDTH, HEIGHT) as screen:
        paint_ground(screen)
        opened = open_all({**os.environ, **screen.environment})
        try:
            wait_until_shown(screen, opened)
            screen.park()
            for _ in range(ARRANGEMENTS):
                arrange(screen, opened)
                wait_until_still(screen)
                if is_arranged(screen, opened):
                    break
            for path in pictures:
                screen.picture().save(path)
        finally:
            for process in opened.values():
                process.terminate()
                process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", type=Path, help="keep the picture of the virtual screen there as well")
    arguments = parser.parse_args()
    here = desktop_of(os.environ)
    try:
        view(here)
    except NoDesktop as reason:
        kept = Paths.from_environment().data / "desktop.png"
        print(f"    {reason}; on a virtual screen", flush=True)
        show_on_virtual_screen([kept, *([arguments.picture] if arguments.picture else [])])
        print(f"    a picture of it: {kept}")
    else:
        open_all(os.environ)
        print("    the windows open on your desktop; closing the last one of a qube leaves the qube running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
