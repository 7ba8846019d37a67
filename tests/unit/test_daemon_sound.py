"""Who may play, where it is heard, and what is said where it is not (no sound server; the real one: tests/desktop)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from insula.daemon.sound import EXIT_REFUSED, EXIT_UNAVAILABLE, MAX_STREAMS, Sound, desktops
from insula.model.names import QubeName
from insula.rpc.host_services import HostCall, HostReply
from insula.sound import server
from insula.sound.native import Command, Decoder
from insula.sound.server import NoSoundServer
from insula.testing.admin_daemon import WORK, AdminDaemon, admin_daemon
from insula_proto import sound


class Carrier:
    """In place of processes: each stream lasts until it is let go."""

    def __init__(self) -> None:
        self.began: list[tuple[str, Mapping[str, str], bool]] = []
        self.silent: set[str] = set()
        """Desktops without a sound server."""
        self.failure: OSError | None = None
        self.goes_on = asyncio.Event()

    async def __call__(
        self, qube: str, qid: int, connection: socket.socket, environment: Mapping[str, str], *, records: bool = False
    ) -> None:
        assert connection.fileno() >= 0
        assert qid > 0
        if environment["DISPLAY"] in self.silent:
            raise NoSoundServer("there is no sound server on this desktop")
        if self.failure is not None:
            raise self.failure
        self.began.append((qube, environment, records))
        await self.goes_on.wait()


class World:
    def __init__(self, daemon: AdminDaemon) -> None:
        self.daemon = daemon
        self.carrier = Carrier()
        self.told: list[tuple[str | None, str]] = []
        self.desktops: list[Mapping[str, str]] = [{"DISPLAY": ":1"}, {"DISPLAY": ":2"}]
        self.sound = Sound(daemon.context, self.carrier, lambda: self.desktops, lambda *told: self.told.append(told))

    async def call(self, caller: str = WORK, service: str = sound.PLAY_SERVICE) -> HostReply:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            call = HostCall(caller, service, "", "dom0", b"", connection=theirs)
            return await self.sound.services()[service].answer(call)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with admin_daemon(tmp_path) as daemon:
        yield World(daemon)


async def test_qube_is_heard_on_the_desktop_in_use_and_else_on_our_own(world: World) -> None:
    world.carrier.goes_on.set()
    assert await world.call() == HostReply()
    world.carrier.silent.add(":1")
    assert await world.call() == HostReply()
    assert world.carrier.began == [(WORK, {"DISPLAY": ":1"}, False), (WORK, {"DISPLAY": ":2"}, False)]


async def test_no_sound_server_is_said_to_the_caller_and_once_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.carrier.silent |= {":1", ":2"}
    for _ in range(3):
        reply = await world.call()
        assert (reply.code, reply.last_words) == (
            EXIT_UNAVAILABLE,
            "Nothing is heard: there is no sound server on this desktop\n",
        )
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
    world.desktops = []
    assert (await world.call()).code == EXIT_UNAVAILABLE


async def test_stream_that_was_ended_there_is_not_tried_elsewhere_nor_its_reason_told(world: World) -> None:
    world.carrier.failure = OSError("the sound server refuses step 3, error 1")
    assert await world.call() == HostReply(code=EXIT_UNAVAILABLE, last_words="The sound server ended it\n")


async def test_mc15_qube_has_few_streams_and_others_have_theirs(world: World) -> None:
    await world.daemon.client.create_qube("AppVM", "other", "red", template="debian-12")
    calls = [asyncio.create_task(world.call()) for _ in range(MAX_STREAMS)]
    while len(world.carrier.began) < MAX_STREAMS:
        await asyncio.sleep(0)
    assert (await world.call()).code == EXIT_REFUSED
    other = asyncio.create_task(world.call("other"))
    while len(world.carrier.began) < MAX_STREAMS + 1:
        await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.gather(calls[0], return_exceptions=True)
    world.carrier.goes_on.set()
    assert await world.call() == HostReply()
    assert await other == HostReply()
    assert await asyncio.gather(*calls[1:]) == [HostReply()] * (MAX_STREAMS - 1)


async def test_qube_whose_sound_is_played_elsewhere_or_that_has_gone_is_refused(world: World) -> None:
    store = world.daemon.store
    store.commit(store.system.with_qube(store.system.get(QubeName(WORK)).with_property("audiovm", None)))
    assert (await world.call()).code == EXIT_REFUSED
    assert (await world.call("gone")).code == EXIT_REFUSED
    assert world.carrier.began == []


async def test_microphone_is_heard_only_while_it_is_attached_and_the_user_is_told(world: World) -> None:
    """Nothing is asked of the sound server before, and it ends with the attachment."""
    await world.daemon.client.start(WORK)
    refused = HostReply(code=EXIT_REFUSED, last_words="The microphone is not attached to this qube\n")
    assert await world.call(service=sound.RECORD_SERVICE) == refused
    assert (world.carrier.began, world.told) == ([], [])
    await world.daemon.client.attach_microphone(WORK)
    recording = asyncio.create_task(world.call(service=sound.RECORD_SERVICE))
    playing = asyncio.create_task(world.call())
    while len(world.carrier.began) < 2:
        await asyncio.sleep(0)
    assert sorted(records for _, _, records in world.carrier.began) == [False, True]
    assert world.told == [(WORK, "listens to the microphone")]
    await world.daemon.client.detach_microphone(WORK)
    assert await recording == refused
    assert not playing.done(), "what it plays has nothing to do with it"
    world.carrier.goes_on.set()
    assert await playing == HostReply()


async def test_qube_that_records_again_and_again_is_told_of_twice(world: World) -> None:
    await world.daemon.client.start(WORK)
    await world.daemon.client.attach_microphone(WORK)
    world.carrier.goes_on.set()
    for _ in range(20):
        assert await world.call(service=sound.RECORD_SERVICE) == HostReply()
    assert len(world.told) == 2


def test_desktops_are_the_noted_one_and_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    note = tmp_path / "desktop"
    assert [each["XDG_RUNTIME_DIR"] for each in desktops(note)] == ["/run/user/7"]
    note.write_text('{"DISPLAY": ":4", "PULSE_SERVER": "unix:/p"}')
    assert desktops(note)[0] == {"DISPLAY": ":4", "PULSE_SERVER": "unix:/p"}


# --- where the server is -----------------------------------------------------------------------------------------


def test_server_is_looked_for_on_this_machine_alone() -> None:
    """The daemon makes no connection to a network, whatever a variable says."""
    places = server.places(
        {"PULSE_SERVER": "tcp:example:4713 {0ab1}unix:/a/b host /c", "XDG_RUNTIME_DIR": "/run/user/7"}
    )
    assert list(map(str, places)) == ["/a/b", "/c", "/run/user/7/pulse/native"]
    assert list(server.places({})) == []


async def test_server_that_listens_is_greeted_and_one_that_has_gone_is_passed_over(tmp_path: Path) -> None:
    gone, there = tmp_path / "gone", tmp_path / "there"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(gone))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(there))
        listener.listen()
        environment = {"PULSE_SERVER": f"unix:{tmp_path / 'none'} unix:{gone} unix:{there}"}
        with await server.connect(environment):
            accepted, _ = listener.accept()
            with accepted:
                [command] = Decoder().receive(accepted.recv(4096))
                assert isinstance(command, Command)
                assert command.number == 8
    with pytest.raises(NoSoundServer):
        await server.connect({"PULSE_SERVER": f"unix:{gone}"})


async def test_server_that_has_not_asked_yet_who_we_are_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is slow takes the connection a moment before it has the kernel say who sends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))
        listener.listen()
        taken: list[socket.socket] = []

        def slowly(place: Path) -> bytes:
            taken.append(listener.accept()[0])
            return b""

        monkeypatch.setattr(server, "cookie", slowly)
        with await server.connect({"PULSE_SERVER": f"unix:{tmp_path / 'there'}"}), taken[0] as accepted:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _, [(_, kind, who)], _, _ = accepted.recvmsg(4096, socket.CMSG_SPACE(12))
    assert kind == socket.SCM_CREDENTIALS
    assert struct.unpack("=iII", who) == (os.getpid(), os.getuid(), os.getgid())


def test_nothing_that_listens_is_nowhere(tmp_path: Path) -> None:
    assert server.describe({"PULSE_SERVER": f"unix:{tmp_path / 'none'}"}) is None
