"""The caller's end of a call that the host makes to a service of this qube, kept by the qube's session.

The daemon hands in all it has to say, of a size it has announced, through a socket that it keeps for as long as it
wants to know the answer. What the qube says is collected up to a limit and handed to the daemon as one typed message,
if the service ended well; in any other case the daemon learns that the call is over.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from insula.rpc.channel import Channel, StreamHandler, StreamWriter
from insula.rpc.control import Ask, Payload
from insula.rpc.relay import RelayOwner
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExitCode, Hello, Stdout
from insula_proto.qrexec_channel import CallerEnd

READ_SIZE = 65536


class AskedEnd(StreamHandler):
    """Opens its stream to ``port``; takes over ``connection``."""

    def __init__(
        self,
        channel: Channel,
        connection: socket.socket,
        owner: RelayOwner,
        port: int,
        ask: Ask,
        tell: Callable[[Payload], None],
    ) -> None:
        connection.setblocking(False)
        self._channel = channel
        self._connection = connection
        self._owner = owner
        self._port = port
        self._call = ask.call
        self._limit = ask.limit
        self._left = ask.size
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._protocol = CallerEnd()
        self._words = bytearray()
        """Of the daemon, not sent yet; at most what it announced."""
        self._has_said = False
        self._answer = bytearray()
        self._has_answered = False
        self._is_closed = False
        self.from_qube = 0
        self.to_qube = 0
        self.stream = channel.open(port, self)
        self._writer = StreamWriter(channel, self.stream)
        self._writer.write(self._protocol.hello())
        self._loop.add_reader(connection, self._readable)

    # --- from the daemon -----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.caller_gone()
            return
        self._words += data[: self._left]
        self._left -= min(len(data), self._left)
        self._say()

    def _say(self) -> None:
        """All at once, when all is here and the service listens."""
        if self._has_said or self._left or self._protocol.version is None or self._has_answered:
            return
        self._has_said = True
        if self._words:
            self.to_qube = len(self._words)
            for piece in self._protocol.stdin(bytes(self._words)):
                self._writer.write(piece)
        self._writer.write(self._protocol.stdin_end())
        self._words.clear()

    def caller_gone(self) -> None:
        """Nobody wants the answer: the service is ended."""
        if not self._is_closed:
            self._channel.reset(self.stream)
            self._close()

    # --- from the qube -------------------------------------------------------------------------------------------

    def data(self, untrusted_data: bytes) -> None:
        self._channel.consumed(self.stream, len(untrusted_data))
        try:
            messages = self._protocol.receive(untrusted_data)
        except RemoteProtocolError:
            self.caller_gone()
            return
        for message in messages:
            if isinstance(message, Hello):
                self._say()
            elif isinstance(message, Stdout):
                self.from_qube += len(message.data)
                if len(self._answer) + len(message.data) > self._limit:
                    self.caller_gone()
                    return
                self._answer += message.data
            elif isinstance(message, ExitCode):
                if message.code == 0:
                    self._tell(Payload(self._call, bytes(self._answer)))
                self._has_answered = True
                self._channel.finish(self.stream)
                if not self._channel.is_open(self.stream):
                    # Its end came along with the code; nothing more will be said of the stream.
                    self._close()

    def writable(self) -> None:
        if not self._is_closed and not self._has_answered:
            self._writer.flush()

    def fin(self) -> None:
        if self._has_answered:
            self._close()
        else:
            self.caller_gone()

    def closed(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._connection)
        self._connection.close()
        self._owner.relay_closed(self._port)
