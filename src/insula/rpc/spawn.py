"""Starting a session process: forked, in its sandbox, from the preloaded parent (``insula.preload``).

What the process can reach: the three sockets it is given, and a pipe for its last words. It has no file system,
network, other process, capability or environment, and dies with the daemon. Started by a root daemon it runs as host
user 0x70000000 + qid, one a qube.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.preload.last_words import LastWords
from insula.preload.messages import Fork
from insula.rpc import control
from insula.rpc.control import FromSession, ToSession
from insula.rpc.outbox import Descriptor, Outbox
from insula_proto import limits

SESSION_UID_BASE = 0x70000000
"""Host user of a qube's processes under a root daemon, plus its qid; far above what any distribution hands out."""
SESSION_PROGRAM = "insula.rpc.session"
SESSION_FILES = 2048
"""RLIMIT_NOFILE: a connection and two ends of a data channel for each of ``limits.MAX_CALLS``, and twice that spare."""
SESSION_ADDRESS_SPACE = 2**30
"""RLIMIT_AS in bytes: some 50 MiB of programs, and all windows and queues of a guest that fills its bounds."""


@dataclass(frozen=True)
class SessionSpec:
    """Which qube a session is for, and what it starts with."""

    name: str
    qid: int
    default_user: str
    keys: Mapping[str, bytes] = field(default_factory=dict)
    """What the guest is told (QubesDB paths)."""


def session_uid(qid: int) -> int | None:
    """The user of a qube's session; None where sessions stay ours, because only root can give them one."""
    return SESSION_UID_BASE + qid if os.geteuid() == 0 else None


class SessionProcess:
    """A running session; owns the process and the control socket."""

    def __init__(self, process: ForkedProcess, connection: socket.socket, words: LastWords) -> None:
        self._process = process
        self._connection = connection
        self._outbox = Outbox(connection)
        self._words = words

    @property
    def pid(self) -> int:
        """Process id of the session on the host."""
        return self._process.pid

    async def send(self, message: ToSession) -> None:
        """Return once it was sent. :raise OSError: the session is gone."""
        self._outbox.put(control.encode(message))
        await self._outbox.drain()

    def tell(self, message: ToSession, descriptor: Descriptor | None = None) -> None:
        """Send without waiting; takes over ``descriptor``. :raise OSError: the session is gone, or does not read."""
        self._outbox.put(control.encode(message), descriptor)

    async def receive(self) -> FromSession | None:
        """Return the next message, None when the session is gone.

        :raise RemoteProtocolError: it sent something else than messages; it is not to be trusted.
        """
        try:
            data = await asyncio.get_running_loop().sock_recv(self._connection, control.MAX_MESSAGE)
        except ConnectionError:
            return None
        return control.decode_from_session(data) if data else None

    def last_words(self) -> str:
        """What the session printed, guest text made printable by it; for the log."""
        return self._words.data.decode("ascii", "replace")

    def kill(self) -> None:
        """End it at once; idempotent."""
        self._process.kill()

    async def wait(self) -> int:
        """Return the exit code once the process has ended, minus the signal's number if one ended it."""
        return await self._process.wait()

    async def close(self) -> None:
        """End it and wait until nothing of it is left; idempotent."""
        self.kill()
        await self.wait()
        await self._words.wait()
        self._outbox.close()
        self._connection.close()


def _first_messages(spec: SessionSpec) -> list[bytes]:
    """What a session is told before it greets the guest. :raise LocalProtocolError: a key that cannot be told."""
    if len(spec.keys) > limits.QUBESDB_MAX_KEYS:
        raise ValueError(f"{len(spec.keys)} keys")
    messages: list[ToSession] = [control.Configure(spec.name, spec.qid, spec.default_user)]
    messages += [control.SetKey(path, value) for path, value in spec.keys.items()]
    messages.append(control.Begin())
    return [control.encode(message) for message in messages]


async def spawn_session(
    parent: PreloadedParent, spec: SessionSpec, channel: socket.socket, listener: socket.socket
) -> SessionProcess:
    """Start a session and give it its configuration and keys; it greets the guest then.

    ``channel`` and ``listener`` are passed on as descriptors; the caller closes its own copies.

    :raise OSError: it could not be started, or not in its sandbox.
    :raise LocalProtocolError: a key that cannot be told.
    """
    first = _first_messages(spec)
    request = Fork(0, SESSION_PROGRAM, session_uid(spec.qid), SESSION_FILES, SESSION_ADDRESS_SPACE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(writer, True)
    words = LastWords(reader)
    try:
        with theirs:
            try:
                process = await parent.fork(request, [writer, channel.fileno(), listener.fileno(), theirs.fileno()])
            finally:
                os.close(writer)
    except BaseException:
        words.close()
        ours.close()
        raise
    session = SessionProcess(process, ours, words)
    try:
        for message in first:
            await asyncio.get_running_loop().sock_sendall(ours, message)
    except BaseException:
        await session.close()
        raise
    return session
