"""Services of the host itself, the target ``@adminvm``: a table of names, each with the code that answers.

What a caller says has been collected by its session, bounded, before it comes here; it is any bytes a qube likes, and
the only place where they are parsed is the service's own handler (:mod:`insula.admin`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from insula.rpc.control import MAX_LAST_WORDS, MAX_PAYLOAD


async def nothing() -> AsyncIterator[bytes]:
    """A stream of no bytes."""
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


@dataclass(frozen=True)
class HostCall:
    """A call of a qube to the host, allowed by policy."""

    caller: str
    """From the channel, never from the message (MC-18)."""
    service: str
    argument: str
    """Without its plus sign; empty: none."""
    destination: str
    """The qube it is about; dom0 if the caller named none."""
    untrusted_payload: bytes
    untrusted_keys: Mapping[str, bytes] = field(default_factory=dict, compare=False)
    """What the caller has written for the host to read (QubesDB), path → value."""
    untrusted_stream: AsyncIterator[bytes] = field(default_factory=nothing, compare=False)
    """What the caller says, as it comes, where the service takes a stream. :raise TimeoutError: it stays silent"""
    connection: socket.socket | None = field(default=None, compare=False)
    """Of a stream: where that comes from and what is written goes to the caller, for a service that has a process read
    and write there in its place. It stays the broker's; nothing of ``untrusted_stream`` may be asked for then."""


@dataclass(frozen=True)
class HostReply:
    """What the caller gets."""

    output: bytes | AsyncGenerator[bytes, None] = b""
    """A stream of bytes goes on until one side ends it."""
    code: int = 0
    last_words: str = ""
    """Goes to the caller's stderr."""

    @property
    def stderr(self) -> bytes:
        """The last words as they are sent."""
        return self.last_words.encode("ascii", "replace")[:MAX_LAST_WORDS]


@dataclass(frozen=True)
class HostService:
    answer: Callable[[HostCall], Awaitable[HostReply]]
    """Whatever it raises is an error of ours: the caller gets an exit code, the log has the rest (MC-22)."""
    max_payload: int = MAX_PAYLOAD
    """Bytes the caller may say; 0: nothing is waited for."""
    is_stream: bool = False
    """It takes what the caller says as it comes, however much that is; instead of ``max_payload``."""


HostServices = Mapping[str, HostService]
"""By name."""
