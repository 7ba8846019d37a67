"""Sockets of vchans and daemons, for programs that do one thing and may wait for it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from insula.qrexec.errors import ChannelTimeout, DaemonAbsent, DaemonError
from insula_proto import qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExecCmdline, Hello, JustExec, Message, ServiceConnect
from insula_proto.qrexec_channel import LocalClient
from insula_proto.vchan import MAX_PATH

READ_SIZE = 65536
_RETRIES = ((0.1, 0.0005), (5.0, 0.01))
"""How long a vchan is looked for that often: at first its server is about to listen, then about to start…"""
_SLOW_RETRY_S = 0.1
"""…and then its qube is not about to come."""


class Deadline:
    """Seconds from now; None or 0: never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = time.monotonic() + seconds if seconds else None

    @property
    def left(self) -> float | None:
        """None: no limit. 0 once it has passed."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left == 0


def wait_readable(*descriptors: int, deadline: Deadline) -> bool:
    """Wait until one of them is; False: not in time."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    left = deadline.left
    return bool(poll.poll(None if left is None else left * 1000))


# --- vchans --------------------------------------------------------------------------------------------------------


def try_vchan(path: str) -> socket.socket | None:
    """Connect to a vchan; None: nobody serves it (yet). :raise OSError: no attempt will do better."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        channel.close()
        return None
    except OSError:
        channel.close()
        raise
    return channel


def retry_after(waited: float) -> float:
    """Seconds to the next attempt, after that long without success."""
    return next((interval for limit, interval in _RETRIES if waited < limit), _SLOW_RETRY_S)


def connect_vchan(path: str, deadline: Deadline) -> socket.socket:
    """Return the connection, once somebody serves it. :raise ChannelTimeout: :raise OSError:"""
    begin = time.monotonic()
    while (channel := try_vchan(path)) is None:
        if deadline.is_over:
            raise ChannelTimeout(f"nobody serves {path}")
        time.sleep(retry_after(time.monotonic() - begin))
    return channel


class ServedVchan:
    """A vchan of ours that waits for its one client."""

    def __init__(self, path: str) -> None:
        """:raise OSError:"""
        self._path = path
        Path(path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise

    def accept(self, deadline: Deadline) -> socket.socket:
        """Return the client's connection; the name is free after it. :raise ChannelTimeout: :raise OSError:"""
        try:
            if not wait_readable(self._listener.fileno(), deadline=deadline):
                raise ChannelTimeout(f"nobody connected to {self._path}")
            return self._listener.accept()[0]
        finally:
            self.close()

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.close()
            # Nobody else serves this name: ports are allotted. (Published servers leave the file.)
            Path(self._path).unlink(missing_ok=True)


# --- daemons -------------------------------------------------------------------------------------------------------


class DaemonClient:
    """A connection to a qube's daemon: one request, and word of its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._channel = LocalClient()

    @classmethod
    def connect(cls, folder: str, name: str) -> DaemonClient:
        """By name, domain or ``uuid:…``. :raise DaemonAbsent: :raise DaemonError:"""
        path = f"{folder}/qrexec.{name}"
        if "/" in name or len(os.fsencode(path)) > MAX_PATH:
            raise DaemonError(f"not the name of a daemon: {name!r}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise DaemonAbsent(f"no daemon at {path}") from error
        except OSError as error:
            connection.close()
            raise DaemonError(f"{path}: {error}") from error
        return cls(connection)

    def ask(self, request: ExecCmdline | JustExec) -> tuple[int, int]:
        """Have a command run; return domain and port of its data channel. :raise DaemonError:"""
        return self._ask(request)

    def serve(self, ident: bytes) -> tuple[int, int]:
        """Say that we serve request ``ident``; return domain and port of its data channel. :raise DaemonError:"""
        return self._ask(ServiceConnect(0, 0, ident))

    def connect_to(self, domain: int, port: int, ident: bytes) -> None:
        """Say that ``domain`` serves request ``ident``. :raise DaemonError:"""
        self._greet()
        self._send(self._channel.request(ServiceConnect(domain, port, ident)))

    def wait_for_end(self) -> None:
        """Return when the port of our request is free again, or the daemon is gone."""
        wait_readable(self._connection.fileno(), deadline=Deadline(None))

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def _ask(self, request: ExecCmdline | JustExec | ServiceConnect) -> tuple[int, int]:
        self._greet()
        self._send(self._channel.request(request))
        answer = self._receive()
        assert isinstance(answer, (ExecCmdline, JustExec, ServiceConnect))
        return answer.domain, answer.port

    def _greet(self) -> None:
        if not isinstance(self._receive(), Hello):
            raise DaemonError("the daemon did not say HELLO")
        self._send(self._channel.hello())

    def _receive(self) -> Message:
        try:
            while data := self._connection.recv(READ_SIZE):
                if messages := self._channel.receive(data):
                    return messages[0]
        except (OSError, RemoteProtocolError) as error:
            raise DaemonError(f"the daemon failed: {error}") from error
        raise DaemonError("the daemon refused the request")

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise DaemonError(f"the daemon failed: {error}") from error


def handshake(
    channel: socket.socket, hello: bytes, receive: Callable[[bytes], list[Message]], deadline: Deadline
) -> list[Message]:
    """Both HELLOs of a data channel; return what came behind the peer's.

    :raise RemoteProtocolError: :raise ChannelTimeout: :raise OSError:
    """
    channel.sendall(hello)
    while True:
        if not wait_readable(channel.fileno(), deadline=deadline):
            raise ChannelTimeout("the other end does not say HELLO")
        untrusted_data = channel.recv(qrexec.HEADER.size + 4)
        if not untrusted_data:
            raise RemoteProtocolError("closed before HELLO")
        messages = receive(untrusted_data)
        if messages:
            return messages[1:]
