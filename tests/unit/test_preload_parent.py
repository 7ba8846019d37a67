"""The parent as a process, spoken to directly; through the daemon's end it is tested in test_preload_forks.py."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.preload import forks, messages, parent
from insula.preload.messages import Ended, Failed, Forked
from insula.testing import sandbox_probe

PATIENCE = 120.0


@contextmanager
def running(*programs: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A parent process and the daemon's end of its socket; ended and waited for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    with ours:
        with theirs:
            process = subprocess.Popen(
                forks.command(programs, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env={"SECRET": "planted"},
                stderr=subprocess.PIPE,
            )
        with process:
            try:
                yield process, ours
            finally:
                ours.close()
                process.communicate(timeout=PATIENCE)


def asked(control: socket.socket, descriptors: list[int]) -> messages.FromParent:
    socket.send_fds(control, [messages.encode(sandbox_probe.request(None))], descriptors)
    return told(control)


def told(control: socket.socket) -> messages.FromParent:
    data, descriptors, _, _ = socket.recv_fds(control, messages.MAX_MESSAGE, 1)
    for descriptor in descriptors:
        os.close(descriptor)
    return messages.decode_from_parent(data)


def test_parent_has_one_thread_no_rights_to_gain_and_nothing_of_its_environment() -> None:
    with running(sandbox_probe.PROGRAM) as (process, control), socket.socket() as unconnected:
        answer = asked(control, [2, unconnected.fileno()])
        assert isinstance(answer, Forked)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Threads:\t1\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"insula-parent\0"
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")
        # Where to report to is no connection: the probe notices, and says 0.
        assert told(control) == Ended(answer.number, 0)


def test_parent_keeps_no_descriptor_of_a_request() -> None:
    with running(sandbox_probe.PROGRAM) as (process, control), socket.socket() as unconnected:
        folder = Path(f"/proc/{process.pid}/fd")
        counts = set()
        for _ in range(3):
            answer = asked(control, [2, unconnected.fileno()])
            assert told(control) == Ended(answer.number, 0)
            counts.add(len(list(folder.iterdir())))
        assert len(counts) == 1


def test_program_that_was_not_preloaded_is_refused() -> None:
    with running() as (_, control):
        answer = asked(control, [2])
        assert isinstance(answer, Failed)
        assert "not preloaded" in answer.reason


@pytest.mark.parametrize("request_bytes", [b"nonsense", messages.encode(sandbox_probe.request(None))])
def test_nonsense_and_requests_without_descriptors_end_the_parent(request_bytes: bytes) -> None:
    with running(sandbox_probe.PROGRAM) as (process, control):
        control.send(request_bytes)
        assert control.recv(1) == b""
        assert process.wait(PATIENCE) == 1


def test_daemon_gone_ends_the_parent_and_what_it_made() -> None:
    ours, theirs = socket.socketpair()
    with running(sandbox_probe.PROGRAM) as (process, control), ours:
        with theirs:
            answer = asked(control, [2, theirs.fileno()])
        assert isinstance(answer, Forked)
        assert ours.recv(sandbox_probe.MAX_REPORT)
        control.close()
        assert process.wait(PATIENCE) == 0
        # It was waited for, not left to the system.
        assert not Path(f"/proc/{answer.pid}").exists()


def test_load_of_a_module_without_main_raises() -> None:
    with pytest.raises(AttributeError):
        parent.load(["insula.preload.messages"])
