"""Text for people: nothing in it acts on a terminal (MC-103); sizes and times read as written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.text import parse_size, seconds_text, size_text, visible, visible_bytes, visible_lines

ACTING = {
    0x00: "\\x00",
    0x07: "\\x07",
    0x0A: "\\x0a",
    0x1B: "\\x1b",
    0x7F: "\\x7f",
    0x9B: "\\x9b",
    0xAD: "\\xad",
    0x200B: "\\u200b",
    0x2028: "\\u2028",
    0x202E: "\\u202e",
    0x2066: "\\u2066",
    0xDC80: "\\udc80",
    0xFEFF: "\\ufeff",
    0xE0041: "\\U000e0041",
}


@pytest.mark.parametrize(("code", "shown"), ACTING.items())
def test_visible_acting_character_becomes_its_number(code: int, shown: str) -> None:
    assert visible(f"a{chr(code)}b") == f"a{shown}b"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_visible_no_control_character_passes(code: int) -> None:
    assert visible(chr(code)).isprintable()


def test_visible_ordinary_text_stays() -> None:
    assert visible("Grüße, 東京 [red]x[/red] \\x1b") == "Grüße, 東京 [red]x[/red] \\x1b"


@given(st.binary())
def test_visible_bytes_any_bytes_give_text_that_only_breaks_lines(data: bytes) -> None:
    assert all(
        part == "" or visible(part) == part for line in visible_bytes(data).split("\n") for part in line.split("\t")
    )


def test_visible_bytes_escape_sequence_and_bad_utf8_become_numbers() -> None:
    assert visible_bytes(b"\x1b[2Jhi\r\n\xff\tx\ry") == "\\x1b[2Jhi\n\\xff\tx\\x0dy"


def test_visible_lines_keeps_lines_and_tabs() -> None:
    assert visible_lines("a\tb\r\nc\x07") == "a\tb\nc\\x07"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024**2, "1.5 GiB"), (200 * 1024**2, "200 MiB")],
)
def test_size_text_has_a_fitting_unit(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1k", 1024), ("20GiB", 20 * 1024**3), ("20 G", 20 * 1024**3), ("3MB", 3 * 1024**2)],
)
def test_parse_size_understands_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "10X", "9" * 19 + "P", "١"])
def test_parse_size_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (185, "3 min 05 s")])
def test_seconds_text_is_short(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
