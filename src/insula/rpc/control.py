"""What the daemon and a session process tell each other: msgpack, one message a packet of a SOCK_SEQPACKET pair.

The session works on bytes a qube wrote, so the daemon trusts it no further than these types go: every field is
bounded, paths and texts are checked, anything else is a RemoteProtocolError and the end of that session.

Calls between qubes. The caller's session numbers its *requests*, the daemon numbers *calls*::

    caller's session                     insulad                          target's session
    ServiceRequested(request) ────────────► policy …
    RequestCancelled(request) ────────────►   (any time before the answer)
                                            Serve(call) + descriptor ────────────►
                                              ◄──────────── CallAccepted(call) | CallRejected(call)
            ◄─────── Connect(request, call) + descriptor
            ◄─────── Refuse(request)          (instead)
    CallEnded(call) ──────────────────────►   ◄──────────────────────── CallEnded(call)

Where the host itself serves the call, the caller's session is the service's end of the data channel::

            ◄─────── Host(request, call) + descriptor, from which it reads what the service says
    Payload(call) ────────────────────────► all of what the caller said
            ◄─────── Finish(call)             the exit code, once the descriptor is at its end
    CallEnded(call) ──────────────────────►

Where the host asks a service of a qube, that one's session is the caller's end::

            ◄─────── Ask(call) + descriptor, from which it reads what the service is told
    CallAccepted(call) ───────────────────►
    Payload(call) ────────────────────────► all of what it answered, if it ended well
    CallEnded(call) ──────────────────────►

Each of these descriptors is one end of a stream socket pair. Once a call has proved large, its session asks for memory
that it shares with the qube (:mod:`insula_proto.bulk`)::

    MemoryWanted() ───────────────────────►
            ◄─────── Memory() + descriptor    (or nothing, where the machine cannot have any)
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from insula_proto import limits, qubesdb
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_MESSAGE = 73728
"""Bytes of a packet; the largest are a request with the longest argument, and a payload."""

MAX_TEXT = 200
MAX_PAYLOAD = 65536
"""Bytes a qube may say to a service of the host: as much as a request of the Admin API has (admin-api §1)."""
MAX_ASKED = 1 << 20
"""Bytes the host may tell a service of a qube."""
MAX_LAST_WORDS = 4096
"""Bytes a service of the host may say as stderr."""
MAX_NUMBER = 2**53

Path = Annotated[str, Meta(min_length=2, max_length=limits.QUBESDB_MAX_PATH)]
Value = Annotated[bytes, Meta(max_length=limits.QUBESDB_MAX_VALUE)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Count = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Number = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
"""Of a request or a call; never used again."""
Service = Annotated[str, Meta(max_length=limits.QREXEC_MAX_SERVICE, pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9_.+-]*\Z")]
"""A service with its argument: the alphabet of the wire, which is that of the policy; no hidden file (MC-16)."""
Name = Annotated[str, Meta(max_length=63, pattern=r"\A[A-Za-z0-9_.@:-]*\Z")]
"""A qube or a token, as the wire has them."""
Domain = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all; the class name is the tag on the wire."""


# --- daemon to session -------------------------------------------------------------------------------------------


class Configure(_Message, frozen=True, tag=True):
    """First message: who the qube is (for answers and logs) and who ``DEFAULT`` is."""

    name: Text
    domain: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    default_user: Text


class SetKey(_Message, frozen=True, tag=True):
    path: Path
    value: Value


class RemoveKey(_Message, frozen=True, tag=True):
    path: Path


class Begin(_Message, frozen=True, tag=True):
    """The keys are complete: greet the agent."""


class Shutdown(_Message, frozen=True, tag=True):
    """End: running calls fail as after a lost channel."""


class Refuse(_Message, frozen=True, tag=True):
    """The answer to a request: no."""

    request: Number


class Connect(_Message, frozen=True, tag=True):
    """The answer to a request: the descriptor that comes with it leads to the service."""

    request: Number
    call: Number
    domain: Domain
    """Of the qube that serves."""


class Host(_Message, frozen=True, tag=True):
    """The answer to a request: be the service's end of the data channel, for the host."""

    request: Number
    call: Number
    limit: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    """Bytes the caller may say."""
    is_stream: bool = False
    """What it says has no limit here and is no message: it goes through the descriptor as it comes, and ends there."""


class Finish(_Message, frozen=True, tag=True):
    """How a service of the host ended."""

    call: Number
    code: Annotated[int, Meta(ge=0, le=255)]
    last_words: Annotated[bytes, Meta(max_length=MAX_LAST_WORDS)] = b""
    """Its stderr."""


class Serve(_Message, frozen=True, tag=True):
    """Have the qube serve a call; the descriptor that comes with it leads to the caller."""

    call: Number
    domain: Domain
    """Of the qube that calls."""
    user: Text
    """Empty: the default user."""
    command: Annotated[bytes, Meta(min_length=1, max_length=limits.QREXEC_MAX_BODY)]
    """``QUBESRPC SERVICE+ARGUMENT SOURCE``"""


