"""The way out as a process, with a guest at its cable that is as slow or as odd as a test wants."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from insula.hal.qemu.outside import PULSE, WayOut, join
from insula.model.uplink import OUTSIDE_GATEWAY
from insula.net import heartbeat
from insula.testing.cable_guest import ACK, FIN, RST, SYN, CableGuest, checksum, own_address, packet, segment

PORTS = 40001
SIZE = 4 << 20
QUIET_S = 0.5
"""Nothing comes in this time: nothing will."""


@pytest.fixture
async def way(tmp_path: Path) -> AsyncIterator[tuple[WayOut, CableGuest]]:
    ours, theirs = socket.socketpair()
    with theirs:
        found = await join(tmp_path, theirs.fileno(), None)
    guest = CableGuest(ours)
    guest.introduce()
    yield found, guest
    guest.close()
    await found.end()


@pytest.fixture
def guest(way: tuple[WayOut, CableGuest]) -> CableGuest:
    return way[1]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((own_address(), 0)) as listening:
        listening.settimeout(120)
        yield listening


def begin(guest: CableGuest, server: socket.socket) -> tuple[socket.socket, int]:
    """A connection from guest to server; the server's end, and the number of the first byte to come."""
    host, port = server.getsockname()
    number = guest.connect(host, (PORTS, port))
    connection, _ = server.accept()
    return connection, number


def download(guest: CableGuest, server: socket.socket, first: int, *, pause_s: float = 0.0) -> tuple[int, int]:
    """Bytes that came in order, and those on the wire, until the end. A pause after every 256 segments."""
    host, port = server.getsockname()
    expected, on_wire, count = first, 0, 0
    while True:
        got = guest.next_segment()
        assert not got.flags & RST
        on_wire += len(got.data)
        count += 1
        if got.sequence == expected % 2**32:
            expected += len(got.data)
        guest.send(segment(host, (PORTS, port), 1001, expected + bool(got.flags & FIN), ACK))
        if got.flags & FIN:
            return expected - first, on_wire
        if count % 256 == 0:
            time.sleep(pause_s)


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
async def test_large_download_arrives_whole_and_once_however_slow_the_guest(
    guest: CableGuest, server: socket.socket, pause_s: float
) -> None:
    connection, first = begin(guest, server)
    sender = threading.Thread(target=lambda: (connection.sendall(bytes(SIZE)), connection.close()))
    sender.start()
    # Longer than any timer of a stack that would take it for a loss and send all again.
    await asyncio.sleep(10 * pause_s)
    arrived, on_wire = download(guest, server, first, pause_s=pause_s)
    sender.join()
    assert arrived == SIZE
    assert on_wire < SIZE * 1.05


async def test_many_downloads_at_once_lose_nothing(guest: CableGuest, server: socket.socket) -> None:
    """More than the cable takes: their windows together."""
    host, port = server.getsockname()
    count, size = 16, 256 * 1024
    connections: list[socket.socket] = []
    expected: dict[int, int] = {}
    first: dict[int, int] = {}
    for index in range(count):
        first[PORTS + index] = expected[PORTS + index] = guest.connect(host, (PORTS + index, port))
        connections.append(server.accept()[0])
    for connection in connections:
        threading.Thread(target=lambda ours=connection: (ours.sendall(bytes(size)), ours.close()), daemon=True).start()
    await asyncio.sleep(1)
    on_wire, open_ones = 0, set(expected)
    while open_ones:
        got = guest.next_segment()
        on_wire += len(got.data)
        if got.sequence == expected[got.port] % 2**32:
            expected[got.port] += len(got.data)
        ends = bool(got.flags & FIN)
        guest.send(segment(host, (got.port, port), 1001, expected[got.port] + ends, ACK))
        if ends:
            open_ones.discard(got.port)
    assert {port: number - first[port] for port, number in expected.items()} == dict.fromkeys(first, size)
    assert on_wire < count * size * 1.05


async def test_question_that_is_repeated_resets_nothing(guest: CableGuest, server: socket.socket) -> None:
    """A guest that is slow asks again for a connection that it has already."""
    host, port = server.getsockname()
    question = segment(host, (PORTS, port), 1000, 0, SYN)
    guest.send(question)
    answer = guest.next_segment()
    guest.send(question)
    guest.send(segment(host, (PORTS, port), 1001, answer.sequence + 1, ACK))
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"here")
        while (got := guest.next_segment()).data != b"here":
            assert not got.flags & RST


async def test_frames_keep_their_order_when_the_cable_is_full(guest: CableGuest) -> None:
    for _ in range(3000):
        guest.send(packet(OUTSIDE_GATEWAY, 1, echo(bytes(1000))))
    received = 0
    while received < 100:
        frame = guest.receive()
        assert frame[12:14] in (b"\x08\x00", b"\x08\x06")
        received += 1


def echo(data: bytes) -> bytes:
    """Of ICMP (RFC 792)."""
    head = struct.pack(">BBHHH", 8, 0, 0, 1, 1)
    return head[:2] + struct.pack(">H", checksum(head + data)) + head[4:] + data


@pytest.mark.parametrize("target", ["127.0.0.1", OUTSIDE_GATEWAY])
async def test_loopback_of_the_host_is_not_reached(guest: CableGuest, target: str) -> None:
    """MC-88"""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(QUIET_S)
        guest.send(segment(target, (PORTS, listening.getsockname()[1]), 1000, 0, SYN))
        with pytest.raises(TimeoutError):
            listening.accept()


async def test_what_is_no_frame_ends_it(way: tuple[WayOut, CableGuest]) -> None:
    found, guest = way
    guest._cable.sendall(b"\xff" * 8)
    assert await found.lost() == "it ended"


async def test_it_shows_that_it_lives(way: tuple[WayOut, CableGuest], tmp_path: Path) -> None:
    begin = time.monotonic()
    async with asyncio.timeout(120):
        while (silence := heartbeat.silence_s(tmp_path / PULSE)) is None or silence >= time.monotonic() - begin:
            await asyncio.sleep(0.05)
    assert not way[0].has_ended
