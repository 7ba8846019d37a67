"""A machine's own screen as one window: under the rules of all windows (MC-49)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from test_gui_rfb import hello, pseudo, raw, update

from insula.gui import rfb
from insula.gui.emulated import EmulatedEnd, scan_code
from insula.gui.geometry import Desk, Rect
from insula.gui.machine import Machine
from insula.gui.settings import Settings
from insula.hal import frames
from insula.testing.gui_screen import Screen
from insula_proto import gui
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui_channel import Hello

SIZE = 1 << 20
FULL = rfb.update_request(40, 30, is_incremental=False)
MORE = rfb.update_request(40, 30, is_incremental=True)


class Bench:
    def __init__(self) -> None:
        self.memory = frames.make(SIZE)
        self.end = EmulatedEnd(self.memory, SIZE)
        self.view = mmap.mmap(self.memory, SIZE)

    def ready(self) -> None:
        self.end.receive(hello() + update(pseudo(rfb.EXTENDED_KEYS)))
        self.end.pending()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    os.close(made.memory)


def test_screen_appears_as_one_window_and_is_asked_for(bench: Bench) -> None:
    said = bench.end.receive(hello())
    assert said == [
        Hello(8),
        gui.Create(1, 0, 0, 40, 30),
        gui.Title(1, b"screen"),
        gui.Map(1),
        gui.FramePicture(1, 40, 30, 0),
    ]
    assert bench.end.pending().endswith(FULL)
    machine = Machine(Settings("windows", 1), Desk((Rect(0, 0, 800, 600),)), memory_size=SIZE)
    screen = Screen(Settings("windows", 1), Desk((Rect(0, 0, 800, 600),)))
    for message in said[1:]:
        assert isinstance(message, gui.Message)
        screen.obey(machine.receive(message, 0.0))
    screen.obey(machine.settle(0.0))
    assert screen.windows[1].title == "screen"


def test_pixels_are_copied_to_their_place_and_told_as_one_rectangle(bench: Bench) -> None:
    bench.ready()
    rect = raw(3, 4, 2, 2)
    # (The first update brings the screen that is black until then.)
    assert bench.end.receive(update(rect)) == [gui.Damage(1, 3, 4, 2, 2)]
    for row in (0, 1):
        start = ((4 + row) * 40 + 3) * 4
        assert bench.view[start : start + 8] == rect[12 + 8 * row : 20 + 8 * row]


def test_next_picture_is_asked_for_when_the_last_one_was_painted_and_not_before(bench: Bench) -> None:
    """MC-43."""
    bench.ready()
    for _ in range(5):
        bench.end.receive(update(raw(0, 0, 4, 4)))
        assert bench.end.pending() == b""
    assert bench.end.send(gui.Painted(1)) == MORE
    # Of an update that changes nothing to be seen, nobody says that it was painted.
    bench.end.receive(update(pseudo(rfb.EXTENDED_KEYS)))
    assert bench.end.pending() == MORE


def test_many_rectangles_become_few(bench: Bench) -> None:
    bench.ready()
    said = bench.end.receive(update(*[raw(2 * n % 40, n % 30, 1, 1) for n in range(500)]))
    assert 0 < len(said) <= 17


def test_other_size_is_another_picture_and_one_too_large_the_end(bench: Bench) -> None:
    """MC-36."""
    bench.ready()
    bench.end.send(gui.Configure(1, 100, 200, 40, 30))
    said = bench.end.receive(update(pseudo(rfb.DESKTOP_SIZE, 64, 48)))
    assert said == [
        gui.Configure(1, 100, 200, 64, 48),
        gui.FramePicture(1, 64, 48, 0),
        gui.Damage(1, 0, 0, 64, 48),
    ]
    with pytest.raises(RemoteProtocolError, match="screen"):
        bench.end.receive(update(pseudo(rfb.DESKTOP_SIZE, 600, 600)))


def test_users_size_is_agreed_to_and_asked_of_a_machine_that_can(bench: Bench) -> None:
    bench.ready()
    configure = gui.Configure(1, 5, 6, 300, 200)
    assert bench.end.send(configure) == b""
    assert bench.end.echo() == [configure]
    assert bench.end.echo() == []
    bench.end.receive(update(pseudo(rfb.EXTENDED_DESKTOP_SIZE, 40, 30, body=bytes(4))))
    assert bench.end.send(configure) == rfb.set_size(300, 200)
    assert bench.end.send(configure) == b""


def test_keys_go_by_their_place_and_all_are_released_when_they_should_be(bench: Bench) -> None:
    """MC-45."""
    bench.ready()
    right_control, a = 105, 38
    assert bench.end.send(gui.Key(1, True, 0, 0, 0, a)) == rfb.key_event(0x1E, is_press=True)
    assert bench.end.send(gui.Key(1, True, 0, 0, 0, right_control)) == rfb.key_event(0x9D, is_press=True)
    released = bench.end.send(gui.KeymapNotify(0, bytes(32)))
    assert released == rfb.key_event(0x1E, is_press=False) + rfb.key_event(0x9D, is_press=False)
    assert bench.end.send(gui.KeymapNotify(0, bytes(32))) == b""
    assert bench.end.send(gui.Key(1, True, 0, 0, 0, 255)) == b""


def test_pointer_stays_on_the_screen_and_keeps_its_buttons(bench: Bench) -> None:
    bench.ready()
    assert bench.end.send(gui.Button(1, True, 3, 4, 0, 3)) == rfb.pointer_event(4, 3, 4)
    assert bench.end.send(gui.Motion(1, -9, 99, 0)) == rfb.pointer_event(4, 0, 29)
    assert bench.end.send(gui.Button(1, False, 3, 4, 0, 3)) == rfb.pointer_event(0, 3, 4)
    assert bench.end.send(gui.Button(1, True, 3, 4, 0, 9)) == b""


def test_copying_from_it_gives_nothing_at_once(bench: Bench) -> None:
    bench.ready()
    assert bench.end.send(gui.ClipboardRequest(1)) == b""
    assert bench.end.echo() == [gui.ClipboardData(0, b"")]
    assert bench.end.send(gui.ClipboardData(1, b"secret")) == b""


def test_every_key_of_an_ordinary_keyboard_has_a_scan_code() -> None:
    codes = [scan_code(code) for code in (*range(9, 96), 104, 105, 106, 108, *range(110, 117), 118, 119, 133, 134, 135)]
    found = [code for code in codes if code is not None]
    assert len(found) == len(codes)
    assert len(set(found)) == len(found)
