"""An end of a call's data channel that is a socket of the daemon's, kept by the qube's session in place of a program.

What both kinds have in common (:mod:`insula.rpc.asked_end`, :mod:`insula.rpc.host_end`): a stream, a socket, and how
the two end together.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from insula.rpc.channel import Channel, StreamHandler, StreamWriter
from insula.rpc.relay import RelayOwner
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import Message


class SocketEnd(StreamHandler):
    """Opens its stream to ``port``; takes over ``connection``. ``decode`` is the protocol's, for what the qube says."""

    def __init__(
        self,
        channel: Channel,
        connection: socket.socket,
        owner: RelayOwner,
        port: int,
        decode: Callable[[bytes], Sequence[Message]],
    ) -> None:
        connection.setblocking(False)
        self._channel = channel
        self._connection = connection
        self._owner = owner
        self._port = port
        self._decode = decode
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self.from_qube = 0
        self.to_qube = 0
        self.stream = channel.open(port, self)
        self._writer = StreamWriter(channel, self.stream)

    def caller_gone(self) -> None:
        """Nobody wants the answer."""
        if not self._is_closed:
            self._channel.reset(self.stream)
            self._close()

    def closed(self) -> None:
        self._close()

    def _messages(self, untrusted_data: bytes) -> Sequence[Message]:
        """What the qube says; none, and it is over, where that is against the protocol.

        A data channel is a program's, not the agent's: its faults end its own call.
        """
        try:
            return self._decode(untrusted_data)
        except RemoteProtocolError:
            self.caller_gone()
            return ()

    def _read_socket(self, size: int) -> bytes | None:
        """What the daemon says; empty: nothing more, None: nothing yet."""
        try:
            return self._connection.recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._release()
        self._loop.remove_reader(self._connection)
        self._connection.close()
        self._owner.relay_closed(self._port)

    def _release(self) -> None:
        """What else there is to end; said once."""
