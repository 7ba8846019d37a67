"""A disposable for as long as a block runs.

The connection that opened it is what keeps it alive (:mod:`insula.admin.leases`): leaving the block ends and removes
it, and so does the end of this process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path

from insula.admin.client import DOM0, AccessRefused, AdminClient, DaemonUnavailable, EventRecord, MalformedAnswer
from insula.model.errors import QubesVMNotFoundError, QubesVMNotStartedError

END_TIMEOUT_S = 60.0
"""For the end and removal of a disposable; a second is usual. After that the daemon goes on with it alone."""
UNKNOWN = "unknown"

_READY, _ENDED = "disposable-ready", "disposable-ended"


class Lease:
    """A disposable that runs."""

    def __init__(self, name: str, rpc_socket: Path) -> None:
        self.name = name
        self.rpc_socket = rpc_socket
        self._watching: asyncio.Task[None] | None = None
        self._reason = UNKNOWN

    async def wait_ended(self) -> str:
        """Wait until the daemon has removed it; returns the reason as :class:`insula.client.errors.QubeEnded`."""
        assert self._watching is not None, "set by lease()"
        await asyncio.wait({self._watching})
        return self._reason

    async def watch(self, stream: AsyncGenerator[EventRecord, None]) -> None:
        with contextlib.suppress(AccessRefused, MalformedAnswer):
            async for record in stream:
                if record.name == _ENDED:
                    self._reason = record.kwargs.get("reason", UNKNOWN)

    async def end(self, client: AdminClient) -> None:
        """Kill it and wait until it is removed, or at most :data:`END_TIMEOUT_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                with contextlib.suppress(
                    QubesVMNotFoundError, QubesVMNotStartedError, DaemonUnavailable, AccessRefused
                ):
                    await client.kill(self.name)
                await self.wait_ended()

    @contextlib.asynccontextmanager
    async def watched(self, stream: AsyncGenerator[EventRecord, None]) -> AsyncIterator[None]:
        self._watching = asyncio.create_task(self.watch(stream), name=f"lease of {self.name}")
        try:
            yield
        finally:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)


@contextlib.asynccontextmanager
async def lease(
    client: AdminClient, template: str = DOM0, options: Mapping[str, object] | None = None
) -> AsyncIterator[Lease]:
    """A disposable, started; ended and removed at the end of the block.

    ``template`` and ``options`` as :meth:`insula.admin.client.AdminClient.open_disposable`.

    :raise InsulaError: the daemon refused. :raise DaemonUnavailable, AccessRefused, MalformedAnswer:
    """
    async with contextlib.aclosing(client.open_disposable(template, options)) as stream:
        ready = await anext(stream, None)
        if ready is None:
            raise AccessRefused("the daemon ended the connection before there was a disposable")
        if ready.name != _READY or "rpc_socket" not in ready.kwargs:
            raise MalformedAnswer(f"instead of a disposable came the event {ready.name!a}")
        held = Lease(ready.subject, Path(ready.kwargs["rpc_socket"]))
        async with held.watched(stream):
            try:
                yield held
            finally:
                await held.end(client)
