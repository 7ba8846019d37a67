"""Handing a call to a process inside the user's session (reference: qrexec, §1 and §4, "qrexec-fork-server").

::

    agent ── type, domain, port, length, command ──► server of that user: connects the data channel, runs the command
          ◄── end of file, when the call is over ──
"""

from __future__ import annotations

import os
import struct

from insula_agent import sockets
from insula_agent.log import log
from insula_agent.loop import READ, Loop
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExecCmdline, JustExec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Union

    from insula_agent.sockets import Socket

    Message = Union[ExecCmdline, JustExec]

DEFAULT_SOCKET = "/var/run/qubes/qrexec-server.%s.sock"
"""``%s`` is the user's name."""
HEADER = struct.Struct("<iiii")
MAX_COMMAND = limits.QREXEC_MAX_BODY


def encode(message: Message, command: bytes) -> bytes:
    """The handing over of ``command``, which names no user."""
    return HEADER.pack(qrexec.kind_of(message), message.domain, message.port, len(command) + 1) + command + b"\0"


class Decoder:
    """Reads one handing over, in any pieces."""

    def __init__(self) -> None:
        self._data = b""

    def receive(self, untrusted_data: bytes) -> Message | None:
        """The message, once it is complete. :raise RemoteProtocolError: and nothing else."""
        self._data += untrusted_data
        if len(self._data) < HEADER.size:
            return None
        kind, domain, port, length = HEADER.unpack_from(self._data)
        if kind not in (qrexec.EXEC_CMDLINE, qrexec.JUST_EXEC):
            raise RemoteProtocolError(f"type {kind:#x} is not handed over")
        if not 0 < length <= MAX_COMMAND or domain < 0 or port < 0:
            raise RemoteProtocolError(f"a command of {length} bytes for {domain}:{port}")
        have = len(self._data) - HEADER.size
        if have < length:
            return None
        command = self._data[HEADER.size :]
        if have > length or command[-1:] != b"\0" or b"\0" in command[:-1]:
            raise RemoteProtocolError("a command without its final NUL, or with more behind it")
        return (ExecCmdline if kind == qrexec.EXEC_CMDLINE else JustExec)(domain, port, command[:-1])


class HandedOver:
    """A call that a fork server carries out; ``on_end`` is called when it says that it is over."""

    def __init__(self, loop: Loop, connection: Socket, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._connection = connection
        self._on_end = on_end
        connection.setblocking(False)
        loop.watch(connection.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        del events
        try:
            if os.read(self._connection.fileno(), 1):
                log("a fork server that talks")
        except BlockingIOError:
            return
        except OSError:
            # Reset: it has gone, and the call with it.
            pass
        self._loop.forget(self._connection.fileno())
        self._connection.close()
        self._on_end()


def hand_over(
    loop: Loop, path: str, user: bytes, message: Message, command: bytes, on_end: Callable[[], None]
) -> HandedOver | None:
    """Give the call to the user's fork server; None: there is none."""
    name = user.decode("utf-8", "surrogateescape")
    if "/" in name or "\0" in name or name.startswith("."):
        return None
    connection = sockets.unix_socket()
    try:
        connection.setblocking(False)
        connection.connect(path.replace("%s", name))
        data = encode(message, command)
        sent = connection.send(data)
    except OSError as error:
        connection.close()
        if not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            log(f"fork server: {error}")
        return None
    if sent != len(data):
        # A new connection holds this much; what came of it is never complete there, so it is not run twice.
        connection.close()
        return None
    return HandedOver(loop, connection, on_end)