class Ask(_Message, frozen=True, tag=True):
    """Have the qube serve a call of the host's, and tell what it answers; what it is told comes through the descriptor.

    The descriptor stays open for as long as somebody wants to know.
    """

    call: Number
    user: Text
    """Empty: the default user."""
    command: Annotated[bytes, Meta(min_length=1, max_length=limits.QREXEC_MAX_BODY)]
    """``QUBESRPC SERVICE+ARGUMENT SOURCE``"""
    size: Annotated[int, Meta(ge=0, le=MAX_ASKED)]
    """Bytes that it is told."""
    limit: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    """Bytes it may answer."""


class Memory(_Message, frozen=True, tag=True):
    """The descriptor that comes with it is a memory file of ``BULK_SIZE`` bytes, sealed; the machine has it, too."""


# --- session to daemon -------------------------------------------------------------------------------------------


class AgentReady(_Message, frozen=True, tag=True):
    """Commands can be run; the qrexec version both speak."""

    version: Annotated[int, Meta(ge=3, le=4)]


class AgentLost(_Message, frozen=True, tag=True):
    """They cannot any more. A new AgentReady may follow."""

    reason: Text


class KeyWritten(_Message, frozen=True, tag=True):
    """The qube set a key it may set. The value is any bytes a qube likes."""

    path: Path
    value: Value


class KeyRemoved(_Message, frozen=True, tag=True):
    path: Path


class ServiceRequested(_Message, frozen=True, tag=True):
    """The qube asks for a service. Who asks is implied by the channel; to be answered once."""

    request: Number
    service: Service
    target: Name
    source: Name
    """The remote qube it claims to relay for; empty: none."""


class RequestDropped(_Message, frozen=True, tag=True):
    """A request was refused without being told, and why. Some of many are not reported."""

    service: Text
    reason: Text


class RequestCancelled(_Message, frozen=True, tag=True):
    """Nobody waits for the answer to a request any more."""

    request: Number


class CallAccepted(_Message, frozen=True, tag=True):
    """The qube was told to serve."""

    call: Number


class CallRejected(_Message, frozen=True, tag=True):
    """The qube cannot serve now: it has no agent, or serves all it can."""

    call: Number


class Payload(_Message, frozen=True, tag=True):
    """All that the caller says to a service of the host, or that the qube's own service answers the host: any bytes a
    qube likes."""

    call: Number
    data: Annotated[bytes, Meta(max_length=MAX_PAYLOAD)]


class CallEnded(_Message, frozen=True, tag=True):
    """The session has nothing more to do with a call it was given."""

    call: Number
    from_qube: Count
    """Bytes its own qube sent."""
    to_qube: Count


class CallsChanged(_Message, frozen=True, tag=True):
    """Counters of calls, after one started or ended; several changes may come as one."""

    running: Count
    started: Count
    refused: Count


class MemoryWanted(_Message, frozen=True, tag=True):
    """Much is moved to or from the qube. Said once."""


class SessionEnding(_Message, frozen=True, tag=True):
    """Last message, if the session ends by itself."""

    reason: Text


ToSession = Configure | SetKey | RemoveKey | Begin | Shutdown | Refuse | Connect | Host | Finish | Serve | Ask | Memory
FromSession = (
    AgentReady
    | AgentLost
    | KeyWritten
    | KeyRemoved
    | ServiceRequested
    | RequestDropped
    | RequestCancelled
    | CallAccepted
    | CallRejected
    | Payload
    | CallEnded
    | CallsChanged
    | MemoryWanted
    | SessionEnding
)
WITH_DESCRIPTOR = (Connect, Host, Serve, Ask, Memory)
"""Each comes with exactly one descriptor, the others with none."""

_encoder = msgspec.msgpack.Encoder()
_to_session: msgspec.msgpack.Decoder[ToSession] = msgspec.msgpack.Decoder(ToSession)
_from_session: msgspec.msgpack.Decoder[FromSession] = msgspec.msgpack.Decoder(FromSession)


def printable(text: str) -> str:
    """Return the text cut to what a :data:`Text` field takes, with anything but printable ASCII replaced."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:MAX_TEXT])


def encode(message: ToSession | FromSession) -> bytes:
    """:raise LocalProtocolError: a path or a size the other side would refuse."""
    _check(message, LocalProtocolError)
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(f"control message of {len(data)} bytes")
    return data


def decode_to_session(data: bytes) -> ToSession:
    """:raise RemoteProtocolError: not a message of the daemon."""
    try:
        message = _to_session.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"control message: {error}") from error
    _check(message, RemoteProtocolError)
    return message


def decode_from_session(untrusted_data: bytes) -> FromSession:
    """:raise RemoteProtocolError: not a message of a session, or a field out of bounds."""
    try:
        message = _from_session.decode(untrusted_data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"control message: {type(error).__name__}") from error
    _check(message, RemoteProtocolError)
    return message


def _check(message: ToSession | FromSession, error: type[LocalProtocolError | RemoteProtocolError]) -> None:
    for name in message.__struct_fields__:
        field = getattr(message, name)
        if name == "path" and not qubesdb.is_valid_path(field):
            raise error(f"not a key: {field!a}")
        # A service has its own alphabet, checked with its type, and is longer.
        if isinstance(field, str) and name != "service" and field != printable(field):
            raise error(f"{name} is not a short printable text")
        if name == "value" and len(field) > limits.QUBESDB_MAX_VALUE:
            raise error(f"value of {len(field)} bytes")
