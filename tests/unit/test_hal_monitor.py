from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.hal.errors import DriverError, MachineGone
from insula.hal.qemu.monitor import (
    DiskFailed,
    DiskNode,
    GuestEnded,
    GuestPanicked,
    GuestStopped,
    Monitor,
    MonitorEvent,
    RunState,
    parse_event,
)

LIMIT_S = 120.0
SHORT_S = 0.05
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}

HANG_UP = "hang-up"
"""Command upon which the server of these tests closes the connection."""

Answer = Callable[[str, dict[str, Any]], list[dict[str, Any]]]


# Events


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}}, GuestEnded(True, "guest-reset")),
        ({"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-signal"}}, GuestEnded(False, "host-signal")),
        ({"event": "SHUTDOWN"}, GuestEnded(False, "?")),
        ({"event": "GUEST_PANICKED", "data": {"action": "pause"}}, GuestPanicked()),
        ({"event": "STOP"}, GuestStopped()),
        (
            {"event": "BLOCK_IO_ERROR", "data": {"node-name": "disk0", "nospace": True, "action": "stop"}},
            DiskFailed("disk0", is_full=True, stops_guest=True),
        ),
        ({"event": "BLOCK_IO_ERROR", "data": {"node-name": "a\x1b[2J"}}, DiskFailed("?", False, False)),
        ({"event": "SOMETHING_NEW", "data": {}}, None),
        ({"event": "STOP", "data": ["odd"]}, None),
        ({"event": 7}, None),
        ({}, None),
    ],
)
def test_event_is_parsed_or_ignored(message: dict[str, Any], event: MonitorEvent | None) -> None:
    assert parse_event(message) == event


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=10)
keys = st.sampled_from(["guest", "reason", "node-name", "nospace", "action", "other"])
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars | st.lists(scalars, max_size=2))


@given(st.sampled_from(["SHUTDOWN", "GUEST_PANICKED", "STOP", "BLOCK_IO_ERROR", "X"]), json_values)
def test_event_with_any_data_never_raises(name: str, data: object) -> None:
    parse_event({"event": name, "data": data})


@pytest.mark.parametrize("text", ["prelaunch", "paused", "postmigrate", "something-new", ""])
def test_unknown_run_state_counts_as_stopped(text: str) -> None:
    assert RunState.parse(text) is RunState.STOPPED


# The connection, against a server that speaks QMP as told


@asynccontextmanager
async def monitor(answer: Answer, events: list[MonitorEvent] | None = None) -> AsyncIterator[Monitor]:
    """A connected monitor; the server sends what ``answer(command, arguments)`` returns, "id" filled in."""
    client, server = socket.socketpair()
    for end in (client, server):
        end.setblocking(False)
    serving = asyncio.create_task(serve(server, answer))
    made = Monitor("test", ([] if events is None else events).append)
    try:
        await made.connect(client, LIMIT_S)
        yield made
    finally:
        await made.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        server.close()


async def serve(server: socket.socket, answer: Answer) -> None:
    reader, writer = await asyncio.open_connection(sock=server)
    writer.write(json.dumps(GREETING).encode() + b"\n")
    buffer = ""
    try:
        while part := await reader.read(4096):
            # The client puts nothing between its messages; QMP is a stream of JSON values.
            buffer += part.decode()
            while buffer:
                request, end = json.JSONDecoder().raw_decode(buffer)
                buffer = buffer[end:].lstrip()
                if request["execute"] == HANG_UP:
                    return
                for reply in replies_to(request, answer):
                    writer.write(json.dumps(reply).encode() + b"\n")
    finally:
        writer.close()


def replies_to(request: dict[str, Any], answer: Answer) -> list[dict[str, Any]]:
    if request["execute"] == "qmp_capabilities":
        return [{"return": {}}]
    replies = answer(request["execute"], request.get("arguments", {}))
    return [reply if "event" in reply else {"id": request["id"], **reply} for reply in replies]


async def test_reply_is_returned_and_events_before_it_were_delivered() -> None:
    events: list[MonitorEvent] = []
    stamp = {"seconds": 0, "microseconds": 0}
    replies = [{"event": "STOP", "timestamp": stamp}, {"event": "NEW", "timestamp": stamp}, {"return": {"a": 1}}]
    async with monitor(lambda *_: replies, events) as made:
        assert await made.execute("stop") == {"a": 1}
    assert events == [GuestStopped()]


async def test_refusal_is_a_driver_error_with_qemus_words() -> None:
    refusal = {"error": {"class": "GenericError", "desc": "no such thing"}}
    async with monitor(lambda *_: [refusal]) as made:
        with pytest.raises(DriverError) as caught:
            await made.execute("x")
    assert caught.value.detail == "no such thing"


async def test_silence_is_a_driver_error_after_the_limit() -> None:
    async with monitor(lambda *_: []) as made:
        with pytest.raises(DriverError, match="did not answer"):
            await made.execute("x", limit_s=SHORT_S)


async def test_hang_up_during_a_command_is_machine_gone_and_ends_the_wait() -> None:
    async with monitor(lambda *_: []) as made:
        with pytest.raises(MachineGone):
            await made.execute(HANG_UP)
        async with asyncio.timeout(LIMIT_S):
            await made.wait_closed()
        with pytest.raises(MachineGone):
            await made.execute("y")


async def test_reply_of_the_wrong_form_is_a_driver_error() -> None:
    async with monitor(lambda *_: [{"return": [1, 2]}]) as made:
        for query in (
            made.run_state,
            made.migration_status,
            made.balloon_bytes,
            lambda: made.is_chardev_connected("qmp"),
        ):
            with pytest.raises(DriverError):
                await query()


async def test_queries_return_typed_values() -> None:
    answers: dict[str, Any] = {
        "query-status": {"status": "guest-panicked", "running": False},
        "query-balloon": {"actual": 1 << 20},
        "query-chardev": [
            {"label": "a", "filename": "unix:/x,server=on"},
            {"label": "b", "filename": "disconnected:unix:/y,server=on"},
        ],
        "query-block": [
            {
                "device": "",
                "qdev": "/machine/peripheral/vd0/virtio-backend",
                "inserted": {"node-name": "disk0", "image": {"virtual-size": 512, "format": "qcow2"}},
            },
            {"device": "empty"},
        ],
        "query-migrate": {"status": "failed", "error-desc": "no space"},
    }
    async with monitor(lambda command, _: [{"return": answers[command]}]) as made:
        assert await made.run_state() is RunState.GUEST_PANICKED
        assert await made.balloon_bytes() == 1 << 20
        assert await made.disks() == {"vd0": DiskNode("disk0", 512)}
        assert await made.migration_status() == ("failed", "no space")
        assert await made.is_chardev_connected("a") is True
        assert await made.is_chardev_connected("b") is False


async def test_server_that_never_greets_is_refused_within_the_limit() -> None:
    client, server = socket.socketpair()
    with server, pytest.raises(DriverError, match="did not answer"):
        await Monitor("test", lambda _: None).connect(client, SHORT_S)
    assert client.fileno() == -1


async def test_server_that_hangs_up_or_speaks_something_else_is_refused() -> None:
    for words in (b"", b"SSH-2.0\r\n", b"{}\n"):
        client, server = socket.socketpair()
        server.sendall(words)
        server.close()
        with pytest.raises(DriverError, match="did not greet"):
            await Monitor("test", lambda _: None).connect(client, LIMIT_S)
        assert client.fileno() == -1
