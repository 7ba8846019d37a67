"""qrexec messages, protocol versions 4 to 2, byte for byte as published (reference: qrexec, §2).

Every message is a header (type, length: u32 little-endian) and a body. This module has the typed messages,
:func:`encode`, and an incremental :class:`Decoder` that is told which types, with which lengths, may come on its
channel; who may say what when is decided by the state machines in :mod:`insula_proto.qrexec_channel`.

Data messages are handed on in parts as they arrive, so a decoder never holds a payload; an *empty* data message
means end of file and is reported as such, a part is never empty.
"""

from __future__ import annotations

import struct

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value, put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 4
"""What an agent, a daemon and both ends of a data channel announce."""
LOCAL_VERSION = 3
"""What a daemon and its local clients announce to each other; stays 3 while the wire is at 4."""
MIN_VERSION = 3
"""What our own agents and daemons accept…"""
OLDEST_VERSION = 2
"""…and what the published executables do, for agents of other people."""

CONTROL_PORT = 512

# Message types.
STDIN = 0x190
STDOUT = 0x191
STDERR = 0x192
EXIT_CODE = 0x193
EXEC_CMDLINE = 0x200
JUST_EXEC = 0x201
SERVICE_CONNECT = 0x202
SERVICE_REFUSED = 0x203
TRIGGER_SERVICE = 0x210
CONNECTION_TERMINATED = 0x211
TRIGGER_SERVICE3 = 0x212
TRIGGER_SERVICE4 = 0x213
HELLO = 0x300

# Exit codes with a meaning of their own.
EXIT_PROBLEM = 125
EXIT_REFUSED = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL_BASE = 128
EXIT_CHANNEL_LOST = 255

HEADER = struct.Struct("<II")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_PARAMS = struct.Struct("<II")
_NAME_SIZE = 64
_IDENT_SIZE = 32
_TRIGGER2_TARGET_SIZE = 32
_TRIGGER2_SIZE = _NAME_SIZE + _TRIGGER2_TARGET_SIZE + _IDENT_SIZE
_TRIGGER3_FIXED = _NAME_SIZE + _IDENT_SIZE
_TRIGGER4_FIXED = 2 * _NAME_SIZE + _IDENT_SIZE

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SERVICE_ALPHABET = frozenset(_LETTERS + b"_.+-")
NAME_ALPHABET = frozenset(_LETTERS + b"_.@:-")
IDENT_ALPHABET = frozenset(_LETTERS + b"_. -")


class Message(Value):
    """Base of all messages."""

    __slots__ = ()


class Hello(Message):
    __slots__ = ("version",)
    version: int

    def __init__(self, version: int) -> None:
        self._fill(version=version)


class _Exec(Message):
    """Domain and port to connect to, and the command line without its final NUL.

    ``command`` is None in the daemon's answer to a client, which has only the first two.
    """

    __slots__ = ("command", "domain", "port")
    command: bytes | None
    domain: int
    port: int

    def __init__(self, domain: int, port: int, command: bytes | None = None) -> None:
        self._fill(command=command, domain=domain, port=port)


class ExecCmdline(_Exec):
    """Run ``user:command`` and connect it to the data channel of that port."""

    __slots__ = ()


class JustExec(_Exec):
    """Run ``user:command`` with nothing connected."""

    __slots__ = ()


class ServiceConnect(Message):
    """The answer to a trigger: be the server of that port. ``ident`` is the one of the request.

    A local client that serves the request itself sends it with port 0; ``ident`` is None in the daemon's answer to
    that. ``ident_size`` is that of the padded field: local clients may send less than the 32 bytes agents know, and
    a daemon passes on what it got.
    """

    __slots__ = ("domain", "ident", "ident_size", "port")
    domain: int
    port: int
    ident: bytes | None
    ident_size: int

    def __init__(self, domain: int, port: int, ident: bytes | None, ident_size: int = _IDENT_SIZE) -> None:
        self._fill(domain=domain, port=port, ident=ident, ident_size=ident_size)


class ServiceRefused(Message):
    """The request ``ident`` is refused.

    On a client's socket, where the published protocol has no refusal but a closed connection, our session sends
    this with a reason as ``ident`` before it closes (docs/architecture.md, "Running a command").
    """

    __slots__ = ("ident",)
    ident: bytes

    def __init__(self, ident: bytes) -> None:
        self._fill(ident=ident)


class ConnectionTerminated(Message):
    __slots__ = ("domain", "port")
    domain: int
    port: int

    def __init__(self, domain: int, port: int) -> None:
        self._fill(domain=domain, port=port)


