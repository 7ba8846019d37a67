"""bind-dirs: the subset of the fragments' syntax, which paths can be kept, and what is done for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.bind_dirs import BindStep, is_bindable, parse_fragment, plan_bind, resolve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("binds+=( '/etc/foo' )", ["/etc/foo"]),
        ("binds+=('/etc/foo')", ["/etc/foo"]),
        ('binds+=( "/etc/with blank" )', ["/etc/with blank"]),
        ("binds+=( /etc/a /etc/b )  # mine", ["/etc/a", "/etc/b"]),
        ("  binds+=( '/etc/a'\n  # a comment\n  '/etc/b' # another\n)", ["/etc/a", "/etc/b"]),
        ("# nothing\n\nbinds+=()", []),
        ("binds+=( '/a' )\nbinds=( '/b' )\nbinds+=( '/c' )", ["/b", "/c"]),
        ("binds+=( 'it''s' )", []),
    ],
)
def test_documented_syntax_is_understood(text: str, expected: list[str]) -> None:
    items, complaints = parse_fragment(text, [])
    assert items == expected
    assert bool(complaints) == ("''" in text)


def test_later_fragment_adds_to_earlier_ones() -> None:
    assert parse_fragment("binds+=( '/b' )", ["/a"]) == (["/a", "/b"], [])


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf /",
        'binds+=( "$(id)" )',
        'binds+=( "`id`" )',
        'binds+=( "\\x" )',
        "binds+=( $HOME )",
        "binds+=( '/a'; id )",
        "binds+=( '/a' ) ; id",
        "binds+=( /a && id )",
        "binds+=( '/unclosed )",
        "binds +=( '/a' )",
        "other+=( '/a' )",
    ],
)
def test_what_a_shell_would_do_more_with_is_skipped_and_reported(line: str) -> None:
    items, complaints = parse_fragment(f"{line}\nbinds+=( '/kept' )", [])
    assert items == ["/kept"]
    assert len(complaints) == 1
    assert complaints[0].startswith("line 1:")


def test_array_that_never_closes_adds_nothing() -> None:
    items, complaints = parse_fragment("binds+=( '/a'\n'/b'", [])
    assert "/a" not in items
    assert complaints


@given(st.text(max_size=200))
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    parse_fragment(text, [])
    parse_fragment(f"binds+=( {text}", [])


@pytest.mark.parametrize("path", ["/etc/foo", "/var/lib/x y", "/runner", "/usr"])
def test_plain_path_can_be_kept(path: str) -> None:
    assert is_bindable(path)


@pytest.mark.parametrize(
    "path", ["", "/", "etc", "/etc/../rw", "/etc/./x", "/etc//x", "/etc/", "/rw/x", "/proc", "/dev/shm", "/a\0b"]
)
def test_other_path_cannot_be_kept(path: str) -> None:
    assert not is_bindable(path)


def test_links_are_followed() -> None:
    links = {"/etc/a": "../var/b", "/var/b": "/srv/c"}
    assert resolve("/etc/a", links.get) == "/srv/c"


def test_ten_links_are_followed_and_no_more() -> None:
    links = {f"/l{number}": f"l{number + 1}" for number in range(20)}
    assert resolve("/l10", links.get) == "/l20"
    assert resolve("/l9", links.get) is None


def test_link_into_what_is_never_kept_is_refused() -> None:
    assert resolve("/etc/a", {"/etc/a": "/../proc/self"}.get) is None


@pytest.mark.parametrize(
    ("system", "storage", "actions"),
    [
        (None, None, []),
        ("file", None, ["copy", "bind"]),
        ("folder", None, ["copy", "bind"]),
        (None, "file", ["make_file", "bind"]),
        (None, "folder", ["make_folder", "bind"]),
        ("folder", "folder", ["bind"]),
        ("folder", "file", []),
    ],
)
def test_steps_follow_from_what_is_there(system: str | None, storage: str | None, actions: list[str]) -> None:
    assert plan_bind("/etc/x", system, storage) == [BindStep(action, "/etc/x") for action in actions]
