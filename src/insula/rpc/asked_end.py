"""The caller's end of a call that the host makes to a service of this qube, kept by the qube's session.

The daemon hands in all it has to say, of a size it has announced, through a socket that it keeps for as long as it
wants to know the answer. What the qube says is collected up to a limit and handed to the daemon as one typed message,
if the service ended well; in any other case the daemon learns that the call is over.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from insula.rpc.channel import Channel
from insula.rpc.control import Ask, Payload
from insula.rpc.relay import RelayOwner
from insula.rpc.socket_end import SocketEnd
from insula_proto.qrexec import ExitCode, Hello, Stdout
from insula_proto.qrexec_channel import CallerEnd

READ_SIZE = 65536


class AskedEnd(SocketEnd):
    """Opens its stream to ``port``; takes over ``connection``. Without a listener the service is ended."""

    def __init__(
        self,
        channel: Channel,
        connection: socket.socket,
        owner: RelayOwner,
        port: int,
        ask: Ask,
        tell: Callable[[Payload], None],
    ) -> None:
        self._protocol = CallerEnd()
        super().__init__(channel, connection, owner, port, self._protocol.receive)
        self._call = ask.call
        self._limit = ask.limit
        self._left = ask.size
        self._tell = tell
        self._words = bytearray()
        """Of the daemon, not sent yet; at most what it announced."""
        self._has_said = False
        self._answer = bytearray()
        self._has_answered = False
        self._writer.write(self._protocol.hello())
        self._loop.add_reader(connection, self._readable)

    # --- from the daemon -----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        data = self._read_socket(READ_SIZE)
        if data is None:
            return
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

    # --- from the qube -------------------------------------------------------------------------------------------

    def data(self, untrusted_data: bytes) -> None:
        self._channel.consumed(self.stream, len(untrusted_data))
        for message in self._messages(untrusted_data):
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
