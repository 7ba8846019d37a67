"""The rehearsal of a machine in waiting: its player and a real agent, without the namespaces (tests/vm has those)."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_host import PATIENCE_S, Agent

from insula_agent import rehearsal
from insula_agent.rehearsal import COMMANDS, ROUNDS, Player, RehearsalFailed

ME = pwd.getpwuid(os.geteuid()).pw_name.encode()
KEYS = {"/name": b"nobody-yet", "/default-user": ME, "/qubes-vm-type": b"AppVM"}


@contextmanager
def actor(folder: Path) -> Iterator[socket.socket]:
    """An agent in a process of its own; what the player speaks to it over."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            agent = Agent(folder, theirs)
        try:
            yield ours
        finally:
            agent.end()


def service(folder: Path, name: str, code: int) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """Where the actor finds what it is asked for."""
    folder = tmp_path / "rpc"
    folder.mkdir()
    return folder


def play(channel: socket.socket, keys: dict[str, bytes]) -> Player:
    """Run the player as the stage does, but give up in time."""
    player = Player(channel.fileno(), keys)
    watchdog = threading.Timer(PATIENCE_S, channel.shutdown, [socket.SHUT_RDWR])
    watchdog.start()
    try:
        player.run()
    finally:
        watchdog.cancel()
    return player


def test_actor_starts_and_runs_every_command_in_every_round(tmp_path: Path, services: Path) -> None:
    service(services, "qubes.VMExec", 0)
    with actor(tmp_path) as channel:
        player = play(channel, dict(KEYS))
    assert player.codes == [0] * len(COMMANDS) * ROUNDS


def test_command_that_fails_is_told(tmp_path: Path, services: Path) -> None:
    service(services, "qubes.VMExec", 3)
    with actor(tmp_path) as channel, pytest.raises(RehearsalFailed, match=r"exit codes \[0, 3, 0, 3\]"):
        play(channel, dict(KEYS))


def test_unknown_user_is_told_and_nothing_hangs(tmp_path: Path, services: Path) -> None:
    with actor(tmp_path) as channel, pytest.raises(RehearsalFailed, match="exit codes"):
        play(channel, {**KEYS, "/default-user": b"no-such-user"})


def test_actor_that_goes_away_ends_the_player() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises((RehearsalFailed, BrokenPipeError)):
            Player(ours.fileno(), dict(KEYS)).run()


def test_random_seed_is_forgotten_by_the_player_too(tmp_path: Path, services: Path) -> None:
    service(services, "qubes.VMExec", 0)
    keys = {**KEYS, "/qubes-random-seed": b"AAAA"}
    with actor(tmp_path) as channel:
        play(channel, keys)
    assert "/qubes-random-seed" not in keys


@pytest.mark.parametrize(
    ("value", "is_wanted", "has_window"),
    [(b"start", True, False), (b"window", True, True), (b"0", False, False), (b"", False, False)],
)
def test_wanted_by_key_only(value: bytes, is_wanted: bool, has_window: bool) -> None:
    assert rehearsal.is_wanted({rehearsal.KEY: value}) is is_wanted
    assert rehearsal.has_window({rehearsal.KEY: value}) is has_window
    assert not rehearsal.is_wanted({})


def test_failure_in_a_child_is_an_exit_code_and_its_words() -> None:
    output = os.memfd_create("test")
    pid = os.fork()
    if not pid:
        rehearsal._in_child(lambda: int("x") and None, output)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert b"ValueError: invalid literal" in os.pread(output, 4096, 0)
    os.close(output)
