"""Error output of services in the system's log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula_agent import syslog
from insula_agent.syslog import SyslogCopy


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        yield receiver, path


def received(receiver: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(receiver.recv(65536))
    except BlockingIOError:
        return found


def test_lines_in_any_pieces_become_one_message_each(log: tuple[socket.socket, str]) -> None:
    receiver, path = log
    copy = SyslogCopy("a.B+c-work", path)
    for piece in (b"fir", b"st\nsecond\n\nthi", b"rd"):
        copy.write(piece)
    copy.close()
    assert received(receiver) == [b"<13>a.B+c-work: " + line for line in (b"first", b"second", b"third")]


def test_line_without_end_is_cut_into_pieces(log: tuple[socket.socket, str]) -> None:
    receiver, path = log
    copy = SyslogCopy("a.B-work", path)
    copy.write(b"x" * (syslog.MAX_LINE + 1))
    copy.close()
    assert received(receiver) == [b"<13>a.B-work: " + b"x" * syslog.MAX_LINE, b"<13>a.B-work: x"]


def test_flood_is_copied_up_to_the_limit_and_said_so(log: tuple[socket.socket, str]) -> None:
    """MC-14: what a service says costs the log at most this."""
    receiver, path = log
    copy = SyslogCopy("a.B-work", path)
    found = []
    for _ in range(200):
        copy.write(b"y" * 1000 + b"\n")
        found += received(receiver)
    copy.close()
    assert sum(len(message) for message in found) < 2 * syslog.MAX_COPIED
    assert found[-1].endswith(b"(further error output is not copied)")


def test_log_that_is_absent_or_takes_nothing_stops_nobody(tmp_path: Path, log: tuple[socket.socket, str]) -> None:
    absent = SyslogCopy("a.B-work", str(tmp_path / "absent"))
    absent.write(b"line\n")
    absent.close()
    full = SyslogCopy("a.B-work", log[1])
    for _ in range(1000):
        full.write(b"line\n")
    full.close()
