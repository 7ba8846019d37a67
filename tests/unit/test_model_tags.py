import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import PermissionDenied, QubesInvalidTagError, QubesTagNotFoundError
from insula.model.names import ADMIN_NAME
from insula.model.tags import (
    MAX_TAG,
    MAX_TAGS,
    check_may_change,
    creation_tags,
    parse_tag,
    with_kept_tags,
    with_tag,
    without_tag,
)
from insula.testing.systems import NET, WORK, small_system


@pytest.mark.parametrize("tag", ["a", "A-b_9", "x" * MAX_TAG, "created-by-a.b", "guivm-a.b"])
def test_valid_tag_is_returned(tag: str) -> None:
    assert parse_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "a b", "a.b", "ä", "a\n", "@tag", "x" * (MAX_TAG + 1)])
def test_invalid_tag_is_refused(tag: str) -> None:
    with pytest.raises(QubesInvalidTagError):
        parse_tag(tag)


@given(st.text(max_size=20))
def test_mc102_any_tag_is_returned_unchanged_or_refused(text: str) -> None:
    try:
        assert parse_tag(text) == text
    except QubesInvalidTagError as error:
        assert str(error).isascii()
    else:
        assert text.isascii()


def test_tag_is_added_and_removed() -> None:
    system = with_tag(small_system(), WORK, "mine")
    assert "mine" in system.get(WORK).tags
    assert "mine" not in without_tag(system, WORK, "mine").get(WORK).tags
    with pytest.raises(QubesTagNotFoundError, match="mine"):
        without_tag(small_system(), WORK, "mine")


def test_number_of_tags_is_limited() -> None:
    system = small_system()
    full = system.with_qube(system.get(WORK).with_tags(f"t{n}" for n in range(MAX_TAGS)))
    assert with_tag(full, WORK, "t0") == full
    with pytest.raises(QubesInvalidTagError):
        with_tag(full, WORK, "one-more")


def test_creator_tag_is_changed_by_dom0_only() -> None:
    check_may_change("created-by-work", ADMIN_NAME)
    check_may_change("mine", NET)
    with pytest.raises(PermissionDenied):
        check_may_change("created-by-work", NET)


def test_creation_tags_name_the_creator() -> None:
    assert creation_tags(WORK) == {"created-by-work"}
    assert creation_tags(WORK, disposable=True) == {"created-by-work", "disp-created-by-work"}


def test_kept_tags_replace_stale_ones_and_spare_others() -> None:
    system = small_system()
    system = system.with_qube(system.get(WORK).with_tags(["guivm-old", "mine"]))
    tagged = with_kept_tags(system)
    assert tagged.get(WORK).tags == {"guivm-dom0", "audiovm-dom0", "mine"}
    assert tagged.get(ADMIN_NAME).tags == frozenset()
    assert with_kept_tags(tagged) is tagged
