"""One end of a call as the daemon sees it: what a session process says about the data channel it was given."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from insula.rpc.control import CallAccepted, CallEnded, CallRejected, Payload

T = TypeVar("T")


class CallEnd:
    """Kept by the session until the call is over, or the session is."""

    def __init__(self, call: int) -> None:
        loop = asyncio.get_running_loop()
        self.call = call
        self.accepted: asyncio.Future[bool] = loop.create_future()
        """Whether the qube that is to serve was told so."""
        self.payload: asyncio.Future[bytes | None] = loop.create_future()
        """What the caller says to a service of the host; None: it went away first."""
        self.ended: asyncio.Future[CallEnded] = loop.create_future()
        """The session has nothing more to do with it."""

    def take(self, message: CallAccepted | CallRejected | Payload | CallEnded) -> bool:
        """Whether this was the last message."""
        if isinstance(message, CallEnded):
            self._end(message)
            return True
        if isinstance(message, Payload):
            _set(self.payload, message.data)
            return False
        _set(self.accepted, isinstance(message, CallAccepted))
        if isinstance(message, CallRejected):
            self.lose()
            return True
        return False

    def lose(self) -> None:
        """The session is gone, and the data channel with it."""
        self._end(CallEnded(self.call, 0, 0))

    def _end(self, message: CallEnded) -> None:
        _set(self.accepted, False)
        _set(self.payload, None)
        _set(self.ended, message)


def _set(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
