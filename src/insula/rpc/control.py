"""What the daemon and a session process tell each other: msgpack, one message a packet of a SOCK_SEQPACKET pair.

The session works on bytes a qube wrote, so the daemon trusts it no further than these types go: every field is
bounded, paths and texts are checked, anything else is a RemoteProtocolError and the end of that session.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from insula_proto import limits, qubesdb
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_MESSAGE = 8192
"""Bytes of a packet; the largest is a key with its value."""

MAX_TEXT = 200

Path = Annotated[str, Meta(min_length=2, max_length=limits.QUBESDB_MAX_PATH)]
Value = Annotated[bytes, Meta(max_length=limits.QUBESDB_MAX_VALUE)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


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
    """The qube asked for a service and was refused; who asked is implied by the channel."""

    service: Text
    target: Text


class CallsChanged(_Message, frozen=True, tag=True):
    """Counters of calls, after one started or ended; several changes may come as one."""

    running: Count
    started: Count
    refused: Count


class SessionEnding(_Message, frozen=True, tag=True):
    """Last message, if the session ends by itself."""

    reason: Text


ToSession = Configure | SetKey | RemoveKey | Begin | Shutdown
FromSession = AgentReady | AgentLost | KeyWritten | KeyRemoved | ServiceRequested | CallsChanged | SessionEnding

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
    except msgspec.DecodeError as error:
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
        if isinstance(field, str) and field != printable(field):
            raise error(f"{name} is not a short printable text")
        if name == "value" and len(field) > limits.QUBESDB_MAX_VALUE:
            raise error(f"value of {len(field)} bytes")