class TriggerService(Message):
    """A qube asks for a service. ``source`` is None in version 3; nothing in it is sanitised yet."""

    __slots__ = ("ident", "service", "source", "target")
    source: bytes | None
    target: bytes
    ident: bytes
    service: bytes

    def __init__(self, source: bytes | None, target: bytes, ident: bytes, service: bytes) -> None:
        self._fill(source=source, target=target, ident=ident, service=service)


class MalformedTrigger(Message):
    """A trigger whose faults are answered with SERVICE_REFUSED(``raw_ident``), not by dropping the peer (§2)."""

    __slots__ = ("raw_ident", "reason")
    raw_ident: bytes
    reason: str

    def __init__(self, raw_ident: bytes, reason: str) -> None:
        self._fill(raw_ident=raw_ident, reason=reason)


class _Data(Message):
    """A part of a byte stream, or (empty) its end."""

    __slots__ = ("data",)
    data: bytes

    def __init__(self, data: bytes) -> None:
        put(self, "data", data)


class Stdin(_Data):
    __slots__ = ()


class Stdout(_Data):
    __slots__ = ()


class Stderr(_Data):
    __slots__ = ()


class ExitCode(Message):
    """How the service ended; a signed 32-bit number, the peer's word for it."""

    __slots__ = ("code",)
    code: int

    def __init__(self, code: int) -> None:
        self._fill(code=code)


_DATA_CLASSES: dict[int, type[_Data]] = {STDIN: Stdin, STDOUT: Stdout, STDERR: Stderr}
_DATA_TYPES: dict[type[Message], int] = {Stdin: STDIN, Stdout: STDOUT, Stderr: STDERR}


# --- encoding ------------------------------------------------------------------------------------------------------


def _name_field(value: bytes, size: int) -> bytes:
    if len(value) >= size or b"\0" in value:
        raise LocalProtocolError(f"{value!r} does not fit a field of {size} bytes")
    return value.ljust(size, b"\0")


def _text(value: bytes, limit: int) -> bytes:
    if len(value) >= limit or b"\0" in value:
        raise LocalProtocolError(f"text of {len(value)} bytes, NUL inside or limit {limit} exceeded")
    return value + b"\0"


def _encode_exec(message: _Exec) -> bytes:
    params = _PARAMS.pack(message.domain, message.port)
    if message.command is None:
        return params
    return params + _text(message.command, limits.QREXEC_MAX_BODY - _PARAMS.size)


def _encode_trigger(message: TriggerService) -> tuple[int, bytes]:
    if not message.service:
        raise LocalProtocolError("a trigger names a service")
    target = _name_field(message.target, _NAME_SIZE)
    ident = _name_field(message.ident, _IDENT_SIZE)
    service = _text(message.service, limits.QREXEC_MAX_SERVICE)
    if message.source is None:
        return TRIGGER_SERVICE3, target + ident + service
    return TRIGGER_SERVICE4, _name_field(message.source, _NAME_SIZE) + target + ident + service


def encode_trigger2(message: TriggerService) -> bytes:
    """TRIGGER_SERVICE in the form of version 2. :raise LocalProtocolError: a field does not fit its place."""
    if not message.service:
        raise LocalProtocolError("a trigger names a service")
    service = _name_field(message.service, _NAME_SIZE)
    target = _name_field(message.target, _TRIGGER2_TARGET_SIZE)
    body = service + target + _name_field(message.ident, _IDENT_SIZE)
    return HEADER.pack(TRIGGER_SERVICE, len(body)) + body


def _encode_body(message: Message) -> tuple[int, bytes]:
    if isinstance(message, Hello):
        return HELLO, _U32.pack(message.version)
    if isinstance(message, ExecCmdline):
        return EXEC_CMDLINE, _encode_exec(message)
    if isinstance(message, JustExec):
        return JUST_EXEC, _encode_exec(message)
    if isinstance(message, ServiceConnect):
        ident = b"" if message.ident is None else _name_field(message.ident, message.ident_size)
        return SERVICE_CONNECT, _PARAMS.pack(message.domain, message.port) + ident
    if isinstance(message, ServiceRefused):
        if len(message.ident) > _IDENT_SIZE:
            raise LocalProtocolError("ident too long")
        return SERVICE_REFUSED, message.ident.ljust(_IDENT_SIZE, b"\0")
    if isinstance(message, ConnectionTerminated):
        return CONNECTION_TERMINATED, _PARAMS.pack(message.domain, message.port)
    if isinstance(message, TriggerService):
        return _encode_trigger(message)
    if isinstance(message, ExitCode):
        return EXIT_CODE, _I32.pack(message.code)
    if isinstance(message, _Data):
        return _DATA_TYPES[type(message)], message.data
    raise LocalProtocolError(f"{type(message).__name__} is not sent")


