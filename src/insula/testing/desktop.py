"""A real X server without a screen, a real window manager, a hand that types and clicks, and pictures of the result.

For tests of windows (marker ``desktop``)::

    with desktop() as screen:
        ...                                  # start a program with screen.environment
        window = screen.window("Insula")
        screen.click(*window.centre)
        assert screen.picture().pixel(10, 10) == 0xCC0000

Pictures are read from the server's own frame buffer (Xvfb ``-fbdir``, a file in XWD format), so they are what a person
would see, whoever drew it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WAIT_S = 60.0
"""For windows to come, go and be painted on a busy machine."""
POLL_S = 0.02
_XWD_HEADER = struct.Struct(">25I")
"""``XWDFileHeader`` of X11's ``XWDFile.h``, big-endian as Xvfb writes it."""
_XWD_COLOUR_BYTES = 12
_GEOMETRY = re.compile(r"^ *(Absolute upper-left [XY]|Width|Height): +(-?\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Picture:
    """Pixels as ``0xRRGGBB``."""

    width: int
    height: int
    data: bytes
    """Four bytes a pixel: blue, green, red, nothing; row by row."""

    def pixel(self, x: int, y: int) -> int:
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise IndexError(f"{x},{y} is outside {self.width}x{self.height}")
        start = 4 * (y * self.width + x)
        return int.from_bytes(self.data[start : start + 3], "little")

    def part(self, x: int, y: int, width: int, height: int) -> Picture:
        """A rectangle of it, cut off at its edges."""
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.width, x + width), min(self.height, y + height)
        rows = [self.data[4 * (row * self.width + left) : 4 * (row * self.width + right)] for row in range(top, bottom)]
        return Picture(max(0, right - left), max(0, bottom - top), b"".join(rows))

    def share(self, colour: int) -> float:
        """Part of all pixels that have exactly this colour, 0 to 1."""
        wanted = colour.to_bytes(3, "little")
        pixels = self.width * self.height
        return sum(self.data[at : at + 3] == wanted for at in range(0, 4 * pixels, 4)) / pixels if pixels else 0.0

    @property
    def darkest(self) -> int:
        """The least of all pixels' brightest channels: 0 for pure black, as ink on a ground of any light colour has."""
        pixels = range(0, 4 * self.width * self.height, 4)
        return min((max(self.data[at : at + 3]) for at in pixels), default=255)

    def difference(self, other: Picture) -> float:
        """Part of all pixels that are not the same; 1 for pictures of different size."""
        if (self.width, self.height) != (other.width, other.height):
            return 1.0
        pixels = self.width * self.height
        changed = sum(self.data[at : at + 3] != other.data[at : at + 3] for at in range(0, 4 * pixels, 4))
        return changed / pixels if pixels else 0.0

    def save(self, path: Path) -> None:
        """As PNG, to look at."""
        rows = bytearray()
        for row in range(self.height):
            line = self.data[4 * row * self.width : 4 * (row + 1) * self.width]
            rows.append(0)
            rgb = bytearray(3 * self.width)
            rgb[0::3], rgb[1::3], rgb[2::3] = line[2::4], line[1::4], line[0::4]
            rows += rgb
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 6)), (b"IEND", b""))
        with path.open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for kind, data in chunks:
                file.write(struct.pack(">I", len(data)) + kind + data)
                file.write(struct.pack(">I", zlib.crc32(kind + data)))


@dataclass(frozen=True)
class Window:
    number: int
    x: int
    y: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2


