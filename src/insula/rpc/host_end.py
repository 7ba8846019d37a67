"""The service's end of a call that the host serves, kept by the caller's session: the host reads no byte of a qube.

What the caller says is collected, up to a limit, and handed to the daemon as one typed message; what the service says
comes from the daemon through a socket and goes to the caller as its stdout, paced by the stream's credit (MC-14). Where
the service takes a stream, what the caller says goes into the same socket, which paces it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from insula.rpc.channel import Channel
from insula.rpc.control import Finish, Host, Payload
from insula.rpc.relay import RelayOwner
from insula.rpc.socket_end import SocketEnd
from insula_proto.qrexec import EXIT_PROBLEM, Hello, Stdin
from insula_proto.qrexec_channel import ServiceEnd

INPUT_TIMEOUT = 60.0
"""Seconds a caller may take to say all it has to say to the host (MC-13)."""
READ_SIZE = 32768
TOO_LONG = b"The request is too long\n"
TOO_SLOW = b"The request did not end\n"


class _Feed:
    """Bytes on their way into the socket: never more than what the caller's credit let it send."""

    def __init__(self, connection: socket.socket, on_taken: Callable[[int], None]) -> None:
        """``on_taken``: told how much of the caller's credit can be given back."""
        self._connection = connection
        self._on_taken = on_taken
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._owed = 0
        self._is_ended = False
        self._is_broken = False
        self._is_waiting = False

    def take(self, untrusted_data: bytes) -> None:
        self._pending += untrusted_data

    def end(self) -> None:
        self._is_ended = True

    def flush(self, came: int = 0) -> None:
        """Write what the socket takes. ``came``: so much more of the stream is in here, or was of no use."""
        self._owed += came
        try:
            while self._pending and not self._is_broken:
                del self._pending[: self._connection.send(self._pending)]
        except BlockingIOError:
            pass
        except OSError:  # the service has heard enough
            self._is_broken = True
        self._wait(bool(self._pending) and not self._is_broken)
        if self._is_waiting:
            return
        self._pending.clear()
        if self._owed:
            owed, self._owed = self._owed, 0
            self._on_taken(owed)
        if self._is_ended and not self._is_broken:
            self._is_broken = True
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self._is_broken = True
        self._wait(False)

    def _wait(self, is_full: bool) -> None:
        if is_full and not self._is_waiting:
            self._loop.add_writer(self._connection, self.flush)
        elif not is_full and self._is_waiting:
            self._loop.remove_writer(self._connection)
        self._is_waiting = is_full


class HostEnd(SocketEnd):
    """Opens its stream to ``port``; takes over ``connection``."""

    def __init__(
        self,
        channel: Channel,
        connection: socket.socket,
        owner: RelayOwner,
        port: int,
        host: Host,
        tell: Callable[[Payload], None],
    ) -> None:
        self._protocol = ServiceEnd()
        super().__init__(channel, connection, owner, port, self._protocol.receive)
        self._call = host.call
        self._limit = host.limit
        self._tell = tell
        self._input: bytearray | None = bytearray() if host.limit else None
        """None: the service has all of it, or wants none, or takes it as it comes."""
        self._finish: Finish | None = None
        self._is_reading = False
        self._output_ended = False
        self._has_finished = False
        self._qube_finished = False
        self._feed = _Feed(connection, self._granted) if host.is_stream else None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(INPUT_TIMEOUT, self._too_slow)

    # --- from the caller -----------------------------------------------------------------------------------------

    def data(self, untrusted_data: bytes) -> None:
        if self._feed is None:
            self._granted(len(untrusted_data))
        for message in self._messages(untrusted_data):
            if isinstance(message, Hello):
                self._writer.write(self._protocol.hello())
                if self._input is None:
                    self._stop_timer()
                self._read_more()
            elif isinstance(message, Stdin):
                self._take(message.data)
        if self._feed is not None:
            self._feed.flush(len(untrusted_data))

    def _granted(self, count: int) -> None:
        if not self._is_closed:
            self._channel.consumed(self.stream, count)

    def _take(self, untrusted_data: bytes) -> None:
        self.from_qube += len(untrusted_data)
        if self._feed is not None:
            self._feed.take(untrusted_data) if untrusted_data else self._feed.end()
            return
        if self._input is None:
            return
        if len(self._input) + len(untrusted_data) > self._limit:
            self._give_up(TOO_LONG)
        elif untrusted_data:
            self._input += untrusted_data
        else:
            payload, self._input = bytes(self._input), None
            self._stop_timer()
            self._tell(Payload(self._call, payload))

    def _too_slow(self) -> None:
        self._timer = None
        self._give_up(TOO_SLOW)

    def _give_up(self, last_words: bytes) -> None:
        """Answer in place of the service, which has not heard of the request."""
        self._input = None
        self._stop_timer()
        if self._protocol.version is None:
            self.caller_gone()
            return
        self._output_ended = True
        self._finish = Finish(self._call, EXIT_PROBLEM, last_words)
        self._advance()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fin(self) -> None:
        self._qube_finished = True
        if not self._has_finished:
            self.caller_gone()
        elif not self._writer.size:
            self._close()

    # --- from the service ----------------------------------------------------------------------------------------

    def finish(self, message: Finish) -> None:
        """The service has ended; what it said may still be on its way."""
        self._finish = self._finish or message
        self._advance()

    def _read_more(self) -> None:
        may_read = (
            not self._is_closed
            and not self._output_ended
            and not self._writer.size
            and self._protocol.version is not None
        )
        if may_read and not self._is_reading:
            self._loop.add_reader(self._connection, self._readable)
        elif not may_read and self._is_reading:
            self._loop.remove_reader(self._connection)
        self._is_reading = may_read

    def _readable(self) -> None:
        data = self._read_socket(READ_SIZE)
        if data is None:
            return
        if data:
            self.to_qube += len(data)
            for piece in self._protocol.stdout(data):
                self._writer.write(piece)
            self._read_more()
        else:
            self._output_ended = True
            self._read_more()
            self._advance()

    def writable(self) -> None:
        if not self._is_closed:
            self._writer.flush()
            self._read_more()
            self._advance()

    def _advance(self) -> None:
        """Say how it ended, then close, each as soon as all before it was taken."""
        if self._is_closed or self._protocol.version is None:
            return
        if self._output_ended and self._finish is not None and not self._has_finished:
            self._has_finished = True
            for piece in self._protocol.stderr(self._finish.last_words) if self._finish.last_words else ():
                self._writer.write(piece)
            self._writer.write(self._protocol.finish(self._finish.code))
        if self._has_finished and not self._writer.size:
            self._channel.finish(self.stream)
            if self._qube_finished:
                self._close()

    def _release(self) -> None:
        self._stop_timer()
        if self._feed is not None:
            self._feed.stop()
