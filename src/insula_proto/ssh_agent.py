"""The part of the ssh-agent protocol that may cross qubes: list keys, sign (draft-ietf-sshm-ssh-agent, §3).

A message is a length u32, a type u8 and a body, big-endian. Strings are a length u32 and bytes. Everything else an
agent can be asked for (add, remove, lock, forward, extensions) is a message like any other here: it is decoded as far
as its type, so that it can be answered with a failure.

Sans I/O: :class:`MessageDecoder` cuts the stream, ``parse_…`` read bodies and take all of them or none, ``encode_…``
write whole messages.
"""

from __future__ import annotations

import struct

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FAILURE = 5
REQUEST_IDENTITIES = 11
IDENTITIES_ANSWER = 12
SIGN_REQUEST = 13
SIGN_RESPONSE = 14

RSA_SHA2_256 = 2
RSA_SHA2_512 = 4
FLAGS = frozenset({0, RSA_SHA2_256, RSA_SHA2_512})
"""What a request to sign may ask for besides the signature (§3.6.1)."""

_U32 = struct.Struct(">I")
_SSHSIG = b"SSHSIG"
_USERAUTH_REQUEST = 50
_PUBLICKEY = (b"publickey", b"publickey-hostbound-v00@openssh.com")
MAX_SHOWN = 64
"""Letters of one name that is shown to a person."""


class Message(Value):
    """Type and body, whatever they mean."""

    __slots__ = ("body", "kind")
    kind: int
    body: bytes

    def __init__(self, kind: int, body: bytes = b"") -> None:
        self._fill(kind=kind, body=body)


class Identity(Value):
    """A public key, as on the wire, and what its owner calls it."""

    __slots__ = ("comment", "key")
    key: bytes
    comment: bytes

    def __init__(self, key: bytes, comment: bytes) -> None:
        self._fill(key=key, comment=comment)


class SignRequest(Value):
    """Sign ``data`` with the secret part of ``key``."""

    __slots__ = ("data", "flags", "key")
    key: bytes
    data: bytes
    flags: int

    def __init__(self, key: bytes, data: bytes, flags: int) -> None:
        self._fill(key=key, data=data, flags=flags)


class MessageDecoder:
    """Takes a stream in any pieces; holds at most one message."""

    def __init__(self) -> None:
        self._partial = b""

    @property
    def is_between_messages(self) -> bool:
        return not self._partial

    def receive(self, untrusted_data: bytes) -> list[Message]:
        """:raise RemoteProtocolError: a message without a type, or too long; nothing is kept of it."""
        messages: list[Message] = []
        data = self._partial + untrusted_data
        position = 0
        while len(data) - position >= _U32.size:
            (length,) = _U32.unpack_from(data, position)
            if not 1 <= length <= limits.SSH_AGENT_MAX_MESSAGE:
                raise RemoteProtocolError(f"a message of {length} bytes")
            end = position + _U32.size + length
            if len(data) < end:
                break
            messages.append(Message(data[position + _U32.size], data[position + _U32.size + 1 : end]))
            position = end
        self._partial = data[position:]
        return messages


class _Reader:
    """Takes a body apart from its front."""

    def __init__(self, untrusted_body: bytes) -> None:
        self._body = untrusted_body
        self._position = 0

    def number(self) -> int:
        return int(_U32.unpack(self.take(_U32.size))[0])

    def string(self) -> bytes:
        return self.take(self.number())

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._body):
            raise RemoteProtocolError("a message that ends too early")
        piece = self._body[self._position : end]
        self._position = end
        return piece

    def end(self) -> None:
        if self._position != len(self._body):
            raise RemoteProtocolError("a message with something after its end")


def parse_sign_request(untrusted_body: bytes) -> SignRequest:
    """:raise RemoteProtocolError:"""
    reader = _Reader(untrusted_body)
    request = SignRequest(reader.string(), reader.string(), reader.number())
    reader.end()
    if request.flags not in FLAGS:
        raise RemoteProtocolError(f"flags {request.flags:#x} of a signature")
    return request


def parse_identities(untrusted_body: bytes) -> list[Identity]:
    """:raise RemoteProtocolError:"""
    reader = _Reader(untrusted_body)
    count = reader.number()
    if count > limits.SSH_AGENT_MAX_KEYS:
        raise RemoteProtocolError(f"{count} keys")
    identities = [Identity(reader.string(), reader.string()) for _ in range(count)]
    reader.end()
    return identities


def parse_signature(untrusted_body: bytes) -> bytes:
    """:raise RemoteProtocolError:"""
    reader = _Reader(untrusted_body)
    signature = reader.string()
    reader.end()
    return signature


def _string(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def encode(message: Message) -> bytes:
    """:raise LocalProtocolError: it is too long."""
    length = 1 + len(message.body)
    if length > limits.SSH_AGENT_MAX_MESSAGE:
        raise LocalProtocolError(f"a message of {length} bytes")
    return _U32.pack(length) + bytes([message.kind]) + message.body


def encode_failure() -> bytes:
    return encode(Message(FAILURE))


def encode_identities(identities: Sequence[Identity]) -> bytes:
    body = _U32.pack(len(identities)) + b"".join([_string(each.key) + _string(each.comment) for each in identities])
    return encode(Message(IDENTITIES_ANSWER, body))


def encode_sign_request(request: SignRequest) -> bytes:
    body = _string(request.key) + _string(request.data) + _U32.pack(request.flags)
    return encode(Message(SIGN_REQUEST, body))


def encode_signature(signature: bytes) -> bytes:
    return encode(Message(SIGN_RESPONSE, _string(signature)))


def _shown(untrusted_name: bytes) -> str:
    text = untrusted_name.decode("utf-8", "replace")
    return "".join([letter if letter.isprintable() else "?" for letter in text[:MAX_SHOWN]])


def describe(untrusted_data: bytes) -> str:
    """What is to be signed, in words for a person, as far as the data say: they are the asker's own claim.

    Two kinds are known: the log-in of RFC 4252 §7, and OpenSSH's signatures of files (PROTOCOL.sshsig).
    """
    try:
        if untrusted_data.startswith(_SSHSIG):
            return f"sign data for the purpose {_shown(_Reader(untrusted_data[len(_SSHSIG) :]).string())!r}"
        reader = _Reader(untrusted_data)
        reader.string()
        kind, user, _, method = reader.take(1)[0], reader.string(), reader.string(), reader.string()
    except RemoteProtocolError:
        return "sign data of an unknown kind"
    if kind != _USERAUTH_REQUEST or method not in _PUBLICKEY:
        return "sign data of an unknown kind"
    return f"log in somewhere as {_shown(user)!r}"
