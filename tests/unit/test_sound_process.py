"""The process of a stream: it ends when either side does, and says why."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from insula.sound import control, native, process
from insula.sound.control import Configure
from insula.sound.native import Command, Decoder, Samples
from insula.sound.stream import greeting
from insula_proto.errors import RemoteProtocolError
from insula_proto.sound import AHEAD, BLOCK

PATIENCE_S = 120.0
CHANNEL = 7


class Running:
    """The process, in a thread; the test is the server and the qube."""

    def __init__(self, *, records: bool = False) -> None:
        self.server, there = socket.socketpair()
        self.qube, here = socket.socketpair()
        for each in (self.server, self.qube):
            each.settimeout(PATIENCE_S)
        self.code: int | None = None
        self._decoder = Decoder()
        self._packets = self._decoder.receive(greeting(b""))

        def run() -> None:
            with there, here:
                self.code = process.run(Configure("work", records), there, here)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def heard(self) -> Command | Samples:
        while not self._packets:
            data = self.server.recv(65536)
            assert data
            self._packets += self._decoder.receive(data)
        return self._packets.pop(0)

    def answer(self, *values: native.Sent) -> None:
        command = self.heard()
        assert isinstance(command, Command)
        self.server.sendall(native.command(native.REPLY, command.tag, *values))

    def begin(self) -> None:
        self.answer(35)
        self.answer(1)
        self.answer(CHANNEL, 1, AHEAD * BLOCK, 1, 2, 3, 4)

    def ended(self) -> int | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.code

    def close(self) -> None:
        self.server.close()
        self.qube.close()
        self._thread.join()


@contextmanager
def running(*, records: bool = False) -> Iterator[Running]:
    made = Running(records=records)
    try:
        yield made
    finally:
        made.close()


def test_samples_go_to_the_server_as_they_are_granted_and_the_end_waits_until_they_were_heard() -> None:
    with running() as stream:
        stream.begin()
        assert stream.qube.recv(100) == b"\1" * AHEAD
        stream.qube.sendall(b"abcdefgh")
        assert stream.heard() == Samples(CHANNEL, b"abcdefgh")
        stream.qube.shutdown(socket.SHUT_WR)
        stream.answer()
        assert stream.ended() == process.EXIT_OK


def test_mc14_more_than_was_granted_is_not_read() -> None:
    with running() as stream:
        stream.begin()
        stream.qube.sendall(b"\0" * (AHEAD + 3) * BLOCK)
        taken = 0
        while taken < AHEAD * BLOCK:
            packet = stream.heard()
            assert isinstance(packet, Samples)
            taken += len(packet.data)
        stream.server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stream.heard()
        stream.server.settimeout(PATIENCE_S)
        stream.server.sendall(native.command(native.REQUEST, native.NO_INDEX, CHANNEL, 2 * BLOCK))
        taken = 0
        while taken < 2 * BLOCK:
            packet = stream.heard()
            assert isinstance(packet, Samples)
            taken += len(packet.data)
        assert taken == 2 * BLOCK


def test_recording_passes_on_what_is_granted() -> None:
    with running(records=True) as stream:
        stream.begin()
        stream.qube.sendall(b"\1")
        # It may not have been read when the first come: these are thrown away.
        stream.server.settimeout(0.05)
        got = b""
        stream.qube.settimeout(0.05)
        for _ in range(400):
            stream.server.sendall(native.samples(CHANNEL, b"\1\2\3\4"))
            try:
                got = stream.qube.recv(100)
            except TimeoutError:
                continue
            break
        assert got.startswith(b"\1\2\3\4")


def test_server_that_goes_or_refuses_or_talks_nonsense_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    for words, reason in (
        (b"", "the sound server has gone"),
        (native.command(native.ERROR, 1, 1), "refuses"),
        (b"\xff" * 40, "a packet of"),
    ):
        with running() as stream:
            stream.server.sendall(words)
            if not words:
                stream.server.close()
            assert stream.ended() == process.EXIT_REFUSED
            assert reason in capfd.readouterr().err


def test_qube_that_hangs_up_ends_it_at_once() -> None:
    for has_begun in (False, True):
        with running() as stream:
            if has_begun:
                stream.begin()
                # It hangs up with words for it unread, which its other end meets as an error.
                assert stream.qube.recv(1, socket.MSG_PEEK)
            stream.qube.close()
            assert stream.ended() == process.EXIT_OK


def test_nobody_who_says_anything_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-13."""
    monkeypatch.setattr(process, "SILENCE_S", 0.1)
    with running() as stream:
        assert stream.ended() == process.EXIT_OK


def test_what_it_is_told_comes_back_and_anything_else_is_refused() -> None:
    told = Configure("work", True)
    assert control.decode(control.encode(told)) == told
    for data in (b"", b"x", control.encode(Configure("a b", False)), control.encode(told) + b"x"):
        with pytest.raises(RemoteProtocolError):
            control.decode(data)
