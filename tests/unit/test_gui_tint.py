"""Icons of guests in their qube's colour (MC-40)."""

from __future__ import annotations

import colorsys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import tint
from insula.gui.desktop import Icon
from insula.model.labels import BUILTIN_LABELS

COLOURS = [label.color for label in BUILTIN_LABELS.values()]
WITH_HUE = [colour for colour in COLOURS if len({colour >> 16, colour >> 8 & 255, colour & 255}) > 1]


def pixel(colour: int, alpha: int = 255) -> bytes:
    return bytes((colour & 255, colour >> 8 & 255, colour >> 16, alpha))


def shown(*pixels: bytes, colour: int) -> list[int]:
    data = tint.tinted(Icon(len(pixels), 1, b"".join(pixels)), colour)
    assert data[3::4] == b"\xff" * len(pixels)
    return [int.from_bytes(data[at : at + 3], "little") for at in range(0, len(data), 4)]


def hls(colour: int) -> tuple[float, float, float]:
    return colorsys.rgb_to_hls(*((colour >> shift & 255) / 255 for shift in (16, 8, 0)))


@given(st.integers(0, 0xFFFFFF), st.integers(0, 255), st.sampled_from(WITH_HUE))
def test_any_pixel_has_the_hue_of_the_label_and_no_other(source: int, alpha: int, colour: int) -> None:
    [result] = shown(pixel(source, alpha), colour=colour)
    hue, _, saturation = hls(result)
    expected, _, _ = hls(colour)
    assert min(abs(hue - expected), 1 - abs(hue - expected)) < 0.03
    assert saturation > 0.1


@pytest.mark.parametrize("colour", COLOURS)
def test_light_and_dark_can_be_told_apart_and_order_is_kept(colour: int) -> None:
    greys = shown(*(pixel(level << 16 | level << 8 | level) for level in range(0, 256, 51)), colour=colour)
    levels = [hls(grey)[1] for grey in greys]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 0.3


@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_transparent_and_a_window_without_icon_are_the_labels_own_colour(colour: int) -> None:
    assert shown(pixel(0x123456, 0), colour=colour) == [colour]
    assert set(shown(*[tint.PLAIN.pixels[:4]] * 3, colour=colour)) == {colour}


@pytest.mark.parametrize("mine", COLOURS)
def test_icon_in_another_labels_colour_does_not_come_out_in_it(mine: int) -> None:
    for other in set(WITH_HUE) - {mine}:
        [result] = shown(pixel(other), colour=mine)
        assert result != other
        if mine in WITH_HUE:
            distance = abs(hls(result)[0] - hls(other)[0])
            assert min(distance, 1 - distance) > 0.02
