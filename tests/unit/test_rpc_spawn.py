from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.preload import last_words
from insula.preload.forks import PreloadedParent
from insula.rpc import control, spawn
from insula.rpc.control import Configure
from insula.rpc.launcher import listen
from insula.rpc.spawn import SESSION_PROGRAM, SESSION_UID_BASE, SessionSpec, session_uid, spawn_session
from insula_proto import limits
from insula_proto.errors import LocalProtocolError

PATIENCE = 120.0


@pytest.fixture
async def parent() -> AsyncIterator[PreloadedParent]:
    async with PreloadedParent([SESSION_PROGRAM]) as made:
        yield made


def test_session_uid_is_one_a_qube_for_root_and_ours_for_others() -> None:
    expected = [SESSION_UID_BASE + 1, SESSION_UID_BASE + 2] if os.geteuid() == 0 else [None, None]
    assert [session_uid(1), session_uid(2)] == expected


async def test_session_has_the_descriptors_and_ends_when_told(parent: PreloadedParent, tmp_path: Path) -> None:
    channel, guest = socket.socketpair()
    guest.setblocking(False)
    with channel, guest, listen(tmp_path / "rpc.sock") as listener:
        session = await spawn_session(parent, SessionSpec("work", 7, "user"), channel, listener)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(guest, 1)
            await session.send(control.Shutdown())
            assert await session.wait() == 0
            assert await session.receive() is None
            await session.close()
        assert session.last_words() == ""


async def test_session_that_breaks_ends_with_a_traceback_though_it_has_no_file(parent: PreloadedParent) -> None:
    channel, guest = socket.socketpair()
    # Without an address it cannot listen.
    with channel, guest, socket.socket(socket.AF_UNIX) as listener:
        session = await spawn_session(parent, SessionSpec("work", 7, "user"), channel, listener)
        async with asyncio.timeout(PATIENCE):
            assert await session.wait() == 70
            await session.close()
    assert "Traceback" in session.last_words()
    assert "in configure" in session.last_words()


async def test_session_that_prints_without_end_is_remembered_by_its_last_words(
    parent: PreloadedParent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_words, "MAX_KEPT", 20)
    channel, guest = socket.socketpair()
    with channel, guest, socket.socket(socket.AF_UNIX) as listener:
        session = await spawn_session(parent, SessionSpec("work", 7, "user"), channel, listener)
        async with asyncio.timeout(PATIENCE):
            await session.wait()
            await session.close()
    assert len(session.last_words()) == 20
    assert session.last_words().endswith("\n")


@pytest.mark.parametrize(
    "spec",
    [
        SessionSpec("work", 7, "user", {"no-slash": b""}),
        SessionSpec("work", 7, "user", {"/name": bytes(limits.QUBESDB_MAX_VALUE + 1)}),
        SessionSpec("work", 7, "user", {f"/{n}": b"" for n in range(limits.QUBESDB_MAX_KEYS + 1)}),
    ],
)
async def test_session_with_keys_that_cannot_be_told_is_not_started(parent: PreloadedParent, spec: SessionSpec) -> None:
    channel, guest = socket.socketpair()
    with channel, guest, socket.socket(socket.AF_UNIX) as listener:
        descriptors = set(Path("/proc/self/fd").iterdir())
        with pytest.raises((LocalProtocolError, ValueError)):
            await spawn_session(parent, spec, channel, listener)
        assert set(Path("/proc/self/fd").iterdir()) == descriptors


async def test_program_that_was_not_preloaded_is_an_error_of_the_start(
    parent: PreloadedParent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "SESSION_PROGRAM", "insula.rpc.nonesuch")
    channel, guest = socket.socketpair()
    with channel, guest, socket.socket(socket.AF_UNIX) as listener:
        with pytest.raises(OSError, match="not preloaded"):
            await spawn_session(parent, SessionSpec("work", 7, "user"), channel, listener)
        assert channel.fileno() >= 0


def test_first_messages_begin_with_who_the_qube_is() -> None:
    first = spawn._first_messages(SessionSpec("work", 7, "user", {"/name": b"work"}))
    assert [type(control.decode_to_session(data)) for data in first] == [
        Configure, control.SetKey, control.Begin,
    ]  # fmt: skip
