"""Sound of a qube on the host: two real sound servers, what lies between them, its sandbox, and no machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from insula.daemon.sound import Sound
from insula.preload.forks import PreloadedParent
from insula.rpc.host_services import HostCall, HostReply, HostService
from insula.sound.launcher import SOUND_PROGRAM, carry
from insula.testing.admin_daemon import WORK, AdminDaemon, admin_daemon
from insula.testing.sound_guest import SoundGuest
from insula.testing.sound_server import SoundServer, loud, share, sound_server, tone
from insula_proto import sound

pytestmark = [pytest.mark.desktop, pytest.mark.timeout(240)]

HERTZ = 1000.0
FEW_TENTHS = 5
"""Enough to be sure, of three seconds."""
PATIENCE_S = 60.0
SECOND = sound.RATE * sound.FRAME
MAX_SOCKET = 500_000
"""Bytes in a socket that nobody reads, as many systems have it."""


class Host:
    """The services of the host, for the calls of a guest."""

    def __init__(self, service: Sound, parent: PreloadedParent, daemon: AdminDaemon) -> None:
        self._service = service
        self.daemon = daemon
        self.parent = parent
        self.replies: list[HostReply] = []

    @contextlib.asynccontextmanager
    async def serve(self, guest: SoundGuest, name: str) -> AsyncIterator[None]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(guest.calls / name))
            listener.listen()
            listener.setblocking(False)
            async with asyncio.TaskGroup() as calls:
                accepting = calls.create_task(self._accept(calls, listener, name))
                yield
                accepting.cancel()

    async def _accept(self, calls: asyncio.TaskGroup, listener: socket.socket, name: str) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            calls.create_task(self._answer(name, connection))

    async def _answer(self, name: str, connection: socket.socket) -> None:
        with connection:
            call = HostCall(WORK, name, "", "dom0", b"", connection=connection)
            self.replies.append(await self.service(name).answer(call))

    def service(self, name: str) -> HostService:
        return self._service.services()[name]


@contextlib.asynccontextmanager
async def host(folder: Path, environments: list[Mapping[str, str]]) -> AsyncIterator[Host]:
    async with admin_daemon(folder) as daemon, PreloadedParent([SOUND_PROGRAM]) as parent:
        yield Host(Sound(daemon.context, partial(carry, parent), lambda: environments, lambda *_: None), parent, daemon)


async def until(is_so: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.1)


async def test_mc18_tone_is_heard_as_it_is_under_the_name_of_its_qube_and_the_stream_ends(tmp_path: Path) -> None:
    with sound_server() as speakers, SoundGuest() as guest:
        async with host(tmp_path, [speakers.environment]) as here, here.serve(guest, sound.PLAY_SERVICE):
            program = guest.play(tone(HERTZ, 3))
            await until(lambda: speakers.streams() == [WORK], "no stream of the qube's")
            [pid] = Path(f"/proc/{here.parent.pid}/task/{here.parent.pid}/children").read_text().split()
            assert not list(Path(f"/proc/{pid}/root").iterdir()), "it sees files"
            assert await asyncio.to_thread(program.wait, PATIENCE_S) == 0
            await until(lambda: not speakers.streams(), "the stream stays though nobody plays")
            assert {reply.code for reply in here.replies} == {0}
            heard = loud(bytes(speakers.recorded))
    assert tenths_with_tone(heard) >= FEW_TENTHS, len(heard)


def tenths_with_tone(samples: bytes) -> int:
    """Tenths of a second with the tone and nothing else. A machine that has no time for it makes gaps, and what lies
    around one is no pure tone."""
    size = sound.RATE // 10 * sound.FRAME
    pieces = [samples[place : place + size] for place in range(0, len(samples) - size, size)]
    return len([piece for piece in pieces if share(piece, HERTZ) > 0.9])


async def test_nothing_is_heard_of_the_microphone_unless_it_is_attached_and_nothing_after_it(
    tmp_path: Path,
) -> None:
    with sound_server(microphone=HERTZ) as speakers, SoundGuest() as guest:
        async with (
            host(tmp_path, [speakers.environment]) as here,
            here.serve(guest, sound.RECORD_SERVICE),
            here.serve(guest, sound.PLAY_SERVICE),
        ):
            await here.daemon.client.start(WORK)
            with listening(guest) as heard:
                await until(lambda: bool(here.replies), "the host was not asked")
                await until(lambda: len(heard) > SECOND, "a program that records waits")
                assert {reply.code for reply in here.replies} == {77}
                assert not any(heard)
                assert speakers.recordings() == []
                await here.daemon.client.attach_microphone(WORK)
                await until(lambda: speakers.recordings() == [WORK], "it does not record")
                await until(lambda: tenths_with_tone(loud(bytes(heard))) >= FEW_TENTHS, "it does not hear the tone")
                await here.daemon.client.detach_microphone(WORK)
                await until(lambda: not speakers.recordings(), "it records on")
                # What was on its way when it was taken away is still heard; then it is silence.
                await until(lambda: len(heard) > 2 * SECOND and not any(heard[-SECOND:]), "it hears on")


@contextlib.contextmanager
def listening(guest: SoundGuest) -> Iterator[bytearray]:
    """A program that records, and what it has heard."""
    heard = bytearray()
    with guest.record() as program:
        assert program.stdout is not None
        output = program.stdout

        def read() -> None:
            while data := os.read(output.fileno(), 65536):
                heard.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield heard
        finally:
            program.terminate()
            reader.join()


async def test_program_goes_on_in_its_time_where_nothing_is_heard(tmp_path: Path) -> None:
    with SoundGuest() as guest:
        async with host(tmp_path, [{}]) as here, here.serve(guest, sound.PLAY_SERVICE):
            began = time.monotonic()
            program = guest.play(tone(HERTZ, 2))
            assert await asyncio.to_thread(program.wait, PATIENCE_S) == 0
            assert time.monotonic() - began > 1.5, "a film would be over before it is seen"
            assert {reply.code for reply in here.replies} == {69}


async def test_mc14_flood_of_a_qube_waits_in_its_own_pipe(tmp_path: Path) -> None:
    """A qube that sends without being granted anything: what is taken of it is what is heard, in its time."""
    with sound_server() as speakers:
        async with host(tmp_path, [speakers.environment]) as here:
            sent, seconds = await flood(here, speakers, 1.5)
    # What was heard meanwhile, what was granted, and what the socket holds.
    assert sent <= (seconds + sound.AHEAD_S) * sound.RATE * sound.FRAME + MAX_SOCKET


async def flood(here: Host, speakers: SoundServer, seconds: float) -> tuple[int, float]:
    """What could be sent, and how long it took."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    service, sent = here.service(sound.PLAY_SERVICE), 0
    with ours, theirs:
        call = HostCall(WORK, sound.PLAY_SERVICE, "", "dom0", b"", connection=theirs)
        playing = asyncio.ensure_future(service.answer(call))
        await until(lambda: playing.done() or speakers.streams() == [WORK], "no stream")
        assert not playing.done(), playing.result()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                sent += ours.send(b"\x11" * 65536)
            except BlockingIOError:
                await asyncio.sleep(0.01)
        taken = time.monotonic() - began
        assert not playing.done(), playing.result()
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
    await until(lambda: not speakers.streams(), "what was hung up goes on")
    return sent, taken
