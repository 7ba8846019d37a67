from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import titles


@given(st.binary(max_size=127))
def test_title_any_bytes_are_one_line_of_printable_ascii(text: bytes) -> None:
    """MC-39."""
    shown = titles.title(text, allows_utf8=False)
    assert all(" " <= character <= "~" for character in shown)
    assert len(shown) <= len(text)


@given(st.binary(max_size=127) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_title_any_text_as_utf8_has_no_control_format_or_stack_of_marks(text: bytes) -> None:
    """MC-39: no direction override, zero-width character, line end, private character, or mark on the qube's name."""
    shown = titles.title(text, allows_utf8=True)
    categories = [unicodedata.category(character) for character in shown]
    assert not any(category.startswith("C") or category in ("Zl", "Zp") for category in categories)
    assert not (categories and categories[0].startswith("M"))
    assert "MMM" not in "".join(category[0] for category in categories)


@pytest.mark.parametrize(
    ("text", "ascii_only", "utf8"),
    [
        (b"plain", "plain", "plain"),
        (b"", "", ""),
        (b"\x1b]0;owned\x07", "_]0;owned_", "_]0;owned_"),
        (b"two\nlines\ttab", "two_lines_tab", "two_lines_tab"),
        ("für".encode(), "f__r", "für"),
        ("very long…".encode(), "very long...", "very long…"),
        ("a\u202egnp.exe".encode(), "a___gnp.exe", "a_gnp.exe"),
        ("a\u200bb\u2066c".encode(), "a___b___c", "a_b_c"),
        (b"\xff\xfe", "__", "\ufffd\ufffd"),
        ("\u0301x".encode(), "__x", "x"),
        ("e\u0301\u0301\u0301\u0301".encode(), "e" + 8 * "_", "e\u0301\u0301"),
        ("a\u00a0b".encode(), "a__b", "a b"),
    ],
)
def test_title_is_filtered(text: bytes, ascii_only: str, utf8: str) -> None:
    """MC-39."""
    assert titles.title(text, allows_utf8=False) == ascii_only
    assert titles.title(text, allows_utf8=True) == utf8


@given(st.binary(max_size=127))
def test_with_qube_the_true_name_comes_first_whatever_the_guest_writes(text: bytes) -> None:
    """MC-39: another qube's prefix comes after the real one."""
    assert titles.with_qube("evil", titles.title(text, allows_utf8=True)).startswith("[evil]")
    assert titles.with_qube("evil", titles.title(b"[bank] account", allows_utf8=False)) == "[evil] [bank] account"


@given(st.binary(max_size=200))
def test_class_cannot_be_a_screen_lockers(text: bytes) -> None:
    """MC-48: programs that know a locker by its class are not fooled."""
    name = titles.class_name("work", text)
    assert name.startswith("work:")
    assert len(name) <= len("work:") + titles.MAX_NAME
    assert all(" " <= character <= "~" for character in name)
