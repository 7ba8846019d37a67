"""``qvm-convert-img``: have an image opened in a disposable, and make a PNG of the pixels that come back."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import remote
from insula_agent.client_call import EXIT_REFUSED
from insula_agent.pixels.png_writer import PngWriter
from insula_proto import pixels
from insula_proto.errors import RemoteProtocolError
from insula_proto.pixels import PageStarted, PixelDecoder, PixelsReceived

SERVICE = "qubes.GetImageRGBA"
DISPOSABLE = "@dispvm"

USAGE = """usage: qvm-convert-img [-t QUBE] IMAGE NEW.png

IMAGE is opened in a disposable that is thrown away; NEW.png is made of its pixels and must not be there yet.

  -t, --target QUBE   open it in this qube (default @dispvm: a new disposable)
"""


class ConversionFailed(Exception):
    """There is no new image; the old one is as it was."""


class _Image:
    """Feeds what comes into a PNG."""

    def __init__(self, file_descriptor: int) -> None:
        self._fd = file_descriptor
        self._decoder = PixelDecoder(pixels.RGBA, pages=1)
        self._writer: PngWriter | None = None

    def take(self, untrusted_data: bytes) -> None:
        for event in self._decoder.receive(untrusted_data):
            if isinstance(event, PageStarted):
                self._writer = PngWriter(self._write, event.width, event.height)
            elif isinstance(event, PixelsReceived):
                assert self._writer is not None
                self._writer.pixels(event.data)

    def finish(self) -> None:
        self._decoder.end()
        assert self._writer is not None
        self._writer.finish()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _receive(call: remote.Call, image: _Image) -> str:
    """Take the whole answer; what is wrong with it."""
    try:
        remote.receive(call.output, image.take)
    except RemoteProtocolError as error:
        # What it still says is of no use.
        call.hang_up()
        return str(error)
    try:
        image.finish()
    except RemoteProtocolError as error:
        return str(error)
    return ""


def _fetch(target: str, source: int, sink: int) -> None:
    feeding = remote.feed(b"-\n", source)
    try:
        call = remote.call(target, SERVICE, feeding)
    finally:
        os.close(feeding)
    image = _Image(sink)
    problem = ""
    try:
        problem = _receive(call, image)
    finally:
        code = call.wait()
    if code == EXIT_REFUSED:
        problem = "the call was refused"
    elif code and not problem:
        problem = f"the call ended with {code}"
    if problem:
        raise ConversionFailed(problem)


def convert(target: str, path: str, new: str) -> None:
    """:raise ConversionFailed: :raise OSError: no such image, or the new one is there."""
    if not new.lower().endswith(".png"):
        raise ConversionFailed(f"{new}: only PNG is written; end it in .png")
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sink = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fetch(target, source, sink)
        except BaseException:
            os.unlink(new)
            raise
        finally:
            os.close(sink)
    finally:
        os.close(source)


def main(arguments: list[str]) -> int:
    target = DISPOSABLE
    if len(arguments) > 2 and arguments[0] in ("-t", "--target"):
        target, arguments = arguments[1], arguments[2:]
    if len(arguments) != 2 or arguments[0].startswith("-"):
        sys.stderr.write(USAGE)
        return 2
    try:
        convert(target, *arguments)
    except (ConversionFailed, OSError) as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