def kind_of(request: ExecCmdline | JustExec | ServiceConnect) -> int:
    """The type that a local client's request, and the answer to it, have on the wire."""
    return {ExecCmdline: EXEC_CMDLINE, JustExec: JUST_EXEC, ServiceConnect: SERVICE_CONNECT}[type(request)]


def encode(message: Message) -> bytes:
    """Return header and body.

    :raise LocalProtocolError: a field does not fit its place on the wire.
    """
    try:
        kind, body = _encode_body(message)
    except struct.error as error:
        raise LocalProtocolError(f"{message!r}: {error}") from error
    if isinstance(message, _Data) and len(body) > limits.QREXEC_MAX_CHUNK:
        raise LocalProtocolError(f"data message of {len(body)} bytes")
    return HEADER.pack(kind, len(body)) + body


def encode_data(kind: int, data: bytes | memoryview, chunk: int = limits.QREXEC_MAX_CHUNK) -> list[bytes]:
    """Return the messages that carry ``data`` as STDIN, STDOUT or STDERR; none for no data (that would be the end)."""
    if len(data) <= chunk:
        return [b"".join((HEADER.pack(kind, len(data)), data))] if data else []
    view = memoryview(data)
    parts = [view[start : start + chunk] for start in range(0, len(view), chunk)]
    return [b"".join((HEADER.pack(kind, len(part)), part)) for part in parts]


# --- decoding ------------------------------------------------------------------------------------------------------


def _untrusted_text(untrusted_body: bytes) -> bytes:
    if untrusted_body[-1:] != b"\0" or b"\0" in untrusted_body[:-1]:
        raise RemoteProtocolError("text without its final NUL, or with a NUL inside")
    return untrusted_body[:-1]


def _strip_field(untrusted_field: bytes) -> bytes | None:
    """The text of a NUL-padded field; None if there is no NUL or something behind it."""
    text, nul, rest = untrusted_field.partition(b"\0")
    if not nul or rest.strip(b"\0"):
        return None
    return text


def _cut_field(untrusted_field: bytes) -> bytes:
    """A name; without its NUL or with bytes behind it it is cut there, as the published daemon does."""
    return untrusted_field[:-1].partition(b"\0")[0]


def _decode_trigger2(untrusted_body: bytes) -> Message:
    service = _cut_field(untrusted_body[:_NAME_SIZE])
    target = _cut_field(untrusted_body[_NAME_SIZE:-_IDENT_SIZE])
    raw_ident = untrusted_body[-_IDENT_SIZE:]
    ident = _strip_field(raw_ident)
    if ident is None or not IDENT_ALPHABET.issuperset(ident):
        return MalformedTrigger(raw_ident, "ident")
    if not service or service.startswith(b"+"):
        return MalformedTrigger(raw_ident, "service name empty")
    return TriggerService(None, target, ident, service)


def _decode_trigger(untrusted_body: bytes, *, has_source: bool) -> Message:
    fields = []
    for _ in range(2 if has_source else 1):
        fields.append(_cut_field(untrusted_body[:_NAME_SIZE]))
        untrusted_body = untrusted_body[_NAME_SIZE:]
    raw_ident = untrusted_body[:_IDENT_SIZE]
    untrusted_service = untrusted_body[_IDENT_SIZE:]
    ident = _strip_field(raw_ident)
    if ident is None or not IDENT_ALPHABET.issuperset(ident):
        return MalformedTrigger(raw_ident, "ident")
    service = untrusted_service[:-1]
    if untrusted_service[-1:] != b"\0" or b"\0" in service:
        return MalformedTrigger(raw_ident, "service name not ended by its only NUL")
    if not service or service.startswith(b"+"):
        return MalformedTrigger(raw_ident, "service name empty")
    return TriggerService(fields[0] if has_source else None, fields[-1], ident, service)


def _decode_exec(kind: int, untrusted_body: bytes) -> Message:
    domain, port = _PARAMS.unpack_from(untrusted_body)
    command = None if len(untrusted_body) == _PARAMS.size else _untrusted_text(untrusted_body[_PARAMS.size :])
    return (ExecCmdline if kind == EXEC_CMDLINE else JustExec)(domain, port, command)


def _decode_connect(untrusted_body: bytes) -> Message:
    domain, port = _PARAMS.unpack_from(untrusted_body)
    untrusted_field = untrusted_body[_PARAMS.size :]
    if not untrusted_field:
        return ServiceConnect(domain, port, None)
    ident = _strip_field(untrusted_field)
    if ident is None:
        raise RemoteProtocolError("ident not padded with NUL")
    return ServiceConnect(domain, port, ident, len(untrusted_field))


