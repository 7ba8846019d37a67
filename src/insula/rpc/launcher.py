"""What lifecycle uses: start the session of a qube, know when its agent is ready and why the session ended."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from insula.preload.forks import PreloadedParent
from insula.rpc.control import (
    AgentLost,
    AgentReady,
    CallsChanged,
    FromSession,
    RemoveKey,
    SessionEnding,
    SetKey,
    Shutdown,
)
from insula.rpc.sockets import address
from insula.rpc.spawn import SESSION_PROGRAM, SessionProcess, SessionSpec, spawn_session
from insula_proto.errors import RemoteProtocolError

SHUTDOWN_TIMEOUT = 2.0
"""Seconds a session has to end by itself before it is killed."""
LISTEN_BACKLOG = 512
DEFAULT_USER = "user"
DEFAULT_USER_KEY = "/default-user"

log = logging.getLogger("insula.rpc")


class RunningSession:
    """A session process and what it last said. ``on_message`` sees every message, e.g. keys the guest wrote."""

    def __init__(
        self, name: str, process: SessionProcess, on_message: Callable[[str, FromSession], None] | None = None
    ) -> None:
        self._name = name
        self._process = process
        self._on_message = on_message
        self._ready = asyncio.Event()
        self._reason = ""
        self.agent_version: int | None = None
        """qrexec version both speak; None while there is no agent."""
        self.calls = CallsChanged(0, 0, 0)
        """Counters of calls."""
        self._listener = asyncio.create_task(self._listen(), name=f"session {name}")

    @property
    def pid(self) -> int:
        """Process id of the session on the host."""
        return self._process.pid

    async def wait_ready(self) -> None:
        """Return once commands can be run. :raise ConnectionError: the session ended first."""
        ready = asyncio.create_task(self._ready.wait(), name=f"session {self._name} ready")
        try:
            await asyncio.wait((ready, self._listener), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            raise ConnectionError(f"session of {self._name} ended: {await self.wait_closed()}")

    async def wait_closed(self) -> str:
        """Return why the session ended, once it has; may be awaited by many."""
        await asyncio.shield(self._listener)
        return self._reason

    async def set_key(self, path: str, value: bytes) -> None:
        """Tell the qube a key that is new or has changed. :raise OSError: the session is gone."""
        await self._process.send(SetKey(path, value))

    async def remove_key(self, path: str) -> None:
        """Tell the qube that a key is gone. :raise OSError: the session is gone."""
        await self._process.send(RemoveKey(path))

    async def close(self) -> None:
        """End it; idempotent. Running calls fail as after a lost channel."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._process.send(Shutdown())
                await self._process.wait()
        except (OSError, TimeoutError):
            self._process.kill()
        await asyncio.shield(self._listener)

    async def _listen(self) -> None:
        try:
            while (message := await self._process.receive()) is not None:
                self._take(message)
        except RemoteProtocolError as error:
            self._reason = f"it broke the protocol: {error}"
            self._process.kill()
        finally:
            self._ready.clear()
            self.agent_version = None
            await self._end_process()
        self._reason = self._reason or f"exit code {await self._process.wait()}"
        if words := self._process.last_words():
            log.info("%s: session said: %r", self._name, words[-2000:])

    async def _end_process(self) -> None:
        """It has said its last word: let it end by itself, or see to it."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s: session does not end, killing it", self._name)
        await self._process.close()

    def _take(self, message: FromSession) -> None:
        if isinstance(message, AgentReady):
            self.agent_version = message.version
            self._ready.set()
        elif isinstance(message, AgentLost):
            self.agent_version = None
            self._ready.clear()
            log.warning("%s: agent lost: %s", self._name, message.reason)
        elif isinstance(message, CallsChanged):
            self.calls = message
        elif isinstance(message, SessionEnding):
            self._reason = message.reason
        if self._on_message is not None:
            self._on_message(self._name, message)


def listen(path: Path) -> socket.socket:
    """Return a socket listening at ``path``, in place of what an earlier session left there. :raise OSError:"""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as where:
            listener.bind(where)
        path.chmod(0o600)
        listener.listen(LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class SessionLauncher:
    """Starts session processes; owns the preloaded parent they come from. They end with it.

    ``async with SessionLauncher() as launch: session = await launch(name=…, …)``. Without the context the first call
    starts the parent; :meth:`close` is needed in any case.
    """

    def __init__(self) -> None:
        self._parent = PreloadedParent([SESSION_PROGRAM])

    async def __aenter__(self) -> Self:
        """Have the parent begin with its imports; the first session waits for them, nobody else. :raise OSError:"""
        await self._parent.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def parent_pid(self) -> int | None:
        """Of the preloaded parent that runs at present."""
        return self._parent.pid

    async def close(self) -> None:
        """End the parent and every session; idempotent."""
        await self._parent.close()

    async def __call__(
        self,
        *,
        name: str,
        qid: int,
        channel: socket.socket,
        rpc_socket: Path,
        keys: Mapping[str, str],
        on_message: Callable[[str, FromSession], None] | None = None,
    ) -> RunningSession:
        """Start the session process of a qube; takes over ``channel``. Clients find it at ``rpc_socket``.

        :raise OSError: it could not be started; ``channel`` is still the caller's then.
        """
        user = keys.get(DEFAULT_USER_KEY, DEFAULT_USER)
        spec = SessionSpec(name, qid, user, {path: value.encode() for path, value in keys.items()})
        with listen(rpc_socket) as listener:
            process = await spawn_session(self._parent, spec, channel, listener)
        channel.close()
        return RunningSession(name, process, on_message)
