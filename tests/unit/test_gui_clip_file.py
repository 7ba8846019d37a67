from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from insula.gui import clip_file


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = clip_file.make(b"hunter2")
    yield made
    os.close(made)


def test_what_was_put_in_comes_out_as_often_as_it_is_read(descriptor: int) -> None:
    assert clip_file.size(descriptor, 7) == 7
    assert clip_file.read(descriptor, 7) == b"hunter2"
    assert clip_file.read(descriptor, 100) == b"hunter2"


def test_nobody_can_change_it(descriptor: int) -> None:
    """MC-52: what was checked is what is pasted."""
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 3)
    with pytest.raises((PermissionError, ValueError)):
        mmap.mmap(descriptor, 7)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)


def test_too_long_is_refused_as_a_whole(descriptor: int) -> None:
    """MC-52."""
    for deed in (clip_file.size, clip_file.read):
        with pytest.raises(ValueError, match="7 bytes"):
            deed(descriptor, 6)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_file_that_can_be_changed_is_refused(seals: int) -> None:
    """MC-52."""
    descriptor = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, b"text")
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(ValueError, match="can be changed"):
            clip_file.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_pipe_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid"):
            clip_file.read(reading, 100)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("size", [0, 1, 256000])
def test_all_sizes_a_clipboard_may_have(size: int) -> None:
    descriptor = clip_file.make(bytes(size))
    try:
        assert clip_file.read(descriptor, 256000) == bytes(size)
    finally:
        os.close(descriptor)
