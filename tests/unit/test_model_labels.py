import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import QubesInvalidLabelError, QubesInvalidLabelValueError, QubesLabelNotFoundError
from insula.model.labels import (
    BUILTIN_LABELS,
    Label,
    free_index,
    parse_label_color,
    parse_label_name,
    parse_label_reference,
)


def test_builtin_labels_are_the_published_ones() -> None:
    assert [(label.name, label.index, label.color_text) for label in BUILTIN_LABELS.values()] == [
        ("red", 1, "0xcc0000"),
        ("orange", 2, "0xf57900"),
        ("yellow", 3, "0xedd400"),
        ("green", 4, "0x73d216"),
        ("gray", 5, "0x555555"),
        ("blue", 6, "0x3465a4"),
        ("purple", 7, "0x75507b"),
        ("black", 8, "0x000000"),
    ]
    assert all(label.is_builtin for label in BUILTIN_LABELS.values())


@pytest.mark.parametrize("name", ["", "12", "a b", "a/b", "grün", "x" * 65, "a\n"])
def test_invalid_label_name_is_refused(name: str) -> None:
    with pytest.raises(QubesInvalidLabelError):
        parse_label_name(name)


@pytest.mark.parametrize(
    "color", ["", "0x12345", "0x1234567", "123456", "#123456", "0xgggggg", "0x123456\n", "0X123456"]
)
def test_invalid_label_color_is_refused(color: str) -> None:
    with pytest.raises(QubesInvalidLabelValueError):
        parse_label_color(color)


@given(st.integers(0, 0xFFFFFF))
def test_color_text_parses_back(color: int) -> None:
    assert parse_label_color(Label("x", color, 9).color_text) == color


@given(st.text(max_size=70))
def test_any_label_name_is_returned_unchanged_or_refused(text: str) -> None:
    try:
        assert parse_label_name(text) == text
    except QubesInvalidLabelError:
        return
    assert text.isascii()
    assert not text.isdigit()


def test_label_is_found_by_name_and_by_index() -> None:
    assert parse_label_reference("blue", BUILTIN_LABELS).name == "blue"
    assert parse_label_reference("label-6", BUILTIN_LABELS).name == "blue"


@pytest.mark.parametrize("reference", ["", "pink", "label-99", "label-", "6", "Blue", "label-6x", "label-\u0666"])
def test_unknown_label_is_not_found(reference: str) -> None:
    with pytest.raises(QubesLabelNotFoundError):
        parse_label_reference(reference, BUILTIN_LABELS)


def test_free_index_is_above_builtin_and_existing_ones() -> None:
    assert free_index([]) == 9
    assert free_index([*BUILTIN_LABELS.values(), Label("pink", 1, 12)]) == 13
