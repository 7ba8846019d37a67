"""Where a program's output goes: what is written at once, and what waits until it cannot block."""

from __future__ import annotations

import os
import pty
import socket
from pathlib import Path

from insula_agent.sink import SAFE_PIECE, Sink

BULK = bytes(1 << 20)


def test_null_device_takes_all_at_once() -> None:
    sink = Sink(os.open(os.devnull, os.O_WRONLY), is_filtered=False)
    sink.write(BULK)
    assert not sink.is_busy
    sink.end()
    assert not sink.is_open


def test_file_takes_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = Sink(os.open(path, os.O_WRONLY | os.O_CREAT), is_filtered=False)
    sink.write(BULK)
    assert not sink.is_busy
    sink.end()
    assert path.read_bytes() == BULK


def test_pieces_are_written_in_order_however_little_goes_at_once() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, is_filtered=False)
    pieces = [os.urandom(size) for size in (100_000, 1, 70_000, 4096)]
    sink.write(*pieces[:3])
    sink.write(pieces[3])
    received = b""
    while len(received) < sum(len(piece) for piece in pieces):
        received += os.read(reading, 5000)
        sink.writable()
    assert received == b"".join(pieces)
    assert not sink.is_busy
    sink.close()
    os.close(reading)


def test_socket_takes_pieces_without_blocking() -> None:
    ours, theirs = socket.socketpair()
    sink = Sink(theirs.detach(), is_filtered=False)
    sink.write(*[BULK] * 3)
    assert sink.is_busy
    received = 0
    while received < 3 * len(BULK):
        received += len(ours.recv(1 << 20))
        sink.writable()
    assert not sink.is_busy
    sink.close()
    ours.close()


def test_every_piece_is_made_harmless(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = Sink(os.open(path, os.O_WRONLY | os.O_CREAT), is_filtered=True)
    sink.write(b"a\x1b", memoryview(b"\x9bz"))
    sink.end()
    assert path.read_bytes() == b"a__z"


def test_terminal_is_written_in_pieces_that_do_not_block_and_only_when_asked() -> None:
    controller, terminal = pty.openpty()
    sink = Sink(terminal, is_filtered=True)
    sink.write(b"x" * (SAFE_PIECE + 10))
    assert sink.is_busy
    sink.writable()
    assert sink.is_busy
    sink.close()
    os.close(controller)


def test_pipe_that_is_full_keeps_the_rest_without_blocking() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, is_filtered=False)
    sink.write(BULK)
    assert sink.is_busy
    received = b""
    while len(received) < len(BULK):
        received += os.read(reading, 1 << 20)
        sink.writable()
    assert received == BULK
    assert not sink.is_busy
    sink.close()
    os.close(reading)
