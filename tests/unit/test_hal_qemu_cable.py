"""What the other end of a cable notices when it is cut, and when it ends."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from insula.hal.qemu.cable import Cable


@pytest.fixture
def ends() -> Iterator[tuple[Cable, socket.socket]]:
    far, near = socket.socketpair()
    cable = Cable(far)
    with ExitStack() as stack:
        for end in far, near:
            end.setblocking(False)
            stack.callback(end.close)
        yield cable, near


def fill(end: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            end.send(bytes(65536))


def test_who_waits_to_write_on_a_cable_that_is_cut_is_refused_and_only_later_told_of_its_end(
    ends: tuple[Cable, socket.socket],
) -> None:
    cable, near = ends
    fill(near)
    assert select.select([near], [near], [], 0) == ([], [], [])
    cable.cut()
    # It can write, so it is woken; nothing says yet that the connection is over.
    assert select.select([near], [near], [], 0) == ([], [near], [])
    for _ in range(3):
        with pytest.raises(BrokenPipeError):
            near.send(b"the rest of a frame")
    with pytest.raises(BlockingIOError):
        near.recv(1)
    cable.close()
    assert near.recv(1) == b""


def test_cut_twice_or_after_either_end_is_closed_is_nothing_more(ends: tuple[Cable, socket.socket]) -> None:
    cable, near = ends
    near.close()
    cable.cut()
    cable.cut()
    cable.close()
    cable.close()
    assert cable.is_cut


def test_cut_of_a_cable_that_was_let_go_of_is_nothing(ends: tuple[Cable, socket.socket]) -> None:
    cable, near = ends
    cable.close()
    cable.cut()
    assert near.recv(1) == b""
