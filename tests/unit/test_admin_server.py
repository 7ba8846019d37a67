"""The server: who may call, what is answered to whom, slow and vanishing clients, many at once."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.admin import server
from insula.admin.client import AccessRefused
from insula.admin.server import CallerRefused, LocalIdentity, PeerCredentials
from insula.events.bus import MAX_LISTENERS
from insula.events.types import Event
from insula.model.errors import QubesException, QubesMemoryError
from insula.model.names import QubeName
from insula.model.qube import Qube, admin_qube
from insula.model.state import PowerState
from insula.storage.pool import NoSpace
from insula.testing.admin_daemon import AdminDaemon, admin_daemon, exchange
from insula_proto.admin import EventRecord

LIST = b"admin.vm.List+ dom0 name dom0\0"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


async def connect(daemon: AdminDaemon, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(request)
    await writer.drain()
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Let the server run until something is so."""
    while not condition():
        await asyncio.sleep(0)


# who calls (MC-18, MC-108)


def test_own_user_and_root_are_admitted() -> None:
    identity = LocalIdentity(uid=1000)
    for uid in (0, 1000):
        identity.admit(PeerCredentials(pid=1, uid=uid, gid=uid))


def test_other_user_is_refused() -> None:
    with pytest.raises(CallerRefused, match="user 1001"):
        LocalIdentity(uid=1000).admit(PeerCredentials(pid=1, uid=1001, gid=1000))


def test_local_caller_may_speak_for_dom0_only() -> None:
    peer = PeerCredentials(pid=1, uid=0, gid=0)
    LocalIdentity().confirm(peer, admin_qube())
    work = Qube(**{**vars(admin_qube()), "name": QubeName("work")})
    with pytest.raises(CallerRefused, match="claims to be work"):
        LocalIdentity().confirm(peer, work)


class Nobody(LocalIdentity):
    """Admits no user at all; the tests run as root, whom the real one lets in."""

    def admit(self, peer: PeerCredentials) -> None:
        raise CallerRefused(f"user {peer.uid} may not use this socket")


async def test_refused_user_gets_no_byte_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with admin_daemon(tmp_path, identity=Nobody()) as daemon:
        assert await exchange(daemon.socket, LIST) == b""
        with pytest.raises(AccessRefused):
            await daemon.client.start("work")
        assert daemon.engine.power_state(QubeName("work")) is PowerState.HALTED
    assert f"user {os.getuid()} may not" in caplog.text


