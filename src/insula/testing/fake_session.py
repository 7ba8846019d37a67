"""Session processes without processes: for tests of ``lifecycle``. A test decides when the agent answers and when a
session dies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path


class FakeSession:
    """Implements :class:`insula.lifecycle.host.Session`."""

    def __init__(self, keys: Mapping[str, str], channel: socket.socket) -> None:
        self.keys = dict(keys)
        self._channel = channel
        self.ready = asyncio.Event()
        self.told: list[tuple[str, bytes]] = []
        """Services that were called, with their input."""
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait_ready(self) -> None:
        waiting = asyncio.ensure_future(self.ready.wait())
        ending = asyncio.ensure_future(self.wait_closed())
        try:
            await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            ending.cancel()
        if self._ended.done():
            raise ConnectionError(self._ended.result())

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._ended)

    async def set_key(self, path: str, value: bytes) -> None:
        if self._ended.done():
            raise BrokenPipeError(self._ended.result())
        self.keys[path] = value.decode()

    async def remove_key(self, path: str) -> None:
        if self._ended.done():
            raise BrokenPipeError(self._ended.result())
        self.keys.pop(path, None)

    async def tell_service(self, service: str, words: bytes, user: str = "root") -> None:
        del user
        if self._ended.done():
            raise BrokenPipeError(self._ended.result())
        self.told.append((service, words))

    async def close(self) -> None:
        self.die("closed")

    def die(self, why: str) -> None:
        """The process ends; the first time counts."""
        if not self._ended.done():
            self._ended.set_result(why)
            self._channel.close()


class FakeSessions:
    """Implements :class:`insula.lifecycle.host.SessionLauncher`."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, FakeSession]] = []
        self.answers = True
        """Whether the agents of new sessions answer at once."""
        self.fail_next: OSError | None = None

    async def __call__(
        self,
        *,
        name: str,
        qid: int,
        channel: socket.socket,
        rpc_socket: Path,
        keys: Mapping[str, str],
        open_memory: Callable[[], Awaitable[int | None]] | None = None,
    ) -> FakeSession:
        await asyncio.sleep(0)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        session = FakeSession(keys, channel)
        if self.answers:
            session.ready.set()
        self.launched.append((name, session))
        return session

    def of(self, name: str) -> FakeSession:
        """The newest session of a qube."""
        return [session for owner, session in self.launched if owner == name][-1]
