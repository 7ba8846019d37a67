"""What the daemon tells the process of a stream: one message, msgpack in a packet of a SOCK_SEQPACKET pair."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from insula_proto.errors import RemoteProtocolError

MAX_MESSAGE = 256


class Configure(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    qube: Annotated[str, Meta(max_length=64, pattern=r"\A[A-Za-z0-9_.-]+\Z")]
    """Its name is that of the stream."""
    records: bool
    """The microphone; else what it plays."""


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Configure] = msgspec.msgpack.Decoder(Configure)


def encode(message: Configure) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Configure:
    """:raise RemoteProtocolError:"""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"message of the daemon: {error}") from error
