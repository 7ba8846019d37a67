"""What the daemon and the preloaded parent tell each other: msgpack, one message a packet of a SOCK_SEQPACKET pair.

:class:`Fork` comes with descriptors (SCM_RIGHTS): where the process's stderr goes, then those its program gets, in
order. :class:`Forked` comes with one, a pidfd. Neither side reads anything here that a qube wrote.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_MESSAGE = 4096
"""Bytes of a packet."""
MAX_DESCRIPTORS = 16
"""Of one process, its stderr included."""
MAX_REASON = 500
MAX_VIEW = 16
"""Paths, and variables, of a :class:`View`."""

Number = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=100)]
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
HostPath = Annotated[str, Meta(min_length=2, max_length=150, pattern=r"^(/[^/\x00]+)+$")]
FileContent = Annotated[bytes, Meta(max_length=1024)]
Variable = tuple[Annotated[str, Meta(pattern=r"^[A-Z_]{1,40}$")], Annotated[str, Meta(max_length=200)]]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all; the class name is the tag on the wire."""


# --- daemon to parent --------------------------------------------------------------------------------------------


class View(_Message, frozen=True, tag=True):
    """What a program needs of the host *until it is prepared*; with its filter it loses all of it but what is open.

    A program that has a ``prepare(variables)`` beside its ``main`` is prepared before it may read anything.
    """

    paths: Annotated[tuple[HostPath, ...], Meta(max_length=MAX_VIEW)]
    """Folders, files and sockets, seen at the same place, read-only."""
    files: Annotated[tuple[tuple[HostPath, FileContent], ...], Meta(max_length=MAX_VIEW)]
    """Small files that are there beside these, for the program's user alone to read."""
    variables: Annotated[tuple[Variable, ...], Meta(max_length=MAX_VIEW)]
    file_size: Annotated[int, Meta(ge=0, le=2**32)]
    """RLIMIT_FSIZE in bytes: of memory files, too."""
    keeps_ipc: bool = False
    """Whether it stays in the host's namespace of System V IPC: for toolkits that try shared memory with the display
    server once, when they connect. Afterwards no call is left that could use it."""


class Fork(_Message, frozen=True, tag=True):
    """Make a process. Nothing here says which qube it is for: what the parent knows, later processes inherit."""

    number: Number
    """Of this request, in the answers."""
    program: Name
    """Module whose ``main`` is run; the parent was told of it at its start."""
    uid: Annotated[int, Meta(ge=1, le=0xFFFFFFFE)] | None
    """Host user and group to become; None: stay who we are."""
    files: Annotated[int, Meta(ge=16, le=65536)]
    """RLIMIT_NOFILE."""
    address_space: Annotated[int, Meta(ge=2**26, le=2**46)]
    """RLIMIT_AS in bytes."""
    view: View | None = None
    """None: nothing of the host, from the beginning."""


# --- parent to daemon --------------------------------------------------------------------------------------------


class Forked(_Message, frozen=True, tag=True):
    """It runs in its sandbox; with its pidfd."""

    number: Number
    pid: Annotated[int, Meta(ge=1, le=2**31)]


class Failed(_Message, frozen=True, tag=True):
    """It could not be made; nothing of it is left."""

    number: Number
    reason: Reason


class Ended(_Message, frozen=True, tag=True):
    """A process that was Forked has ended and was waited for."""

    number: Number
    code: Annotated[int, Meta(ge=-64, le=255)]
    """Exit code, or minus the number of the signal that ended it."""


FromParent = Forked | Failed | Ended

_encoder = msgspec.msgpack.Encoder()
_to_parent: msgspec.msgpack.Decoder[Fork] = msgspec.msgpack.Decoder(Fork)
_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)


def encode(message: Fork | FromParent) -> bytes:
    """:raise LocalProtocolError: the other side would refuse it."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(f"message of {len(data)} bytes")
    return data


def decode_to_parent(data: bytes) -> Fork:
    """:raise RemoteProtocolError: not a request."""
    try:
        return _to_parent.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"request to the parent: {error}") from error


def decode_from_parent(data: bytes) -> FromParent:
    """:raise RemoteProtocolError: not an answer."""
    try:
        return _from_parent.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"answer of the parent: {error}") from error
