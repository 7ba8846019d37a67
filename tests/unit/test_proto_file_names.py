"""Names and targets of files between qubes: what is taken, what is refused, what is shown."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto.file_names import NameRefused, check_path, check_target, is_displayable, shown


@pytest.mark.parametrize(
    "path",
    [b"", b"/", b"/etc/passwd", b"..", b"a/../b", b"a/..", b".", b"./a", b"a/.", b"a//b", b"a/", b"a\0b", b"\0", b"//"],
)
@pytest.mark.parametrize("all_names", [False, True])
def test_path_that_may_lead_elsewhere_refused(path: bytes, all_names: bool) -> None:
    """MC-01."""
    with pytest.raises(NameRefused) as raised:
        check_path(path, all_names=all_names)
    assert raised.value.code == errno.EILSEQ


@given(st.binary(max_size=40))
def test_path_any_bytes_taken_one_stays_inside(path: bytes) -> None:
    """MC-01, MC-05: as it is, or not at all."""
    try:
        parts = check_path(path, all_names=True)
    except NameRefused:
        return
    assert b"/".join(parts) == path
    assert not {b"", b".", b".."}.intersection(parts)


def test_path_looking_like_dots_taken() -> None:
    assert check_path(b"..a/.b/...", all_names=False) == (b"..a", b".b", b"...")


def test_path_part_over_255_bytes_refused() -> None:
    """MC-05."""
    assert check_path(b"x" * 255, all_names=False)
    with pytest.raises(NameRefused) as raised:
        check_path(b"a/" + b"x" * 256, all_names=True)
    assert raised.value.code == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "text",
    ["a b~", "Grüße", "ἀλφα", "Ёлка", "한글", "ひらがな", "カタカナ", "漢字", "„Zitat“", "10 €", "½", "＃"],
)
def test_letters_of_left_to_right_scripts_displayable(text: str) -> None:
    assert is_displayable(text.encode())


@pytest.mark.parametrize(
    "name",
    [b"a\nb", b"\x1b[2J", b"\x7f", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u202egpj.exe".encode(),
     "\u200b".encode(), "\u00a0".encode(), "\u0301".encode(), "\u05d0".encode(), "\u0627".encode(), "\ue000".encode(),
     "\U0001f642".encode(), "\u2028".encode(), "\U00012000".encode(), "\ufeff".encode(), "\ufffe".encode()],
)  # fmt: skip
def test_name_that_may_deceive_refused_unless_asked_for(name: bytes) -> None:
    """MC-05."""
    assert not is_displayable(name)
    with pytest.raises(NameRefused) as raised:
        check_path(b"a/" + name, all_names=False)
    assert raised.value.code == errno.EILSEQ
    assert check_path(b"a/" + name, all_names=True) == (b"a", name)


@given(st.binary(max_size=30))
def test_shown_any_bytes_are_printable_and_as_many(name: bytes) -> None:
    """MC-05."""
    assert len(shown(name)) == len(name)
    assert shown(name).isascii()
    assert shown(name).isprintable()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/b", "c"), ("a/b", "c/d"), ("a/b/c", "../a"), ("a/b/c", ".."), ("a/b/c/d", "../../x"), ("a/b/c", "x/"),
        ("a/b", "b//c"), ("a/b", "./c"), ("a/b", "."), ("a/b/c", "./../x"), ("a/b", "..c"),
    ],
)  # fmt: skip
def test_target_inside_its_top_folder_taken(link: str, target: str) -> None:
    check_target(len(link.split("/")), target.encode(), all_names=False)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a", "b"), ("a", "."), ("a/b", "../a"), ("a/b", ".."), ("a/b/c", "../.."), ("a/b/c", "../../a"),
        ("a/b/c", "/a"), ("a/b", "/"), ("a/b/c", "x/.."), ("a/b/c", "x/../y"), ("a/b/c", "./.././.."),
        ("a/b/c/d", "../x/.."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("all_names", [False, True])
def test_target_that_may_lead_outside_refused(link: str, target: str, all_names: bool) -> None:
    """MC-02."""
    with pytest.raises(NameRefused) as raised:
        check_target(len(link.split("/")), target.encode(), all_names=all_names)
    assert raised.value.code == errno.ENOLINK


@pytest.mark.parametrize("target", [b"a\0b", b"a\nb", b"\xff"])
def test_target_with_hidden_letters_refused(target: bytes) -> None:
    with pytest.raises(NameRefused) as raised:
        check_target(2, target, all_names=False)
    assert raised.value.code == errno.EILSEQ


@given(st.lists(st.sampled_from(["..", ".", "", "x", "l"]), max_size=8), st.integers(2, 6))
def test_target_any_taken_one_never_climbs_above_its_top_folder(parts: list[str], depth: int) -> None:
    """MC-02: followed without links on its way, a target that is taken ends at least one folder deep."""
    target = "/".join(parts).encode()
    try:
        check_target(depth, target, all_names=False)
    except NameRefused:
        return
    level = depth - 1
    for part in parts:
        level += {"..": -1, ".": 0, "": 0}.get(part, 1)
        assert level >= 1
