"""Colours of labels, by the icons of a question."""

from __future__ import annotations

import pytest

from insula.manager.colours import UNKNOWN, Colours, text_on
from insula.model.labels import BUILTIN_LABELS
from insula.policy.agent import Question


def test_icon_has_the_colour_of_its_label() -> None:
    colours = Colours()
    for label in BUILTIN_LABELS.values():
        assert colours.of_icon(f"appvm-{label.name}") == label.color
    assert colours.of_icon("") == UNKNOWN
    assert colours.of_icon("appvm-lilac") == UNKNOWN


def test_label_that_a_user_made_is_learnt_a_built_in_one_never_changed() -> None:
    colours = Colours()
    question = Question("a", "x", "+", ("b",), None, {"a": "appvm-lilac", "b": "appvm-red"})
    assert colours.unknown_labels(question) == {"lilac"}
    colours.learn({"lilac": "0xc8a2c8", "red": "0x00ff00", "odd": "0xzzzzzz", "long": "0x1234567", "none": ""})
    assert colours.of_icon("appvm-lilac") == 0xC8A2C8
    assert colours.of_icon("appvm-red") == BUILTIN_LABELS["red"].color
    assert {colours.of_icon(f"appvm-{name}") for name in ("odd", "long", "none")} == {UNKNOWN}
    assert colours.unknown_labels(question) == frozenset()


@pytest.mark.parametrize(
    ("label", "text"),
    [("red", 0xFFFFFF), ("yellow", 0x000000), ("green", 0x000000), ("blue", 0xFFFFFF), ("black", 0xFFFFFF)],
)
def test_text_can_be_read_on_every_label(label: str, text: int) -> None:
    assert text_on(BUILTIN_LABELS[label].color) == text