def decode_body(kind: int, untrusted_body: bytes) -> Message:
    """Return the message of a body whose length the decoder has checked. :raise RemoteProtocolError:"""
    if kind == HELLO:
        return Hello(_U32.unpack(untrusted_body)[0])
    if kind in (EXEC_CMDLINE, JUST_EXEC):
        return _decode_exec(kind, untrusted_body)
    if kind == SERVICE_CONNECT:
        return _decode_connect(untrusted_body)
    if kind == SERVICE_REFUSED:
        return ServiceRefused(untrusted_body.rstrip(b"\0"))
    if kind == CONNECTION_TERMINATED:
        return ConnectionTerminated(*_PARAMS.unpack(untrusted_body))
    if kind == TRIGGER_SERVICE:
        return _decode_trigger2(untrusted_body)
    if kind in (TRIGGER_SERVICE3, TRIGGER_SERVICE4):
        return _decode_trigger(untrusted_body, has_source=kind == TRIGGER_SERVICE4)
    if kind == EXIT_CODE:
        return ExitCode(_I32.unpack(untrusted_body)[0])
    raise RemoteProtocolError(f"message type {kind:#x} is not read here")


DATA_LENGTHS = (0, limits.QREXEC_MAX_CHUNK)
LENGTHS = {
    HELLO: (4, 4),
    EXIT_CODE: (4, 4),
    SERVICE_CONNECT: (_PARAMS.size + _IDENT_SIZE, _PARAMS.size + _IDENT_SIZE),
    SERVICE_REFUSED: (_IDENT_SIZE, _IDENT_SIZE),
    CONNECTION_TERMINATED: (_PARAMS.size, _PARAMS.size),
    TRIGGER_SERVICE: (_TRIGGER2_SIZE, _TRIGGER2_SIZE),
    TRIGGER_SERVICE3: (_TRIGGER3_FIXED + 1, _TRIGGER3_FIXED + limits.QREXEC_MAX_SERVICE),
    TRIGGER_SERVICE4: (_TRIGGER4_FIXED + 1, _TRIGGER4_FIXED + limits.QREXEC_MAX_SERVICE),
    EXEC_CMDLINE: (_PARAMS.size + 1, limits.QREXEC_MAX_BODY),
    JUST_EXEC: (_PARAMS.size + 1, limits.QREXEC_MAX_BODY),
    STDIN: DATA_LENGTHS,
    STDOUT: DATA_LENGTHS,
    STDERR: DATA_LENGTHS,
}
"""Shortest and longest body of each type (§2); other ones between daemon and local client:"""
ANSWER_LENGTHS = (_PARAMS.size, _PARAMS.size)
"""EXEC_CMDLINE, JUST_EXEC and SERVICE_CONNECT in the daemon's answer: domain and port."""
LOCAL_CONNECT_LENGTHS = (_PARAMS.size + 1, _PARAMS.size + _IDENT_SIZE)
"""SERVICE_CONNECT from a local client."""


def lengths(*kinds: int) -> dict[int, tuple[int, int]]:
    """The part of :data:`LENGTHS` that a channel lets in."""
    return {kind: LENGTHS[kind] for kind in kinds}


