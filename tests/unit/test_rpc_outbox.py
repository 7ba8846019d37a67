from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from insula.rpc import outbox
from insula.rpc.outbox import Outbox

FULL = b"x" * 60000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def test_message_and_its_descriptor_are_sent_at_once_and_the_descriptor_is_closed_here(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    box = Outbox(pair[0])
    passed, other = socket.socketpair()
    with other:
        box.put(b"message", passed)
        assert passed.fileno() == -1
        data, [descriptor], _, _ = socket.recv_fds(pair[1], 100, 1)
        assert data == b"message"
        os.close(descriptor)


async def test_messages_wait_in_order_while_nobody_reads(pair: tuple[socket.socket, socket.socket]) -> None:
    box = Outbox(pair[0])
    numbers = range(20)
    for number in numbers:
        box.put(bytes([number]) + FULL)
    draining = asyncio.create_task(box.drain())
    received = [await asyncio.get_running_loop().sock_recv(pair[1], 70000) for _ in numbers]
    assert [data[0] for data in received] == list(numbers)
    await draining


async def test_session_that_does_not_read_is_given_up_and_descriptors_are_closed(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-14."""
    monkeypatch.setattr(outbox, "MAX_QUEUED", 20)
    box = Outbox(pair[0])
    passed = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    with pytest.raises(OSError, match="does not read"):
        for one in passed:
            box.put(FULL, one)
    given = [one.fileno() for one in passed[:-1] if one.fileno() >= 0]
    assert len(given) < len(passed) // 2
    with pytest.raises(BrokenPipeError):
        await box.drain()
    late, other = socket.socketpair()
    other.close()
    with pytest.raises(BrokenPipeError):
        box.put(b"", late)
    assert late.fileno() == -1
    for one in passed:
        one.close()


async def test_waiting_sender_is_told_when_the_session_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    box = Outbox(pair[0])
    for _ in range(20):
        box.put(FULL)
    draining = asyncio.create_task(box.drain())
    await asyncio.sleep(0)
    pair[1].close()
    with pytest.raises(BrokenPipeError):
        await draining
