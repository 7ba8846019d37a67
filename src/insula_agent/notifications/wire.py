"""Messages of D-Bus as bytes (D-Bus Specification 0.38, "Marshaling" and "Message Format"); no I/O.

Values of Python stand for those of the bus: ``int``, ``bool``, ``float``, ``str``, ``bytes`` (of ``ay``), ``list``,
``tuple`` (of structures), ``dict`` (of ``a{…}``). A variant is read as its value alone; nobody here asks for its type.
"""

from __future__ import annotations

import struct

from insula_proto.errors import RemoteProtocolError
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 1
MAX_MESSAGE = 8 << 20
"""Bytes; the specification allows 128 MiB. Programs send pictures along, which are read over."""
MAX_FIELDS = 65536
"""Bytes of the fields of a header."""
MAX_DEPTH = 32
"""Containers in one another: as many as a signature may have."""
MAX_SIGNATURE = 255

_FIELDS = {
    1: ("path", "o"), 2: ("interface", "s"), 3: ("member", "s"), 4: ("error_name", "s"), 5: ("reply_serial", "u"),
    6: ("destination", "s"), 7: ("sender", "s"),
}  # fmt: skip
"""Of a header: number → name and type."""
_SIGNATURE = 8
_HEAD = 16
"""Bytes up to the fields, the length of these included."""
_NUMBERS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I", "b": "I"}
_ALIGNMENT = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}
"""Of other types: 4."""


class Message(Value):
    """``kind`` is one of CALL, RETURN, ERROR, SIGNAL."""

    __slots__ = ("body", "fields", "flags", "kind", "serial", "signature")
    kind: int
    serial: int
    fields: dict[str, Any]
    """By the specification's names; what is empty is not there."""
    signature: str
    """Of the body."""
    body: tuple[Any, ...]
    flags: int

    def __init__(
        self,
        kind: int,
        serial: int,
        fields: dict[str, Any],
        signature: str = "",
        body: Sequence[Any] = (),
        flags: int = 0,
    ) -> None:
        self._fill(kind=kind, serial=serial, fields=fields, signature=signature, body=tuple(body), flags=flags)

    def field(self, name: str) -> str:
        """A text of the header; empty: there is none."""
        return str(self.fields.get(name, ""))

    @property
    def answers(self) -> int:
        """Serial of the call that this is the answer of; 0: of none."""
        return int(self.fields.get("reply_serial", 0))


def split(signature: str) -> list[str]:
    """The complete types it is made of. :raise RemoteProtocolError:"""
    if len(signature) > MAX_SIGNATURE:
        raise RemoteProtocolError("a signature that is too long")
    types = []
    at = 0
    while at < len(signature):
        end = _end_of_type(signature, at, 0)
        types.append(signature[at:end])
        at = end
    return types


def _end_of_type(signature: str, at: int, depth: int) -> int:
    if depth > MAX_DEPTH or at >= len(signature):
        raise RemoteProtocolError("not a signature")
    kind = signature[at]
    if kind in _NUMBERS or kind in "sogv":
        return at + 1
    if kind == "a":
        return _end_of_type(signature, at + 1, depth + 1)
    closing = {"(": ")", "{": "}"}.get(kind)
    if closing is None:
        raise RemoteProtocolError("not a signature")
    at += 1
    members = 0
    while at < len(signature) and signature[at] != closing:
        at = _end_of_type(signature, at, depth + 1)
        members += 1
    if at >= len(signature) or not members or (kind == "{" and members != 2):
        raise RemoteProtocolError("not a signature")
    return at + 1


# --- writing: little-endian --------------------------------------------------------------------------------------


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)


def _write(out: bytearray, kind: str, value: Any) -> None:
    code = kind[0]
    _pad(out, _ALIGNMENT.get(code, 4))
    if code in _NUMBERS:
        out += struct.pack(f"<{_NUMBERS[code]}", value)
    elif code in "so":
        data = value.encode()
        out += struct.pack("<I", len(data)) + data + b"\0"
    elif code == "g":
        out += bytes([len(value)]) + value.encode() + b"\0"
    elif code == "v":
        # (Of what is sent here only header fields are variants: a type and a value.)
        kind, value = value
        _write(out, "g", kind)
        _write(out, kind, value)
    elif code == "a":
        _write_array(out, kind[1:], value)
    else:
        for part, item in zip(split(kind[1:-1]), value):  # noqa: B905 - Python 3.9
            _write(out, part, item)


def _write_array(out: bytearray, kind: str, value: Any) -> None:
    at = len(out)
    out += bytes(4)
    _pad(out, _ALIGNMENT.get(kind[0], 4))
    start = len(out)
    for item in value.items() if isinstance(value, dict) else value:
        _write(out, kind, item)
    out[at : at + 4] = struct.pack("<I", len(out) - start)


