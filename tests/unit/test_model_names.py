import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import QubesValueError, QubesVMAlreadyExistsError
from insula.model.klass import Klass
from insula.model.names import MAX_QUBE_NAME, parse_qube_name
from insula.testing.systems import small_system, with_qube_of


@pytest.mark.parametrize("name", ["a", "work", "sys-net", "Debian-12.x_y", "x" * MAX_QUBE_NAME, "dom0"])
def test_valid_name_is_returned(name: str) -> None:
    assert parse_qube_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "1a", "-a", "a b", "a/b", "a\n", "a\0", "a$b", "../x", "x" * (MAX_QUBE_NAME + 1), "work-dm", "sys-net-dm"],
)
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(QubesValueError):
        parse_qube_name(name)


@pytest.mark.parametrize(
    "name",
    ["none", "default", "Domain-0", "DOM0", "Dom0", "ask", "Default", "@any", "@adminvm", "$anyvm", "AdminVM", "NONE"],
)
def test_mc19_keyword_is_refused(name: str) -> None:
    with pytest.raises(QubesValueError):
        parse_qube_name(name)


@pytest.mark.parametrize("name", ["wоrk", "dоm0", "ｗork", "wörk", "work\u200b", "a\u202ekrow"])
def test_mc19_look_alike_letters_are_refused(name: str) -> None:
    with pytest.raises(QubesValueError) as error:
        parse_qube_name(name)
    assert str(error.value).isascii()


def test_mc19_name_differing_by_case_only_cannot_be_created() -> None:
    with pytest.raises(QubesVMAlreadyExistsError):
        with_qube_of(small_system(), Klass.APPVM, "Work", template="debian-12")


@given(st.text(max_size=40))
def test_any_text_is_returned_unchanged_or_refused(text: str) -> None:
    try:
        name = parse_qube_name(text)
    except QubesValueError as error:
        assert str(error).isprintable()
    else:
        assert name == text
        assert text.isascii()
        assert text[0].isalpha()
        assert 1 <= len(text) <= MAX_QUBE_NAME
