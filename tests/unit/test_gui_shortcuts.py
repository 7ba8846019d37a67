"""The window machine's shortcuts, where only pixels changed or an event is passed on, command what the long ways do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from insula.gui.machine import Machine
from insula_proto import gui
from insula_proto.errors import RemoteProtocolError

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
try:
    fuzz = importlib.import_module("fuzz_gui_windows")
finally:
    sys.path.pop(0)

WINDOW = st.integers(1, 3)
PLACE = st.integers(-40, 1300)
SIZE = st.integers(1, 400)
MESSAGES = st.one_of(
    *[st.builds(gui.Damage, WINDOW, st.integers(0, 50), st.integers(0, 50), SIZE, SIZE)] * 6,
    st.builds(gui.Create, WINDOW, PLACE, PLACE, SIZE, SIZE, st.just(0), st.booleans()),
    st.builds(gui.Map, WINDOW),
    st.builds(gui.Map, WINDOW, WINDOW, st.booleans()),
    st.builds(gui.Unmap, WINDOW),
    st.builds(gui.Destroy, WINDOW),
    st.builds(gui.Configure, WINDOW, PLACE, PLACE, SIZE, SIZE),
    st.builds(gui.FramePicture, WINDOW, SIZE, SIZE, st.sampled_from((0, 4096, 65536))),
    st.builds(gui.Title, WINDOW, st.sampled_from((b"one", b"two"))),
    st.builds(gui.Cursor, WINDOW, st.sampled_from((0x100, 0x102, 0x134))),
    st.builds(gui.WindowFlags, WINDOW, st.integers(0, 15), st.integers(0, 15)),
    st.builds(gui.Dock, WINDOW),
)
SHOWN = [
    message
    for number in (1, 2)
    for message in (
        gui.Create(number, 10 * number, 50, 300, 200),
        gui.Map(number),
        gui.FramePicture(number, 300, 200, 65536 * number),
    )
]
PAUSE = st.sampled_from((0.001, 0.001, 0.02, 0.5))
STEPS = st.lists(st.tuples(PAUSE, st.one_of(MESSAGES, st.integers(0, 255))), max_size=60)


@settings(max_examples=300)
@example(steps=[(0.5, gui.Title(1, b"one")), (0.001, gui.Title(1, b"two")), (0.5, gui.Damage(1, 0, 0, 9, 9))])
@given(steps=STEPS)
def test_shortcuts_command_what_the_long_ways_do(steps: list[tuple[float, gui.Message | int]]) -> None:
    machine, long_way = Machine(fuzz.SETTINGS, fuzz.DESK, memory_size=fuzz.MEMORY), fuzz.LongWay()
    now = 1.0
    for pause, step in [*[(0.5, message) for message in SHOWN], *steps]:
        now += pause
        if isinstance(step, int):
            for event in fuzz.events(step):
                assert list(machine.happened(event, now)) == long_way.happened(event, now)
        else:
            try:
                commands = list(machine.receive(step, now))
            except RemoteProtocolError:
                return
            assert commands == long_way.receive(step, now)
        assert list(machine.settle(now)) == long_way.settle(now)
