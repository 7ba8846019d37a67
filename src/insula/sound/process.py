"""``insula-sound``: the process between one qube and the user's sound server, for as long as the qube plays or records.

It is forked into its sandbox like a session (:mod:`insula.preload`): no file, no network, no other process, and three
descriptors, one to the server, connected and greeted already, one with the qube's samples, and one from which it hears
once what it is for. It ends when either side does; why is on its stderr.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Sequence

from insula.sound import control
from insula.sound.stream import Playback, Recording, Stream, StreamRefused
from insula_proto.errors import RemoteProtocolError

READ_SIZE = 65536
STEP_S = 10.0
"""Seconds a server may take until the stream is there, or all of it was heard at its end."""
SILENCE_S = 60.0
"""Seconds without a word from either side."""
EXIT_OK = 0
EXIT_REFUSED = 1


class _Pipe:
    """One side: its socket, and what is to be sent there."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.pending = bytearray()

    def flush(self) -> None:
        """:raise OSError: the other end has gone."""
        while self.pending:
            try:
                del self.pending[: self.connection.send(self.pending)]
            except BlockingIOError:
                return

    def interest(self, *, may_read: bool) -> int:
        return (select.POLLIN if may_read else 0) | (select.POLLOUT if self.pending else 0)

    def receive(self, size: int) -> bytes | None:
        """None: nothing is there. :raise OSError:"""
        try:
            return self.connection.recv(size)
        except BlockingIOError:
            return None


def carry(stream: Stream, server: socket.socket, qube: socket.socket) -> None:
    """Until it is over. :raise StreamRefused, RemoteProtocolError, OSError: the server has ended it."""
    to_server, to_qube = _Pipe(server), _Pipe(qube)
    ends_at: float | None = None
    while True:
        to_server.pending += stream.take_for_server()
        to_qube.pending += stream.take_for_qube()
        to_server.flush()
        try:
            to_qube.flush()
        except OSError:  # the qube's call has ended
            return
        if stream.is_over and not to_server.pending:
            return
        poll = select.poll()
        poll.register(server, to_server.interest(may_read=True))
        room = stream.room if ends_at is None else 0
        poll.register(qube, to_qube.interest(may_read=bool(room))) if ends_at is None else None
        left = SILENCE_S if ends_at is None else ends_at - time.monotonic()
        ready = dict(poll.poll(max(0.0, left) * 1000)) if left > 0 else {}
        if not ready:
            return
        if ready.get(server.fileno(), 0) & ~select.POLLOUT:
            data = to_server.receive(READ_SIZE)
            if data == b"":
                raise StreamRefused("the sound server has gone")
            if data:
                stream.server_data(data)
        events = ready.get(qube.fileno(), 0)
        if events & select.POLLIN:
            try:
                untrusted_data = to_qube.receive(room)
            except OSError:  # its call has ended, with words for it unread
                return
            if untrusted_data:
                stream.qube_data(untrusted_data)
            elif untrusted_data is not None:
                stream.qube_end()
                ends_at = time.monotonic() + STEP_S
        elif events & (select.POLLHUP | select.POLLERR):
            return


def run(settings: control.Configure, server: socket.socket, qube: socket.socket) -> int:
    stream = (Recording if settings.records else Playback)(settings.qube)
    try:
        carry(stream, server, qube)
    except (StreamRefused, RemoteProtocolError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    return EXIT_OK


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent; the descriptors are those of the server, the qube and the daemon."""
    server, qube, daemon = (socket.socket(fileno=number) for number in descriptors)
    with server, qube, daemon:
        settings = control.decode(daemon.recv(control.MAX_MESSAGE))
        return run(settings, server, qube)
