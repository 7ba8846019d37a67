"""A qube that boots by itself, from a disk of the user's, without agent: started, seen, typed into, ended (MC-49).

Its system is thirty bytes in the boot sector of its disk: they fill the screen with red, and after any key with green.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.model.errors import QubesVMNotHaltedError
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, Picture, desktop

pytestmark = [pytest.mark.vm, pytest.mark.desktop]

NAME = "test-own"
PURPLE = 0x75507B
RED, GREEN = 0xA80000, 0x00A800
"""Colours 4 and 2 of a VGA card."""
MEMTEST_BLUE = 0x0000A8
"""Colour 1 of a VGA card in text mode: the ground of what is on the CD."""
CD = Path("/usr/lib/memtest86+/memtest86+x64.iso")
"""Of Debian's package memtest86+."""
PATIENCE_S = 90.0
SECTOR = 512
DISK = 1 << 20
SYSTEM = bytes.fromhex(
    "b8 1300"  # mov ax, 0x13
    "cd 10"  # int 0x10: 320 x 200, a byte for each pixel
    "68 00a0"  # push 0xa000
    "07"  # pop es
    "b3 04"  # mov bl, 4
    # fill:
    "31 ff"  # xor di, di
    "b9 00fa"  # mov cx, 64000
    "88 d8"  # mov al, bl
    "f3 aa"  # rep stosb
    "31 c0"  # xor ax, ax
    "cd 16"  # int 0x16: wait for a key
    "b3 02"  # mov bl, 2
    "eb ef"  # jmp fill
)
BOOT_SECTOR = SYSTEM.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


async def image() -> AsyncIterator[bytes]:
    yield BOOT_SECTOR.ljust(DISK, b"\0")


async def until(is_so: Callable[[], bool], otherwise: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(otherwise) from None


def part(picture: Picture, rect: Rect) -> Picture:
    return picture.part(rect.x, rect.y, rect.width, rect.height)


def place_of(screen: Desktop) -> Rect | None:
    for window in screen.windows(rf"^\[{NAME}\] screen"):
        return WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))
    return None


async def shows(screen: Desktop, colour: int) -> Rect:
    """Wait until the whole of its screen has that colour, within its frame."""
    screen.park()
    places: list[Rect] = []

    def is_filled() -> bool:
        place = place_of(screen)
        places[:] = [] if place is None else [place]
        return place is not None and part(screen.picture(), place).share(colour) > 0.99 and is_framed(place)

    def is_framed(place: Rect) -> bool:
        outer, picture = WINDOW_FRAME.around(place), screen.picture()
        sides = Rect(outer.x, outer.y, 4, outer.height), Rect(outer.x, place.bottom, outer.width, 4)
        # (A window that has not been placed yet is partly off the screen.)
        return outer.x >= 0 and all(part(picture, side).share(PURPLE) == 1.0 for side in sides)

    await until(is_filled, f"its screen is not {colour:#08x}, framed")
    return places[0]


async def test_system_of_the_users_own_is_started_seen_typed_into_and_ended() -> None:
    with desktop(1000, 700) as screen:
        async with DaemonProcess() as daemon:
            client, shown_on = daemon.client, {"DISPLAY": screen.display}
            await client.create_qube("StandaloneVM", NAME, "purple", template="")
            await client.set_property("kernel", "", NAME)
            await client.set_property("netvm", "", NAME)
            await client.set_property("memory", "64", NAME)
            await client.volume_import(NAME, "root", image(), DISK)
            await client.start(NAME)
            await client.show_windows(NAME, shown_on)
            place = await shows(screen, RED)
            screen.click(place.x + 20, place.y + 20)
            window = screen.window(rf"^\[{NAME}\]").number
            await until(lambda: screen.focused() == window, "its window has no focus")
            screen.key("a")
            await shows(screen, GREEN)

            # Its screen comes back with the next daemon, which finds the machine running.
            daemon.kill()
            await until(lambda: place_of(screen) is None, "its window outlives what showed it")
            await daemon.start()
            await client.show_windows(NAME, shown_on)
            await shows(screen, GREEN)

            await client.kill(NAME)
            await until(lambda: place_of(screen) is None, "its window stays")

            # Another system from a CD, before that of its disk.
            await client.start(NAME, cd=CD)
            with pytest.raises(QubesVMNotHaltedError, match="a CD is put in"):
                await client.start(NAME, cd=CD)
            await client.show_windows(NAME, shown_on)

            def is_testing_memory() -> bool:
                place = place_of(screen)
                return place is not None and part(screen.picture(), place).share(MEMTEST_BLUE) > 0.5

            await until(is_testing_memory, "the CD's system is not seen")
            await client.kill(NAME)
            await client.remove(NAME)
