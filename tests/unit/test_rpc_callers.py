"""What a guest can make a session hold for a caller that does not read."""

from __future__ import annotations

import asyncio
import socket
import sys

from insula.rpc.call_table import CallTable
from insula.rpc.channel import Channel, StreamHandler
from insula.rpc.relay import Relay
from insula_proto import limits, mux
from insula_proto.mux import Mux, StreamOpened

PATIENCE = 60.0
PIECE = b"sixteen bytes..."


class Owner:
    """Of the channel and of the calls; nothing is expected of it here."""

    def accept(self, stream: int, port: int) -> StreamHandler | None:
        raise AssertionError((stream, port))

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, reason: str) -> None:
        raise AssertionError(reason)

    def calls_changed(self) -> None:
        pass


class Guest:
    """The other end of the channel, driven by the test."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.mux = Mux(mux.GUEST)
        self.streams: list[int] = []

    async def receive(self) -> None:
        for event in self.mux.receive(await self._loop.sock_recv(self._connection, 1 << 18)):
            if isinstance(event, StreamOpened):
                self.streams.append(event.stream)
        await self.flush()

    async def flush(self) -> None:
        while self.mux.queued:
            data = b"".join(self.mux.data_to_send())
            await self._loop.sock_sendall(self._connection, data)
            self.mux.sent(len(data))


async def test_window_filled_in_small_pieces_for_a_caller_that_does_not_read_is_held_once_and_arrives_whole() -> None:
    owner = Owner()
    host, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    channel = Channel(host, owner)
    guest = Guest(far)
    try:
        async with asyncio.timeout(PATIENCE):
            channel.start()
            while not guest.mux.in_sync:
                await guest.receive()
            while not channel._mux.in_sync:
                await asyncio.sleep(0.001)
            relay = Relay(channel, ours, CallTable(owner), limits.FIRST_DATA_PORT)
            while not guest.streams:
                await guest.receive()
            [stream] = guest.streams
            sent = 0
            while guest.mux.writable(stream) >= len(PIECE):
                while guest.mux.writable(stream) >= len(PIECE):
                    guest.mux.send(stream, PIECE)
                    sent += len(PIECE)
                await guest.flush()
            while channel._mux._streams[stream].receive_credit >= len(PIECE):
                await asyncio.sleep(0.001)
            assert limits.MUX_MAX_WINDOW // 2 < len(relay._pending) <= limits.MUX_MAX_WINDOW
            assert sys.getsizeof(relay._pending) < 1.25 * limits.MUX_MAX_WINDOW
            received = 0
            theirs.setblocking(False)
            while received < sent:
                received += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 20))
    finally:
        channel.close()
        for end in (far, theirs):
            end.close()