class Decoder:
    """Splits bytes into messages; takes any split.

    ``allowed`` maps each type that may come to its shortest and longest body; all else is refused as soon as the
    header is complete, before memory is used for the body (MC-11, MC-12). The caller may replace :attr:`allowed`
    when its state changes; that takes effect at the next header.
    """

    def __init__(self, allowed: Mapping[int, tuple[int, int]]) -> None:
        self.allowed = allowed
        self._partial = bytearray()
        self._kind = 0
        self._body_left = 0
        """Of a data message that is being handed on."""

    @property
    def is_between_messages(self) -> bool:
        return not self._partial and not self._body_left

    @property
    def missing(self) -> int:
        """Bytes up to the end of the header, then of the message: who feeds no more than these gets one at a time."""
        if self._body_left:
            return self._body_left
        have = len(self._partial)
        if have < HEADER.size:
            return HEADER.size - have
        return HEADER.size + int(HEADER.unpack_from(self._partial)[1]) - have

    def left_of(self, kind: int) -> int:
        """Bytes that come next and are data of this type; 0: something else comes."""
        return self._body_left if self._kind == kind else 0

    def skip(self, count: int) -> None:
        """So many bytes of the data that comes next went another way. :raise LocalProtocolError: more than come."""
        if count > self._body_left:
            raise LocalProtocolError(f"{count} bytes went by, {self._body_left} were to come")
        self._body_left -= count

    def take_bodies(self, kind: int, untrusted_data: bytes, bodies: list[bytes | memoryview]) -> int:
        """Bulk: append the bodies of data messages of one type, as far as the input begins with them; return how many
        bytes of it that was. The rest is for :meth:`receive`. Empty ones, which are ends, are among the rest.
        """
        position = 0
        end = len(untrusted_data)
        if self._body_left:
            if self._kind != kind:
                return 0
            bodies.append(untrusted_data[: self._body_left])
            position = min(self._body_left, end)
            self._body_left -= position
        if self._partial or kind not in self.allowed:
            return position
        longest = self.allowed[kind][1]
        unpack = HEADER.unpack_from
        while end - position > HEADER.size:
            untrusted_kind, length = unpack(untrusted_data, position)
            if untrusted_kind != kind or not 0 < length <= longest:
                break
            start = position + HEADER.size
            position = start + length
            bodies.append(untrusted_data[start:position])
            if position > end:
                self._kind = kind
                self._body_left = position - end
                return end
        return position

    def receive(self, untrusted_data: bytes) -> list[Message]:
        """Return what is complete. :raise RemoteProtocolError: and nothing else; the decoder is of no use then."""
        end = len(untrusted_data)
        if 0 < end <= self._body_left:
            # Bulk: nothing but a part of one body.
            self._body_left -= end
            return [_DATA_CLASSES[self._kind](untrusted_data)]
        messages: list[Message] = []
        position = 0
        while position < end:
            if self._body_left:
                part = untrusted_data[position : position + self._body_left]
                self._body_left -= len(part)
                position += len(part)
                messages.append(_DATA_CLASSES[self._kind](part))
            elif not self._partial and end - position > HEADER.size:
                position = self._take_whole(untrusted_data, position, messages)
            else:
                position = self._take_partial(untrusted_data, position, messages)
        return messages

    def _take_whole(self, untrusted_data: bytes, position: int, messages: list[Message]) -> int:
        """Bulk: the header of a data message whose body begins in the same input; else as _take_partial."""
        kind, length = HEADER.unpack_from(untrusted_data, position)
        if kind not in _DATA_CLASSES or not length:
            return self._take_partial(untrusted_data, position, messages)
        self._check_header(kind, length)
        self._kind = int(kind)
        self._body_left = length
        return position + HEADER.size

    def _take_partial(self, untrusted_data: bytes, position: int, messages: list[Message]) -> int:
        """Complete a header, then (unless it is of data) the body behind it; return the new position."""
        partial = self._partial
        if len(partial) < HEADER.size:
            taken = untrusted_data[position : position + HEADER.size - len(partial)]
            partial += taken
            position += len(taken)
            if len(partial) < HEADER.size:
                return position
            self._check_header(*HEADER.unpack(partial))
        kind, length = HEADER.unpack_from(partial)
        if kind in _DATA_CLASSES:
            partial.clear()
            self._kind = kind
            self._body_left = length
            if not length:
                messages.append(_DATA_CLASSES[kind](b""))
            return position
        missing = HEADER.size + length - len(partial)
        taken = untrusted_data[position : position + missing]
        partial += taken
        if len(taken) == missing:
            body = bytes(partial[HEADER.size :])
            partial.clear()
            messages.append(decode_body(kind, body))
        return position + len(taken)

    def _check_header(self, kind: int, length: int) -> None:
        bounds = self.allowed.get(kind)
        if bounds is None:
            raise RemoteProtocolError(f"message type {kind:#x} in this state")
        if not bounds[0] <= length <= bounds[1]:
            raise RemoteProtocolError(
                f"message type {kind:#x} with length {length}, allowed {bounds[0]} to {bounds[1]}"
            )


def max_chunk(version: int) -> int:
    """Bytes in one data message."""
    return limits.QREXEC_MAX_CHUNK if version >= MIN_VERSION else limits.QREXEC_MAX_CHUNK_2


def negotiate(untrusted_version: int, own_version: int = VERSION, oldest: int = MIN_VERSION) -> int:
    """The version both ends speak. :raise RemoteProtocolError: below ``oldest``."""
    version = min(untrusted_version, own_version)
    if version < oldest:
        raise RemoteProtocolError(f"protocol version {untrusted_version} is too old")
    return version


def sanitise(untrusted_text: bytes, alphabet: frozenset[int]) -> str:
    """Replace every byte outside the alphabet by ``_`` (§2, "Sanitising"), e.g. :data:`SERVICE_ALPHABET`."""
    return bytes([byte if byte in alphabet else ord("_") for byte in untrusted_text]).decode("ascii")
