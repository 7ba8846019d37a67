"""Windows of a guest on a Wayland compositor without a screen: no pixels to look at, but what is said can be heard."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from insula.gui.geometry import Rect
from insula.testing.desktop import Desktop
from insula.testing.gui_guest import ScriptedGuest, scripted_guest
from insula_proto import gui

pytestmark = pytest.mark.desktop

SOCKET = "wayland-test"
PLACE = Rect(100, 100, 400, 300)


class Wayland(Desktop):
    def __init__(self, runtime: Path) -> None:
        super().__init__("", Path("/nonexistent"))
        self._runtime = runtime

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("QT_", "DISPLAY", "DBUS_"))}
        return {**kept, "XDG_RUNTIME_DIR": str(self._runtime), "WAYLAND_DISPLAY": SOCKET}


@pytest.fixture
def guest() -> Iterator[ScriptedGuest]:
    with tempfile.TemporaryDirectory(prefix="insula-wayland-") as folder:
        runtime = Path(folder)
        weston = subprocess.Popen(
            ["weston", "--backend=headless-backend.so", f"--socket={SOCKET}", f"--log={folder}/log"],
            env={**os.environ, "XDG_RUNTIME_DIR": folder},
            stderr=subprocess.DEVNULL,
        )
        try:
            screen = Wayland(runtime)
            screen.wait((runtime / SOCKET).exists, "no compositor")
            # Under a root daemon the process is of another user.
            runtime.chmod(0o711)
            (runtime / SOCKET).chmod(0o777)
            with scripted_guest(screen, "work", 0x3465A4) as made:
                yield made
        finally:
            weston.terminate()
            weston.wait(120)


def test_window_is_painted_resized_and_gone_in_its_sandbox(guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, 0x30C040)
    guest.wait_for(gui.Painted(1))
    for colour in range(20):
        guest.fill(1, colour)
        guest.say(gui.Damage(1, 0, 0, 400, 300))
        guest.wait_for(gui.Painted(1))
    guest.say(gui.Title(1, b"another"), gui.Configure(1, 0, 0, 500, 350))
    guest.picture(1, 500, 350, 0xFF)
    guest.wait_for(gui.Painted(1))
    assert "Seccomp:\t2" in Path("/proc", str(guest.pid), "status").read_text()
    guest.say(gui.Destroy(1))
    guest.wait_for(gui.Destroy(1))
    assert guest.process.poll() is None


def test_window_that_belongs_to_another_one_is_painted_too(guest: ScriptedGuest) -> None:
    guest.window(1, PLACE, 0x30C040)
    guest.wait_for(gui.Painted(1))
    guest.window(2, Rect(150, 150, 100, 100), 0xFF0000, popup=True, parent=1)
    guest.wait_for(gui.Painted(2))
    guest.say(gui.Unmap(1), gui.Destroy(1))
    guest.wait_for(gui.Destroy(1))
    assert guest.hang_up() == 0
