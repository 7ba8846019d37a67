"""The qube's end of sound: what is read of the sound server, and when (the real one: tests/desktop/test_sound.py)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.testing.sound_guest import client
from insula_agent.loop import READ, Loop
from insula_agent.sound import player, recorder
from insula_agent.sound.player import Player
from insula_agent.sound.recorder import Recorder
from insula_proto import sound
from insula_proto.sound import AHEAD, BLOCK

PATIENCE_S = 120.0


class Qube:
    """A player with its loop in a thread; the test is the sound server and the host."""

    def __init__(self, folder: Path) -> None:
        path = folder / "sink"
        os.mkfifo(path)
        self._fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.sink = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self.said: list[str] = []
        self._host = socket.socket(socket.AF_UNIX)
        self._host.settimeout(PATIENCE_S)
        self._address = str(folder / sound.PLAY_SERVICE)
        self._loop = Loop()
        self._player = Player(self._loop, self._fifo, lambda: self._loop.stop(0), self.said.append)
        self._thread = threading.Thread(target=self._loop.run)

    def listen(self) -> None:
        self._host.bind(self._address)
        self._host.listen()

    def start(self) -> None:
        self._thread.start()

    def accept(self) -> socket.socket:
        call, _ = self._host.accept()
        call.settimeout(PATIENCE_S)
        return call

    def fill(self) -> int:
        """As much as the FIFO takes."""
        size = 0
        try:
            while True:
                size += os.write(self.sink, b"\1" * 4096)
        except BlockingIOError:
            return size

    def close(self) -> None:
        os.close(self.sink)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it goes on without a sound server"
        os.close(self._fifo)
        self._host.close()


@pytest.fixture
def qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qube]:
    monkeypatch.setenv("QREXEC_CLIENT_PATH", str(client(tmp_path)))
    made = Qube(tmp_path)
    yield made
    made.close()


def received(call: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = call.recv(size - len(found))
        assert data
        found += data
    return found


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_call_begins_with_the_first_sample_and_no_more_is_sent_than_was_granted(qube: Qube) -> None:
    qube.listen()
    qube.start()
    qube.fill()
    with qube.accept() as call:
        call.settimeout(0.3)
        with pytest.raises(TimeoutError):
            call.recv(1)
        call.settimeout(PATIENCE_S)
        call.sendall(b"\1\1")
        assert received(call, 2 * BLOCK) == b"\1" * 2 * BLOCK
        call.settimeout(0.3)
        with pytest.raises(TimeoutError):
            call.recv(1)


def test_host_that_grants_without_end_gets_what_there_is_and_no_pipe_fills(qube: Qube) -> None:
    qube.listen()
    qube.start()
    with_samples = qube.fill()
    with qube.accept() as call:
        call.sendall(b"\1" * 40 * AHEAD)
        # (Grants that come together count as one AHEAD.)
        assert received(call, min(with_samples, AHEAD * BLOCK))


def test_call_ends_when_nothing_is_played_and_the_next_sample_begins_another(
    qube: Qube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(player, "IDLE_S", 0.1)
    qube.listen()
    qube.start()
    for text in (b"first", b"other"):
        os.write(qube.sink, text)
        with qube.accept() as call:
            call.sendall(b"\1")
            assert received(call, 5) == text
            assert call.recv(1) == b"", "it does not end"


def test_host_that_keeps_waiting_is_waited_for(qube: Qube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "IDLE_S", 0.5)
    qube.listen()
    qube.start()
    os.write(qube.sink, b"text")
    with qube.accept() as call:
        call.settimeout(1.2)
        with pytest.raises(TimeoutError):
            call.recv(1)
        call.settimeout(PATIENCE_S)
        call.sendall(b"\1")
        assert received(call, 4) == b"text"


def test_refused_call_has_samples_thrown_away_in_their_time_and_the_host_is_asked_again(
    qube: Qube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(player, "DEAF_S", 0.5)
    began = time.monotonic()
    qube.start()
    size = qube.fill()
    until(lambda: bool(qube.said))
    assert "does not play" in qube.said[0]
    # All of it was played to nobody when there is room for as much again, and not at once.
    left = size
    while left > 0:
        try:
            left -= os.write(qube.sink, b"\2" * 4096)
        except BlockingIOError:
            time.sleep(0.01)
    assert time.monotonic() - began >= (size / BLOCK - 2 * player.DEAF_BLOCKS) * sound.BLOCK_MS / 1000
    qube.listen()
    with qube.accept() as call:
        call.sendall(b"\1")
        assert received(call, BLOCK)
    assert len(qube.said) == 1


# --- what is recorded --------------------------------------------------------------------------------------------


class Listener:
    """A recorder; the test is the sound server, which reads its FIFO, and the host."""

    def __init__(self, folder: Path) -> None:
        path = folder / "source"
        os.mkfifo(path)
        self.source = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._host = socket.socket(socket.AF_UNIX)
        self._host.settimeout(PATIENCE_S)
        self._address = str(folder / sound.RECORD_SERVICE)
        self._loop = Loop()
        self._reading, self._writing = os.pipe()
        self._loop.watch(self._reading, READ, lambda events: self._stop())
        self._recorder = Recorder(self._loop, self.source)
        self._thread = threading.Thread(target=self._loop.run)

    def _stop(self) -> None:
        self._recorder.close()
        self._loop.stop(0)

    def listen(self) -> None:
        self._host.bind(self._address)
        self._host.listen()

    def start(self) -> None:
        self._thread.start()

    def accept(self) -> socket.socket:
        call, _ = self._host.accept()
        call.settimeout(PATIENCE_S)
        return call

    def heard(self, size: int) -> bytes:
        """So much of what a program hears."""
        found, end = b"", time.monotonic() + PATIENCE_S
        while len(found) < size:
            assert time.monotonic() < end, f"only {len(found)} bytes"
            try:
                found += os.read(self.source, size - len(found))
            except BlockingIOError:
                time.sleep(0.005)
        return found

    def close(self) -> None:
        os.write(self._writing, b"x")
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        for descriptor in (self._reading, self._writing, self.source):
            os.close(descriptor)
        self._host.close()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("QREXEC_CLIENT_PATH", str(client(tmp_path)))
    monkeypatch.setattr(recorder, "SETTLE_S", 0.0)
    made = Listener(tmp_path)
    yield made
    made.close()


def test_program_hears_what_the_host_gives_and_that_is_granted_anew_as_it_is_taken(listener: Listener) -> None:
    listener.listen()
    listener.start()
    with listener.accept() as call:
        assert received(call, AHEAD) == b"\1" * AHEAD
        call.sendall(b"\1\2\3\4" * (AHEAD * BLOCK // 4))
        assert listener.heard(3 * BLOCK) == b"\1\2\3\4" * (3 * BLOCK // 4)
        assert received(call, 3) == b"\1" * 3


def test_call_ends_when_nobody_takes_samples_and_another_begins_with_the_next_who_does(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "IDLE_S", 0.3)
    listener.listen()
    listener.start()
    with listener.accept() as call:
        received(call, AHEAD)
        # More than the FIFO takes: a pipe of 64 KiB. (It may end the call before it is given all of it.)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(4):
                call.sendall(b"\1" * AHEAD * BLOCK)
            while call.recv(100):
                pass
    assert any(listener.heard(65536))
    with listener.accept() as call:
        assert received(call, AHEAD)


def test_program_hears_silence_in_its_time_where_the_host_gives_nothing_and_the_host_is_asked_again(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "DEAF_S", 0.5)
    began = time.monotonic()
    listener.start()
    size = 20 * BLOCK
    assert not any(listener.heard(size))
    assert time.monotonic() - began >= size / BLOCK * sound.BLOCK_MS / 1000 * 0.5, "more than a microphone would give"
    listener.listen()
    # A program records on while the host is asked.
    is_over = threading.Event()

    def record() -> None:
        while not is_over.is_set():
            with contextlib.suppress(BlockingIOError):
                os.read(listener.source, BLOCK)
            time.sleep(0.01)

    recording = threading.Thread(target=record)
    recording.start()
    try:
        with listener.accept() as call:
            assert received(call, AHEAD)
    finally:
        is_over.set()
        recording.join()
