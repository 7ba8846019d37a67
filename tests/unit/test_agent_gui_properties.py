"""What programs say of their windows; the same with real programs stands in tests/desktop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.gui import properties
from insula_agent.gui.properties import Properties, cut
from insula_proto import gui, gui_wire
from insula_proto.gui import Message

GROUP, OTHER_GROUP = 50, 51
ROOT = 1


class PropertiesOfWindows:
    """Stands in for the display: atoms are numbered, properties are numbers."""

    def __init__(self) -> None:
        self._atoms: list[str] = []
        self.values: dict[tuple[int, str], list[int]] = {}

    def atom(self, name: str) -> int:
        if name not in self._atoms:
            self._atoms.append(name)
        return 1000 + self._atoms.index(name)

    def numbers(self, window: int, name: str) -> list[int]:
        return self.values.get((window, name), [])

    def property(self, window: int, name: str) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in self.numbers(window, name))

    def set_numbers(self, window: int, name: str, kind: str, numbers: list[int]) -> None:
        assert kind == "ATOM"
        self.values[window, name] = numbers

    def set_group(self, window: int, group: int) -> None:
        self.values[window, "WM_HINTS"] = [64, 0, 0, 0, 0, 0, 0, 0, group]


class World:
    def __init__(self) -> None:
        self.display = PropertiesOfWindows()
        self.said: list[Message] = []
        self.properties = Properties(self.display, self.said.append)  # type: ignore[arg-type]

    def set_atoms(self, window: int, name: str, *atoms: str) -> None:
        self.display.values[window, name] = [self.display.atom(atom) for atom in atoms]

    def flags(self) -> int:
        """Of the window 7, told as 1, before it is shown."""
        self.properties.tell_kind(1, 7)
        added = 0
        for message in self.said:
            assert isinstance(message, gui.WindowFlags)
            added |= message.added
        return added


@pytest.fixture
def world() -> World:
    return World()


@given(st.text(max_size=200))
def test_cut_title_is_whole_characters_that_fit_the_wire(text: str) -> None:
    title = cut(text.encode(), 128)
    assert text.partition("\0")[0].startswith(title.decode())
    gui_wire.encode(gui.Title(1, title))


@given(st.binary(max_size=200))
def test_cut_any_bytes_fit_the_wire(data: bytes) -> None:
    gui_wire.encode(gui.Title(1, cut(data, 128)))
    gui_wire.encode(gui.WindowClass(1, cut(data, 64), cut(data, 64)))


@pytest.mark.parametrize("text", ["", "plain", "x" * 127, "Editor – ü", "☃" * 42])
def test_cut_leaves_what_fits(text: str) -> None:
    assert cut(text.encode(), 128) == text.encode()


def test_plain_window_is_told_without_flags(world: World) -> None:
    world.set_atoms(7, "_NET_WM_WINDOW_TYPE", "_NET_WM_WINDOW_TYPE_NORMAL")
    assert world.flags() == 0
    assert world.said == []


def test_first_type_that_is_known_counts(world: World) -> None:
    world.set_atoms(
        7, "_NET_WM_WINDOW_TYPE", "_KDE_NET_WM_WINDOW_TYPE_OVERRIDE", "_NET_WM_WINDOW_TYPE_UTILITY",
        "_NET_WM_WINDOW_TYPE_DIALOG",
    )  # fmt: skip
    assert world.flags() == gui.FLAG_UTILITY


def test_window_that_belongs_to_another_and_has_no_type_is_a_dialog(world: World) -> None:
    world.display.values[7, "WM_TRANSIENT_FOR"] = [5]
    assert world.flags() == gui.FLAG_DIALOG


def test_modal_and_whole_screen_and_attention_are_told_before_it_is_shown(world: World) -> None:
    world.set_atoms(7, "_NET_WM_STATE", properties.MODAL, properties.FULLSCREEN, properties.ATTENTION)
    assert world.flags() == gui.FLAG_MODAL | gui.FLAG_FULLSCREEN | gui.FLAG_ATTENTION


@pytest.mark.parametrize(
    ("hints", "flags"),
    [
        ([256, 0, 0], gui.FLAG_ATTENTION),
        ([2, 0, 3], gui.FLAG_MINIMISE),
        ([2, 0, 1], 0),
        ([0, 0, 3], 0),
        ([2], 0),
        ([], 0),
    ],
)
def test_urgency_and_first_state_of_wm_hints(world: World, hints: list[int], flags: int) -> None:
    world.display.values[7, "WM_HINTS"] = hints
    assert world.flags() == flags


def test_urgency_that_ends_is_told_too(world: World) -> None:
    for bits in (256, 0):
        world.display.values[7, "WM_HINTS"] = [bits]
        world.properties.tell(1, 7, "WM_HINTS", is_placed=True)
    assert world.said == [gui.WindowFlags(1, gui.FLAG_ATTENTION, 0), gui.WindowFlags(1, 0, gui.FLAG_ATTENTION)]


def test_window_belongs_to_the_one_it_names(world: World) -> None:
    world.display.values[7, "WM_TRANSIENT_FOR"] = [6]
    assert world.properties.owner(7, [5, 6, 7]) == 6


@pytest.mark.parametrize("named", [ROOT, 0, 7, 99])
def test_window_of_a_whole_group_belongs_to_the_groups_window_that_was_used_last(world: World, named: int) -> None:
    world.display.values[7, "WM_TRANSIENT_FOR"] = [named]
    for window, group in ((4, OTHER_GROUP), (5, GROUP), (6, GROUP), (7, GROUP)):
        world.display.set_group(window, group)
    assert world.properties.owner(7, [4, 5, 6, 7]) == 5


def test_window_without_relation_or_group_belongs_to_none(world: World) -> None:
    world.display.set_group(5, GROUP)
    world.display.set_group(7, GROUP)
    assert world.properties.owner(7, [5]) == 0
    world.display.values[7, "WM_TRANSIENT_FOR"] = [ROOT]
    del world.display.values[7, "WM_HINTS"]
    assert world.properties.owner(7, [5]) == 0


def test_state_is_noted_beside_others(world: World) -> None:
    world.set_atoms(7, "_NET_WM_STATE", "_NET_WM_STATE_ABOVE")
    world.properties.set_state(7, properties.HIDDEN, is_on=True)
    assert world.properties.has_state(7, properties.HIDDEN)
    world.properties.set_state(7, properties.HIDDEN, is_on=True)
    world.properties.set_state(7, properties.HIDDEN, is_on=False)
    world.properties.set_state(7, properties.MODAL, is_on=False)
    assert world.display.numbers(7, "_NET_WM_STATE") == [world.display.atom("_NET_WM_STATE_ABOVE")]


@pytest.mark.parametrize(("hints", "takes"), [([], True), ([1, 0], False), ([1, 1], True), ([2, 0], True), ([1], True)])
def test_input_is_given_unless_a_program_says_that_it_takes_it_itself(
    world: World, hints: list[int], takes: bool
) -> None:
    world.display.values[7, "WM_HINTS"] = hints
    assert world.properties.takes_input(7) is takes
