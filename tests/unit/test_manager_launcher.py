"""The launcher's choice: what is listed, in which order, and what is selected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.manager import launcher
from insula.manager.launcher import Launcher, View
from insula.manager.menu import Entry


def entry(qube: str, name: str) -> Entry:
    return Entry(qube, 0x3465A4, name.lower().replace(" ", "-"), name)


ENTRIES = [
    entry("personal", "Web Browser"),
    entry("work", "Editor"),
    entry("work", "Text to Web"),
    entry("work", "Web Browser"),
    entry("work-web", "Editor"),
]


def listed(view: View) -> list[tuple[str, str]]:
    return [(row.qube, row.name) for row in view.rows]


def test_nothing_typed_lists_all_and_selects_the_first() -> None:
    view = Launcher(ENTRIES).view
    assert view.rows == tuple(ENTRIES)
    assert view.chosen == ENTRIES[0]


def test_all_words_must_match_and_what_begins_so_comes_first() -> None:
    made = Launcher(ENTRIES)
    assert listed(made.typed("work bro")) == [("work", "Web Browser")]
    assert listed(made.typed("WEB"))[0] == ("personal", "Web Browser")
    # "ext" begins no word; "web" begins a part of a qube's name.
    assert listed(made.typed("ext")) == [("work", "Text to Web")]
    assert listed(made.typed("web edit")) == [("work-web", "Editor")]
    assert listed(made.typed("rowser")) == [("personal", "Web Browser"), ("work", "Web Browser")]


def test_no_match_chooses_nothing() -> None:
    made = Launcher(ENTRIES)
    view = made.typed("nothing")
    assert (view.rows, view.chosen) == ((), None)
    assert made.move(1).chosen is None
    assert made.select(0).chosen is None
    assert made.typed("edit").chosen == ENTRIES[1]
    assert Launcher([]).view.chosen is None


def test_selection_stops_at_the_ends_and_another_letter_selects_the_best() -> None:
    made = Launcher(ENTRIES)
    assert made.move(-1).selected == 0
    assert made.move(100).selected == len(ENTRIES) - 1
    assert made.select(2).selected == 2
    assert made.select(99).selected == 2
    assert made.typed("e").selected == 0


def test_of_very_many_those_left_out_are_counted() -> None:
    view = Launcher([entry(f"q{number}", "Terminal") for number in range(1000)]).view
    assert (len(view.rows), view.left_out) == (launcher.MAX_LISTED, 1000 - launcher.MAX_LISTED)


@given(
    st.lists(st.builds(entry, st.sampled_from(["work", "web", "mail"]), st.text(min_size=1, max_size=8)), max_size=6),
    st.lists(st.text(max_size=4) | st.integers(-9, 9), max_size=8),
)
def test_whatever_is_typed_and_pressed_what_is_chosen_is_listed(entries: list[Entry], keys: list[str | int]) -> None:
    made = Launcher(entries)
    for key in keys:
        view = made.typed(key) if isinstance(key, str) else made.move(key)
        assert set(view.rows) <= set(entries)
        assert (view.chosen is None) == (not view.rows)
