from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.gui.desktop import Picture
from insula.gui.frame_memory import FrameMemory
from insula.hal import frames
from insula.hal.frames import MIN_SIZE


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = frames.make(MIN_SIZE)
    yield made
    os.close(made)


def test_guests_pixels_are_seen_where_the_picture_is(descriptor: int) -> None:
    with mmap.mmap(descriptor, MIN_SIZE) as guest, FrameMemory(descriptor) as memory:
        guest[4096:4104] = b"pixels!!"
        with memory.view(Picture(4096, 1, 2)) as view:
            assert bytes(view) == b"pixels!!"
            guest[4096] = 0x70 ^ 0xFF
            assert view[0] == 0x70 ^ 0xFF


def test_host_cannot_write(descriptor: int) -> None:
    with FrameMemory(descriptor) as memory, memory.view(Picture(0, 1, 1)) as view:
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1


def test_nobody_can_make_it_smaller_or_larger(descriptor: int) -> None:
    """MC-36: memory that shrinks under its reader would end the reader."""
    for size in (0, MIN_SIZE - 4096, MIN_SIZE + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_could_change_its_size_is_refused(seals: int) -> None:
    """MC-36."""
    descriptor = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, MIN_SIZE)
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(ValueError, match="smaller or larger"):
            FrameMemory(descriptor)
    finally:
        os.close(descriptor)


def test_ordinary_file_is_refused(tmp_path: Path) -> None:
    """MC-36."""
    (tmp_path / "file").write_bytes(bytes(MIN_SIZE))
    with (tmp_path / "file").open("rb") as file, pytest.raises((OSError, ValueError)):
        FrameMemory(file.fileno())


@pytest.mark.parametrize("size", [0, 4096, MIN_SIZE - 1, MIN_SIZE + 4096, 2 << 30])
def test_odd_sizes_are_not_made(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        frames.make(size)


@pytest.mark.parametrize(
    "picture",
    [
        Picture(-4096, 1, 1),
        Picture(0, 0, 1),
        Picture(0, 1, -1),
        Picture(MIN_SIZE, 1, 1),
        Picture(0, 1024, 257),
        Picture(2**63, 1, 1),
    ],
)
def test_picture_outside_is_refused_here_too(descriptor: int, picture: Picture) -> None:
    """MC-36."""
    with FrameMemory(descriptor) as memory, pytest.raises(ValueError, match="bytes"):
        memory.view(picture)
