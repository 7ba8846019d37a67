"""Images of the clipboard: pixels out of files and files out of pixels, by real programs, bounded."""

from __future__ import annotations

import sys
import zlib

import pytest

from insula_agent.gui import images
from insula_agent.gui.images import Conversion, image_of, pixels_of, request
from insula_agent.loop import Loop
from insula_proto import limits

PIXELS = bytes(range(240)) * 10
"""30 × 20."""
ENDLESS = (sys.executable, "-c", "import time; time.sleep(1000)")
WRITER = (sys.executable, "-c", "import sys; sys.stdout.write('x' * 1000)")


def convert(argv: tuple[str, ...], data: bytes, most: int = images.MAX_FILE) -> bytes | None:
    loop, results = Loop(), []

    def done(result: bytes | None) -> None:
        results.append(result)
        loop.stop(0)

    Conversion(loop, argv, data, most, done)
    loop.run()
    [result] = results
    return result


def test_pixels_become_a_file_and_the_file_these_pixels_again() -> None:
    source = pixels_of(30, 20, PIXELS)
    assert source is not None
    file = convert(images.ENCODER, source)
    assert file is not None
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    answer = convert(images.DECODER, request(file), images.MAX_PIXELS_FILE)
    assert answer is not None
    assert image_of(answer) == (30, 20, PIXELS)


def test_file_that_is_no_image_or_of_another_kind_gives_nothing() -> None:
    for data in (b"", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n" + bytes(50), zlib.compress(b"x" * 1000)):
        assert convert(images.DECODER, request(data), images.MAX_PIXELS_FILE) is None


def test_program_that_writes_too_much_or_fails_gives_nothing() -> None:
    assert convert(WRITER, b"", 999) is None
    assert convert(WRITER, b"", 1000) == b"x" * 1000
    assert convert(images.ENCODER, b"30 20\n" + PIXELS[:-1]) is None


def test_program_that_takes_too_long_is_ended_and_a_cancelled_one_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "TIMEOUT_S", 0.2)
    assert convert(ENDLESS, b"") is None
    loop, results = Loop(), []
    first = Conversion(loop, ENDLESS, b"", 10, results.append)
    first.cancel()

    def done(result: bytes | None) -> None:
        results.append(result)
        loop.stop(0)

    Conversion(loop, (sys.executable, "-c", "pass"), b"", 10, done)
    loop.run()
    assert results in ([b""], [None])


def test_image_that_is_too_large_for_a_clipboard_is_none() -> None:
    width = limits.GUI_MAX_IMAGE_PIXELS // 1024
    assert image_of(f"{width} 1025\n".encode() + bytes(4 * width * 1025)) is None
    for answer in (b"", b"3 2\n" + bytes(23), b"3 2\n" + bytes(25), b"x\n"):
        assert image_of(answer) is None
    assert pixels_of(1, limits.PIXELS_MAX_SIDE + 1, b"") is None
