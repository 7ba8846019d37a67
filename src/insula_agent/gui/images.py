"""Files of images made into pixels, and pixels into a file, for the clipboard: each by a program of its own.

What takes an image apart may be taken over by it, or take its time; the agent goes on meanwhile. Both programs read one
memory file and write another; what they may write is bounded, and so is how long they may run.
"""

from __future__ import annotations

import os

from insula_agent.log import log
from insula_agent.loop import READ
from insula_proto import gui_wire, limits, pixels
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.pixels import PageStarted, PixelDecoder, PixelsReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula_agent.loop import Loop

    Done = Callable[[bytes | None], None]

PYTHON = "/usr/bin/python3"
_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pixels")
# Not -S: Pillow is one of Python's site packages.
DECODER = (PYTHON, "-I", os.path.join(_FOLDER, "image_server.py"))
ENCODER = (PYTHON, "-I", "-S", os.path.join(_FOLDER, "png_encoder.py"))
MAX_FILE = 1 << 24
"""Bytes of a file; the pixels of the largest image have half of that."""
MAX_PIXELS_FILE = gui_wire.picture_size(limits.GUI_MAX_IMAGE_PIXELS, 1) + limits.PIXELS_MAX_LINE
TIMEOUT_S = 30.0
"""Seconds of a program: in an emulated machine Pillow takes one to load. (Who copies waits less.)"""
_SIGKILL = 9


class Conversion:
    """A program under way; it ends by itself, by :meth:`cancel` or by the time."""

    def __init__(self, loop: Loop, argv: Sequence[str], data: bytes, most: int, done: Done) -> None:
        """``done`` gets what it wrote, once; None: it failed, or wrote more than ``most``."""
        self._loop = loop
        self._most = most
        self._done: Done | None = done
        source = os.memfd_create("image", os.MFD_CLOEXEC)
        self._sink = os.memfd_create("converted", os.MFD_CLOEXEC)
        try:
            with open(source, "wb", closefd=False) as file:
                file.write(data)
            os.lseek(source, 0, os.SEEK_SET)
            actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, self._sink, 1)]
            self._pid = os.posix_spawn(argv[0], tuple(argv), os.environ, file_actions=actions)
        finally:
            os.close(source)
        self._pidfd = os.pidfd_open(self._pid)
        self._timer = loop.after(TIMEOUT_S, self._kill)
        loop.watch(self._pidfd, READ, lambda events: self._ended())

    def cancel(self) -> None:
        """End it: nobody wants it any more, and nobody is told."""
        self._done = None
        self._kill()

    def _kill(self) -> None:
        if self._pid:
            os.kill(self._pid, _SIGKILL)

    def _ended(self) -> None:
        self._timer.cancel()
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        size = os.fstat(self._sink).st_size
        written: bytes | None = None
        if status == 0 and size <= self._most:
            written = os.pread(self._sink, size, 0)
        else:
            log(f"an image could not be converted ({status}, {size} bytes)")
        os.close(self._sink)
        done, self._done = self._done, None
        if done is not None:
            done(written)


def request(file: bytes) -> bytes:
    """What the decoder is given: ``qubes.GetImageRGBA``'s first line, and the file."""
    return b"png:-\n" + file


def image_of(answer: bytes) -> tuple[int, int, bytes] | None:
    """Width, height and pixels; None: it is none, or too large for a clipboard."""
    decoder, size, found = PixelDecoder(pixels.RGBA, pages=1), (0, 0), bytearray()
    try:
        for event in decoder.receive(answer):
            if isinstance(event, PageStarted):
                size = (event.width, event.height)
            elif isinstance(event, PixelsReceived):
                found += event.data
        decoder.end()
    except RemoteProtocolError as error:
        log(f"an image in the clipboard: {error}")
        return None
    width, height = size
    return (width, height, bytes(found)) if width * height <= limits.GUI_MAX_IMAGE_PIXELS else None


def pixels_of(width: int, height: int, data: bytes) -> bytes | None:
    """What the encoder is given; None: a side is too long for it."""
    try:
        return pixels.encode_size(width, height) + data
    except LocalProtocolError as error:
        log(f"an image to be pasted: {error}")
        return None