async def test_claiming_to_be_another_qube_gets_no_byte_and_is_logged(
    daemon: AdminDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    assert await exchange(daemon.socket, b"admin.vm.List+ work name dom0\0") == b""
    assert "claims to be work" in caplog.text


async def test_socket_is_for_its_owner_only(daemon: AdminDaemon) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


async def test_socket_is_gone_after_the_end_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        socket = daemon.socket
    assert not socket.exists()
    socket.touch()
    async with admin_daemon(tmp_path) as daemon:
        assert (await exchange(socket, LIST)).startswith(b"0\0")


# errors


async def test_unexpected_error_closes_without_a_byte_and_is_logged(
    daemon: AdminDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.engine.fail("start", ZeroDivisionError("secret detail"))
    assert await exchange(daemon.socket, b"admin.vm.Start+ dom0 name work\0") == b""
    assert "secret detail" in caplog.text
    assert (await exchange(daemon.socket, LIST)).startswith(b"0\0")


async def test_published_error_has_no_traceback(daemon: AdminDaemon) -> None:
    daemon.engine.fail("start", QubesMemoryError("Not enough memory: 90% used"))
    answer = await exchange(daemon.socket, b"admin.vm.Start+ dom0 name work\0")
    assert answer == b"2\0QubesMemoryError\0\0Not enough memory: 90%% used\0"


async def test_storage_error_has_the_published_name(daemon: AdminDaemon) -> None:
    daemon.engine.fail("volume_resize", NoSpace("The pool is full"))
    answer = await exchange(daemon.socket, b"admin.vm.volume.Resize+private dom0 name work\x003221225472")
    assert answer == b"2\0StoragePoolException\0\0The pool is full\0"


# slow clients (MC-13, MC-14, MC-107)


async def test_half_a_request_is_dropped_after_a_while(daemon: AdminDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 0.05)
    for part in (b"", b"admin.vm.Li", LIST, b"admin.vm.volume.Import+private dom0 name work\0abc"):
        reader, writer = await connect(daemon, part)
        assert await reader.read() == b""
        await close(writer)


async def test_client_that_never_reads_is_hung_up_on(daemon: AdminDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT", 0.05)
    _, writer = await connect(daemon, b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: daemon.bus.listener_count == 1)
    flood = Event("work", "e", {"value": "x" * 10000})
    while daemon.bus.listener_count:
        daemon.bus.publish(flood)
        await asyncio.sleep(0)
    await close(writer)


async def test_too_many_connections_are_closed_at_once(daemon: AdminDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    waiting = [await connect(daemon, b"admin") for _ in range(2)]
    assert await exchange(daemon.socket, LIST) == b""
    for _, writer in waiting:
        await close(writer)
    for reader, _ in waiting:
        await reader.read()
    answer = b""
    while not answer:  # the server notices the closed ones in its own time
        answer = await exchange(daemon.socket, LIST)
    assert answer.startswith(b"0\0")


async def test_waiting_call_does_not_delay_others(daemon: AdminDaemon) -> None:
    gate = daemon.engine.hold("start")
    starting = asyncio.create_task(daemon.client.start("work"))
    states = set()
    while PowerState.TRANSIENT not in states:
        states = {row.state for row in await daemon.client.list_qubes()}
    assert not starting.done()
    gate.set()
    await starting
    assert (await daemon.client.current_state("work")).power_state is PowerState.RUNNING


async def test_client_gone_while_its_call_waits_does_not_stop_the_call(daemon: AdminDaemon) -> None:
    gate = daemon.engine.hold("start")
    async with aclosing(daemon.client.stream("admin.Events")) as events:
        await anext(events)
        _, writer = await connect(daemon, b"admin.vm.Start+ dom0 name work\0")
        writer.write_eof()
        assert (await anext(events)).name == "domain-pre-start"
        await close(writer)
        gate.set()
        while (await anext(events)).name != "domain-start":
            pass


async def test_end_of_the_server_ends_waiting_calls_and_streams(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        daemon.engine.hold("start")
        starting = asyncio.create_task(daemon.client.start("work"))
        events = daemon.client.stream("admin.Events")
        assert (await anext(events)).name == "connection-established"
        await until(lambda: daemon.engine.power_state(QubeName("work")) is PowerState.TRANSIENT)
    with pytest.raises(AccessRefused):
        await starting
    rest = [event.name async for event in events]
    assert set(rest) <= {"domain-pre-start", "domain-start-failed"}


# streams


async def names(events: AsyncGenerator[EventRecord, None], count: int) -> list[str]:
    return [(await anext(events)).name for _ in range(count)]


async def test_events_of_another_qube_are_not_in_a_qubes_stream(daemon: AdminDaemon) -> None:
    async with aclosing(daemon.client.events("work")) as events:
        assert await names(events, 1) == ["connection-established"]
        daemon.bus.publish(Event("debian-12", "domain-start"))
        daemon.bus.publish(Event("", "domain-add", {"vm": "x"}))
        daemon.bus.publish(Event("work", "domain-start"))
        assert await anext(events) == EventRecord("work", "domain-start")


@pytest.mark.parametrize(
    "name",
    ["admin-permission:admin.vm.List", "device-get:pci", "device-list:pci", "domain-is-fully-usable"],
)
async def test_events_that_are_never_sent_are_kept_back(daemon: AdminDaemon, name: str) -> None:
    async with aclosing(daemon.client.events()) as events:
        await anext(events)
        daemon.bus.publish(Event("work", name))
        daemon.bus.publish(Event("work", "domain-start"))
        assert (await anext(events)).name == "domain-start"


async def test_listener_is_off_the_bus_as_soon_as_its_client_hangs_up(daemon: AdminDaemon) -> None:
    """Nothing has to happen for it: otherwise idle streams would pile up to the limit."""
    for _ in range(MAX_LISTENERS + 10):
        async with aclosing(daemon.client.events()) as events:
            await anext(events)
    await until(lambda: daemon.bus.listener_count == 0)


async def test_one_listener_too_many_is_told(daemon: AdminDaemon) -> None:
    listeners = [daemon.bus.listen() for _ in range(MAX_LISTENERS)]
    with pytest.raises(QubesException, match=str(MAX_LISTENERS)):
        await anext(daemon.client.events())
    for listener in listeners:
        listener.close()


async def test_listener_that_is_too_slow_is_disconnected(daemon: AdminDaemon) -> None:
    async with aclosing(daemon.client.events()) as events:
        await anext(events)
        for _ in range(5000):  # all at once: the stream's task has no chance to take any
            daemon.bus.publish(Event("work", "domain-start"))
        assert [event async for event in events] == []


async def test_bus_closing_ends_the_stream(daemon: AdminDaemon) -> None:
    async with aclosing(daemon.client.events()) as events:
        await anext(events)
        daemon.bus.publish(Event("work", "domain-start"))
        daemon.bus.close()
        assert [event.name async for event in events] == ["domain-start"]


# logs (MC-109)


async def test_payload_is_in_no_log(daemon: AdminDaemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await daemon.client.set_feature("work", "x-key", "hunter2hunter2")
    await exchange(daemon.socket, b"admin.vm.notes.Set+ dom0 name work\0hunter2hunter2\xff")
    await exchange(daemon.socket, b"admin.nosuch+ dom0 name work\0hunter2hunter2")
    assert "admin.vm.feature.Set+x-key from dom0 on work" in caplog.text
    assert "hunter2" not in caplog.text
