import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import QubesValueError
from insula.model.klass import Klass
from insula.model.qube import MAX_NOTES, parse_notes
from insula.testing.systems import DISPOSABLE, TEMPLATE, WORK, small_system


def test_template_is_the_property_or_none() -> None:
    system = small_system()
    assert system.get(WORK).template == TEMPLATE
    assert system.get(TEMPLATE).template is None


@pytest.mark.parametrize(
    ("klass", "has_template", "has_machine", "is_updateable", "is_persistent"),
    [
        (Klass.APPVM, True, True, False, True),
        (Klass.TEMPLATEVM, False, True, True, True),
        (Klass.STANDALONEVM, False, True, True, True),
        (Klass.DISPVM, True, True, False, False),
        (Klass.ADMINVM, False, False, True, True),
        (Klass.REMOTEVM, False, False, False, True),
    ],
)
def test_class_says_what_it_has(
    klass: Klass, has_template: bool, has_machine: bool, is_updateable: bool, is_persistent: bool
) -> None:
    assert klass.has_template is has_template
    assert klass.has_machine is has_machine
    assert klass.is_updateable is is_updateable
    assert klass.is_persistent is is_persistent


def test_notes_with_unsafe_characters_are_made_safe() -> None:
    assert parse_notes("a\tb\nc\x1b[31m\u202e é".encode()) == "a\tb\nc_[31m_ é"


def test_notes_too_long_or_not_utf8_are_refused() -> None:
    assert parse_notes(b"x" * MAX_NOTES)
    with pytest.raises(QubesValueError):
        parse_notes(b"x" * (MAX_NOTES + 1))
    with pytest.raises(QubesValueError):
        parse_notes(b"\xff")


@given(st.binary(max_size=200))
def test_mc102_any_notes_are_displayable_or_refused(data: bytes) -> None:
    try:
        notes = parse_notes(data)
    except QubesValueError:
        return
    assert all(c in "\t\n" or c.isprintable() for c in notes)
    assert parse_notes(notes.encode()) == notes


def test_with_and_without_give_new_qubes() -> None:
    qube = small_system().get(DISPOSABLE)
    changed = qube.with_feature("a", "1").with_tags(["t", "u"]).without_tags(["u"]).with_property("debug", True)
    assert (dict(changed.features), changed.tags, changed.properties["debug"]) == ({"a": "1"}, {"t"}, True)
    assert changed.without_feature("a").without_tags(["t"]).without_property("debug") == qube