def encode(message: Message) -> bytes:
    """A whole message. Signature and body must fit each other: they are our own."""
    fields = [
        (number, (kind, message.fields[name])) for number, (name, kind) in _FIELDS.items() if name in message.fields
    ]
    if message.signature:
        fields.append((_SIGNATURE, ("g", message.signature)))
    body = bytearray()
    for kind, value in zip(split(message.signature), message.body):  # noqa: B905 - Python 3.9
        _write(body, kind, value)
    out = bytearray(struct.pack("<BBBBII", ord("l"), message.kind, message.flags, 1, len(body), message.serial))
    _write(out, "a(yv)", fields)
    _pad(out, 8)
    return bytes(out + body)


# --- reading -----------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, untrusted_data: bytes, order: str, at: int = 0) -> None:
        self._data = untrusted_data
        self._order = order
        self.at = at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise RemoteProtocolError("a value that goes beyond its message")
        data = self._data[self.at : end]
        self.at = end
        return data

    def align(self, alignment: int) -> None:
        self.take(-self.at % alignment)

    def number(self, code: str) -> Any:
        packed = struct.Struct(f"{self._order}{code}")
        return packed.unpack(self.take(packed.size))[0]

    def read(self, kind: str, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise RemoteProtocolError("containers in one another without end")
        code = kind[0]
        self.align(_ALIGNMENT.get(code, 4))
        if code in _NUMBERS:
            number = self.number(_NUMBERS[code])
            return bool(number) if code == "b" else number
        if code in "sog":
            text = self.take(self.number("B" if code == "g" else "I"))
            if self.take(1) != b"\0":
                raise RemoteProtocolError("a text without end")
            try:
                return text.decode()
            except UnicodeDecodeError as error:
                raise RemoteProtocolError("a text that is not UTF-8") from error
        if code == "v":
            kinds = split(self.read("g"))
            if len(kinds) != 1:
                raise RemoteProtocolError("a variant is one value")
            return self.read(kinds[0], depth + 1)
        if code == "a":
            return self._array(kind[1:], depth)
        return tuple([self.read(part, depth + 1) for part in split(kind[1:-1])])

    def _array(self, kind: str, depth: int) -> Any:
        size = self.number("I")
        self.align(_ALIGNMENT.get(kind[0], 4))
        if kind == "y":
            return self.take(size)
        end = self.at + size
        if end > len(self._data):
            raise RemoteProtocolError("an array that goes beyond its message")
        items = []
        while self.at < end:
            items.append(self.read(kind, depth + 1))
        if self.at != end:
            raise RemoteProtocolError("an array that ends within a value")
        if kind[0] == "{":
            try:
                return dict(items)
            except TypeError as error:
                raise RemoteProtocolError("a key that is none") from error
        return items


def _decode(untrusted_data: bytes, order: str, body_at: int) -> Message:
    kind, flags = untrusted_data[1], untrusted_data[2]
    header = _Reader(untrusted_data[:body_at], order, 8)
    serial = header.number("I")
    fields: dict[str, Any] = {}
    signature = ""
    for number, value in header.read("a(yv)"):
        if number == _SIGNATURE and type(value) is str:
            signature = value
        elif number in _FIELDS:
            name, type_ = _FIELDS[number]
            if type(value) is not (int if type_ == "u" else str):
                raise RemoteProtocolError(f"{name} of another type")
            fields[name] = value
    body = _Reader(untrusted_data[body_at:], order)
    return Message(kind, serial, fields, signature, [body.read(part) for part in split(signature)], flags)


class Decoder:
    """Splits bytes into messages; takes any split."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def receive(self, untrusted_data: bytes) -> list[Message]:
        """Return what is complete. :raise RemoteProtocolError: and nothing else; the decoder is of no use then."""
        partial = self._partial
        partial += untrusted_data
        messages = []
        while len(partial) >= _HEAD:
            order = {ord("l"): "<", ord("B"): ">"}.get(partial[0])
            if order is None or partial[3] != 1:
                raise RemoteProtocolError("not a message of D-Bus")
            body_size, _, fields_size = struct.unpack_from(f"{order}III", partial, 4)
            if fields_size > MAX_FIELDS or body_size > MAX_MESSAGE:
                raise RemoteProtocolError(f"a message of {fields_size} and {body_size} bytes")
            body_at = (_HEAD + fields_size + 7) // 8 * 8
            end = body_at + body_size
            if len(partial) < end:
                break
            messages.append(_decode(bytes(partial[:end]), order, body_at))
            del partial[:end]
        return messages
