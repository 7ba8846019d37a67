"""Which of a program's icons is told, and what becomes of odd ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from insula_agent.gui import icons
from insula_proto import gui, gui_wire


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda first, count: data[4 * first : 4 * (first + count)]


def icon(width: int, height: int, byte: int) -> bytes:
    return struct.pack("<II", width, height) + bytes([byte]) * (4 * width * height)


def test_largest_that_fits_is_taken() -> None:
    data = icon(16, 16, 1) + icon(48, 48, 2) + icon(256, 256, 3) + icon(32, 32, 4)
    assert icons.load(reader(data)) == (48, 48, b"\2" * 48 * 48 * 4)


def test_smallest_of_those_too_large_is_made_smaller() -> None:
    wide = struct.pack("<II", 130, 2) + b"".join(struct.pack("<I", n) for n in range(260))
    assert icons.load(reader(icon(256, 256, 3) + wide)) == (
        44, 1, b"".join(struct.pack("<I", n) for n in range(0, 130, 3)),
    )  # fmt: skip


def test_none_cut_or_impossible_is_none() -> None:
    for data in (b"", b"\1\0\0\0", icon(16, 16, 1)[:-1], icon(0, 5, 1), struct.pack("<II", 2**31, 2), icon(1025, 1, 0)):
        assert icons.load(reader(data)) is None


@given(
    st.binary(max_size=2000)
    | st.lists(st.tuples(st.integers(0, 130), st.integers(0, 9)), max_size=20).map(
        lambda sizes: b"".join(icon(width, height, 7) for width, height in sizes)
    )
)
def test_any_property_gives_what_fits_the_wire_or_nothing(data: bytes) -> None:
    loaded = icons.load(reader(data))
    if loaded is not None:
        gui_wire.encode(gui.Icon(1, *loaded))
