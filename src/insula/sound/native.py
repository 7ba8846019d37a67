"""The native protocol of PulseAudio (which PipeWire speaks, too), as much of it as a client with one stream needs.

A *packet* is five numbers of 32 bits and a body: length, channel, two of an offset, flags. Channel -1 carries commands,
another one samples of that stream. A command is a row of values with a letter before each that says its type; the first
two are its number and a tag, which an answer repeats. (PulseAudio, ``src/pulsecore/{pstream,tagstruct,native-common}``;
there is no other specification.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from insula_proto.errors import RemoteProtocolError

VERSION = 15
"""Of the protocol: the first in which a client leaves a stream's volume to what the user last set; servers speak newer
ones too and take what the older of both has."""
ERROR, REPLY = 0, 2
CREATE_PLAYBACK_STREAM, CREATE_RECORD_STREAM = 3, 5
AUTH, SET_CLIENT_NAME = 8, 9
DRAIN_PLAYBACK_STREAM, CORK_RECORD_STREAM = 12, 58
REQUEST = 61
PLAYBACK_STREAM_KILLED, RECORD_STREAM_KILLED = 64, 65

NO_INDEX = 0xFFFFFFFF
COOKIE_SIZE = 256
MAX_BODY = 1 << 18
"""Bytes of a packet that a server sends; its blocks of samples are 64 KiB."""
MAX_VALUES = 256
"""In a command."""
_HEADER = struct.Struct(">5I")
_U32, _U64, _S64 = struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">q")
_S16LE = 3

Value = int | str | bool | bytes | None | tuple[int, ...] | Mapping[str, bytes]


class Spec(NamedTuple):
    """A sample format: signed 16 bits, little-endian."""

    channels: int
    rate: int


class Positions(NamedTuple):
    """Which loudspeaker each channel is for; 1 and 2 are left and right."""

    numbers: tuple[int, ...]


class Volume(NamedTuple):
    levels: tuple[int, ...]


FULL = 0x10000
"""Level of a volume that leaves samples as they are."""


@dataclass(frozen=True)
class Command:
    number: int
    tag: int
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Samples:
    channel: int
    data: bytes


# --- what we send ------------------------------------------------------------------------------------------------


class Long(NamedTuple):
    """Bytes with their length."""

    data: bytes


Sent = int | str | bool | None | Spec | Positions | Volume | Long | Mapping[str, str]


def _encode_value(value: Sent) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, int):
        return b"L" + _U32.pack(value)
    if isinstance(value, str):
        return b"t" + value.encode() + b"\0"
    if isinstance(value, Spec):
        return b"a" + bytes((_S16LE, value.channels)) + _U32.pack(value.rate)
    if isinstance(value, Positions):
        return b"m" + bytes((len(value.numbers), *value.numbers))
    if isinstance(value, Volume):
        return b"v" + bytes((len(value.levels),)) + b"".join(map(_U32.pack, value.levels))
    if isinstance(value, Long):
        return b"x" + _U32.pack(len(value.data)) + value.data
    properties = b""
    for name, text in value.items():
        data = text.encode() + b"\0"
        properties += _encode_value(name) + _encode_value(len(data)) + _encode_value(Long(data))
    return b"P" + properties + b"N"


def command(number: int, tag: int, *values: Sent) -> bytes:
    body = b"".join(map(_encode_value, (number, tag, *values)))
    return _HEADER.pack(len(body), NO_INDEX, 0, 0, 0) + body


def samples(channel: int, data: bytes) -> bytes:
    """To be appended to what the stream has."""
    return _HEADER.pack(len(data), channel, 0, 0, 0) + data


# --- what a server sends -----------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        return self._position == len(self._data)

    def take(self, size: int) -> bytes:
        """:raise RemoteProtocolError: there are not so many."""
        begin = self._position
        if len(self._data) - begin < size:
            raise RemoteProtocolError("a value of the sound server's is cut off")
        self._position = begin + size
        return self._data[begin : self._position]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def text(self) -> str:
        end = self._data.find(b"\0", self._position)
        if end < 0:
            raise RemoteProtocolError("a text of the sound server's has no end")
        text = self.take(end - self._position).decode("utf-8", "replace")
        self.take(1)
        return text

    def value(self) -> Value:
        """:raise RemoteProtocolError: none of the types."""
        kind = self.take(1)
        if kind == b"N":
            return None
        if kind in (b"1", b"0"):
            return kind == b"1"
        if kind == b"L":
            return self.u32()
        if kind == b"B":
            return self.byte()
        if kind in (b"R", b"U"):
            return int(_U64.unpack(self.take(8))[0])
        if kind == b"r":
            return int(_S64.unpack(self.take(8))[0])
        if kind == b"t":
            return self.text()
        if kind == b"V":
            return self.u32()
        return self._compound(kind)

    def _compound(self, kind: bytes) -> Value:
        if kind == b"T":
            return (self.u32(), self.u32())
        if kind == b"x":
            return self.take(self.u32())
        if kind == b"a":
            return (self.byte(), self.byte(), self.u32())
        if kind == b"m":
            return tuple(self.take(self.byte()))
        if kind == b"v":
            return tuple([self.u32() for _ in range(self.byte())])
        if kind == b"P":
            return self._properties()
        raise RemoteProtocolError(f"a value of the sound server's of type {kind!a}")

    def _properties(self) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        while (kind := self.take(1)) != b"N":
            if kind != b"t" or len(found) == MAX_VALUES:
                raise RemoteProtocolError("no list of properties")
            name = self.text()
            if self.take(1) != b"L":
                raise RemoteProtocolError("no list of properties")
            size = self.u32()
            if self.take(1) != b"x" or self.u32() != size:
                raise RemoteProtocolError("no list of properties")
            found[name] = self.take(size)
        return found


def decode_command(body: bytes) -> Command:
    """:raise RemoteProtocolError:"""
    reader = _Reader(body)
    values: list[Value] = []
    while not reader.is_at_end:
        if len(values) == MAX_VALUES:
            raise RemoteProtocolError(f"a command of more than {MAX_VALUES} values")
        values.append(reader.value())
    if len(values) < 2 or type(values[0]) is not int or type(values[1]) is not int:
        raise RemoteProtocolError("a command without number and tag")
    return Command(values[0], values[1], tuple(values[2:]))


class Decoder:
    """Bytes of a server become commands and samples; keeps less than one packet."""

    def __init__(self) -> None:
        self._kept = b""

    def receive(self, data: bytes) -> list[Command | Samples]:
        """:raise RemoteProtocolError: what follows cannot be understood any more."""
        data = self._kept + data
        found: list[Command | Samples] = []
        position = 0
        while len(data) - position >= _HEADER.size:
            length, channel, _, _, flags = _HEADER.unpack_from(data, position)
            if length > MAX_BODY:
                raise RemoteProtocolError(f"a packet of the sound server's of {length} bytes")
            begin = position + _HEADER.size
            if len(data) - begin < length:
                break
            position = begin + length
            body = data[begin:position]
            if channel == NO_INDEX:
                if flags:
                    raise RemoteProtocolError("a command through memory that was not agreed on")
                found.append(decode_command(body))
            else:
                found.append(Samples(channel, body))
        self._kept = data[position:]
        return found
