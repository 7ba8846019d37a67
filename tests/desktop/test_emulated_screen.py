"""A machine without agent, as one window: a real QEMU, a real system (memtest86+), a real desktop (MC-49)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from insula.gui.control import Configure
from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.hal.driver import Machine
from insula.hal.hostinfo import probe
from insula.hal.qemu.driver import QemuDriver
from insula.testing import tiny_guest
from insula.testing.desktop import Desktop, Picture, desktop
from insula.testing.gui_guest import emulated_screen
from insula.testing.hypervisors import QemuWorld, leftovers_of

pytestmark = [pytest.mark.desktop, pytest.mark.qemu]

PURPLE = 0x75507B
MEMTEST = Path("/boot/memtest86+x64.bin")
BLUE_OF_MEMTEST, GREEN_OF_MEMTEST = 0x0000A8, 0x00A800
"""Ground of its screen, and of its title."""


@pytest.fixture
def screen() -> Iterator[Desktop]:
    with desktop(1000, 700) as shown:
        yield shown


@asynccontextmanager
async def memtest(tmp_path: Path) -> AsyncIterator[Machine]:
    assert MEMTEST.exists(), f"{MEMTEST} is missing: make setup installs it"
    world = QemuWorld(tmp_path, probe(), tiny_guest.build())
    driver = QemuDriver(probe())
    spec = replace(world.spec("windows"), kernel=MEMTEST, cmdline="nosmp keyboard=legacy", has_display=True)
    machine = await driver.define(spec)
    try:
        await machine.start_paused()
        await machine.resume()
        yield machine
    finally:
        await machine.kill()
        await driver.close()
    assert await leftovers_of(world) == []


def place_of(screen: Desktop) -> Rect:
    window = screen.window(r"\[windows\] screen")
    return WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))


def part(picture: Picture, rect: Rect) -> Picture:
    return picture.part(rect.x, rect.y, rect.width, rect.height)


async def test_system_without_agent_is_a_window_in_its_qubes_frame_with_keyboard(
    screen: Desktop, tmp_path: Path
) -> None:
    async with memtest(tmp_path) as machine:
        with await machine.open_display() as channel, emulated_screen(screen, Configure("windows", PURPLE), channel):
            screen.park()

            def runs() -> bool:
                if not screen.windows(r"\[windows\] screen"):
                    return False
                return part(screen.picture(), place_of(screen)).share(BLUE_OF_MEMTEST) > 0.4

            screen.wait(runs, "memtest86+ is not shown")
            place, picture = place_of(screen), screen.picture()
            outer = WINDOW_FRAME.around(place)
            for side in (
                Rect(outer.x, outer.y, 4, outer.height),
                Rect(place.right, outer.y, 4, outer.height),
                Rect(outer.x, place.bottom, outer.width, 4),
            ):
                assert part(picture, side).share(PURPLE) == 1.0
            before = part(picture, place)
            screen.click(place.x + 50, place.y + 50)
            window = screen.window(r"\[windows\] screen")
            screen.wait(lambda: screen.focused() == window.number, "the window has no focus")
            screen.key("F1")
            screen.park()
            # Its menu lies over the middle of the screen.
            middle = Rect(place.x + place.width // 3, place.y + place.height // 3, place.width // 3, place.height // 3)
            was = before.part(middle.x - place.x, middle.y - place.y, middle.width, middle.height)
            screen.wait(lambda: part(screen.picture(), middle).difference(was) > 0.2, "no menu for F1")


async def test_machine_that_ends_takes_its_window_with_it(screen: Desktop, tmp_path: Path) -> None:
    async with memtest(tmp_path) as machine:
        with await machine.open_display() as channel, emulated_screen(screen, ("windows", PURPLE), channel) as host:
            screen.window(r"\[windows\] screen")
            await machine.kill()
            screen.wait(lambda: "windows ended" in host.said(), "the process stays")
            assert not screen.windows(r"\[windows\]")
