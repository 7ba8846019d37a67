"""Where a program's output goes: what is written at once, and what waits until it cannot block."""

from __future__ import annotations

import os
import pty
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