class Desktop:
    def __init__(self, display: str, frame_buffer: Path) -> None:
        self.display = display
        self._frame_buffer = frame_buffer

    @property
    def environment(self) -> Mapping[str, str]:
        """For programs that shall appear here: nothing of another screen or session of this machine."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("QT_", "WAYLAND_", "DBUS_"))}
        return {**kept, "DISPLAY": self.display, "QT_QPA_PLATFORM": "xcb"}

    def picture(self) -> Picture:
        with self._frame_buffer.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            fields = _XWD_HEADER.unpack_from(memory)
            header_size, width, height = fields[0], fields[4], fields[5]
            bits, stride, colours = fields[11], fields[12], fields[19]
            if bits != 32:
                raise ValueError(f"a pixel has {bits} bits, not 32")
            start = header_size + colours * _XWD_COLOUR_BYTES
            rows = [memory[start + row * stride : start + row * stride + 4 * width] for row in range(height)]
        return Picture(width, height, b"".join(rows))

    def do(self, *words: object) -> str:
        """Run ``xdotool`` with these words; what it prints. :raise subprocess.CalledProcessError: it refused."""
        done = subprocess.run(
            ["xdotool", *map(str, words)], env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def activate(self, number: int) -> None:
        """Give a window the keys; it has them when this returns. :raise TimeoutError:

        (``windowactivate --sync`` does not wait where the window manager has not said yet which window is active.)
        """

        def is_active() -> bool:
            self._try("windowactivate", number)
            return self._try("getactivewindow") == str(number)

        self.wait(is_active, f"window {number} is not active")

    def park(self) -> None:
        """Put the pointer, which is in the picture, into the lower right corner."""
        self.do("mousemove", 32000, 32000)

    def click(self, x: int, y: int, button: int = 1) -> None:
        self.do("mousemove", x, y, "click", button)

    def type(self, text: str) -> None:
        self.do("type", "--delay", 1, text)

    def key(self, *keys: str) -> None:
        self.do("key", *keys)

    def windows(self, title: str) -> list[Window]:
        """Those shown whose title fits the pattern."""
        found = self._try("search", "--onlyvisible", "--name", title)
        windows = [self._window(int(number)) for number in found.split()]
        return [window for window in windows if window is not None]

    def window(self, title: str) -> Window:
        """The one whose title fits, once it is shown. :raise TimeoutError:"""
        windows: list[Window] = []

        def is_there() -> bool:
            windows[:] = self.windows(title)
            return bool(windows)

        self.wait(is_there, f"no window {title!r}")
        return windows[0]

    def focused(self) -> int:
        """Number of the window that gets keys, 0: none."""
        return int(self._try("getwindowfocus") or 0)

    def wait(self, is_so: Callable[[], bool], otherwise: str) -> None:
        """:raise TimeoutError:"""
        end = time.monotonic() + WAIT_S
        while not is_so():
            if time.monotonic() > end:
                raise TimeoutError(f"{otherwise} after {WAIT_S:g} s")
            time.sleep(POLL_S)

    def _try(self, *words: object) -> str:
        """As :meth:`do`, for what may fail: then nothing is printed that is of use."""
        done = subprocess.run(
            ["xdotool", *map(str, words)],
            env=self.environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return done.stdout.strip()

    def _window(self, number: int) -> Window | None:
        """Geometry from ``xwininfo``: that of ``xdotool`` counts the frame twice. None: it went meanwhile."""
        told = subprocess.run(
            ["xwininfo", "-id", str(number)],
            env=self.environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        values = dict(_GEOMETRY.findall(told.stdout))
        if values.keys() != {"Absolute upper-left X", "Absolute upper-left Y", "Width", "Height"}:
            return None
        x, y = int(values["Absolute upper-left X"]), int(values["Absolute upper-left Y"])
        return Window(number, x, y, int(values["Width"]), int(values["Height"]))


@contextlib.contextmanager
def desktop(width: int = 1280, height: int = 800, *, window_manager: str | None = "openbox") -> Iterator[Desktop]:
    """A screen of its own while the block runs."""
    with tempfile.TemporaryDirectory(prefix="insula-screen-") as folder, contextlib.ExitStack() as stack:
        reading, writing = os.pipe()
        with os.fdopen(reading) as display_number:
            server = [
                "Xvfb",
                *("-displayfd", str(writing), "-fbdir", folder, "-screen", "0", f"{width}x{height}x24"),
                *("-nolisten", "tcp", "-noreset"),
            ]
            try:
                _start(stack, server, pass_fds=(writing,))
            finally:
                os.close(writing)
            number = display_number.readline().strip()
        if not number:
            raise RuntimeError("Xvfb did not start")
        screen = Desktop(f":{number}", Path(folder) / "Xvfb_screen0")
        if window_manager is not None:
            _start(stack, [window_manager], env=screen.environment)
            screen.wait(lambda: _is_managed(screen), f"{window_manager} does not manage the screen")
        screen.park()
        yield screen


def _is_managed(screen: Desktop) -> bool:
    """A window manager says how many desktops there are (EWMH)."""
    return (
        subprocess.run(
            ["xdotool", "get_num_desktops"],
            env=screen.environment,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
        == 0
    )


def _start(
    stack: contextlib.ExitStack,
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> None:
    """A process that ends with the stack."""
    process = subprocess.Popen(
        command,
        env=env,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        process.terminate()
        process.wait(WAIT_S)

    stack.callback(end)
