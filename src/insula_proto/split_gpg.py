"""Split GPG on the wire (published, agent-services §10): gpg's options once, then its descriptors, multiplexed.

The client begins with a block of 1028 bytes: length u32, then 1024 bytes of options, each ended by NUL, an empty one
first; the length does not count the last NUL. After that both sides send frames: index of a descriptor i32, length
u32, as many bytes. Length 0 closes the descriptor; a negative index with length 0, from the server only, says that gpg
ended with status −(index+1), and is the last. Integers are little-endian (published: of the machine).

Sans I/O; what the options mean is :mod:`insula_agent.split_gpg.options`.
"""

from __future__ import annotations

import struct

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Union

    Frame = Union["Data", "Closed", "Exited"]

_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<iI")
COMMAND_BLOCK = _LENGTH.size + limits.GPG_COMMAND_SIZE
MAX_STATUS = 255


class Data(Value):
    """Bytes for a descriptor, at least one."""

    __slots__ = ("data", "index")
    index: int
    data: bytes

    def __init__(self, index: int, data: bytes) -> None:
        self._fill(index=index, data=data)


class Closed(Value):
    """Nothing more comes for a descriptor."""

    __slots__ = ("index",)
    index: int

    def __init__(self, index: int) -> None:
        self._fill(index=index)


class Exited(Value):
    """gpg has ended; the last frame."""

    __slots__ = ("status",)
    status: int

    def __init__(self, status: int) -> None:
        self._fill(status=status)


def encode_command(arguments: Sequence[str]) -> bytes:
    """The block for these options. :raise LocalProtocolError: they are too long, or one has a NUL."""
    encoded = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
    options = b"\0" + b"".join([argument + b"\0" for argument in encoded])
    if len(options) > limits.GPG_COMMAND_SIZE or options.count(b"\0") != len(arguments) + 1:
        raise LocalProtocolError("options with a NUL, or longer than split GPG can send")
    return _LENGTH.pack(len(options) - 1) + options.ljust(limits.GPG_COMMAND_SIZE, b"\0")


def decode_command(untrusted_block: bytes) -> list[str]:
    """The options of a block; printable text, whatever they mean.

    :raise RemoteProtocolError: not a block, or options that are no printable UTF-8.
    """
    if len(untrusted_block) != COMMAND_BLOCK:
        raise RemoteProtocolError(f"{len(untrusted_block)} bytes of options")
    (length,) = _LENGTH.unpack_from(untrusted_block)
    if length >= limits.GPG_COMMAND_SIZE:
        raise RemoteProtocolError(f"options of {length} bytes")
    field = untrusted_block[_LENGTH.size : _LENGTH.size + length + 1]
    if field[:1] != b"\0" or field[-1:] != b"\0":
        raise RemoteProtocolError("options without their NULs")
    try:
        arguments = [argument.decode("utf-8") for argument in field[1:-1].split(b"\0")] if length else []
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("options that are no UTF-8") from error
    if not all([argument.isprintable() for argument in arguments]):  # noqa: C419 - no generator frames
        raise RemoteProtocolError("options that cannot be printed")
    return arguments


def encode_data(index: int, data: bytes) -> bytes:
    """Frames for bytes of a descriptor; nothing for no bytes."""
    pieces = range(0, len(data), limits.GPG_MAX_DATA)
    frames = [(data[begin : begin + limits.GPG_MAX_DATA]) for begin in pieces]
    return b"".join([_FRAME.pack(index, len(frame)) + frame for frame in frames])


def encode_closed(index: int) -> bytes:
    return _FRAME.pack(index, 0)


def encode_exited(status: int) -> bytes:
    """:raise LocalProtocolError: not a status."""
    if not 0 <= status <= MAX_STATUS:
        raise LocalProtocolError(f"exit status {status}")
    return _FRAME.pack(-(status + 1), 0)


class FrameDecoder:
    """Takes frames in any pieces; holds at most one. ``descriptors``: how many the peer may send to."""

    def __init__(self, descriptors: int, *, is_client: bool) -> None:
        self._open = set(range(descriptors))
        self._is_client = is_client
        self._has_exited = False
        self._partial = b""

    def receive(self, untrusted_data: bytes) -> list[Frame]:
        """:raise RemoteProtocolError: a frame that is too long, for nobody, after the end, or an end from a client."""
        frames: list[Frame] = []
        data = self._partial + untrusted_data
        position = 0
        while position < len(data):
            if self._has_exited:
                raise RemoteProtocolError("a frame after the exit status")
            if len(data) - position < _FRAME.size:
                break
            index, length = _FRAME.unpack_from(data, position)
            self._check(index, length)
            end = position + _FRAME.size + length
            if len(data) < end:
                break
            frames.append(self._frame(index, data[position + _FRAME.size : end]))
            position = end
        self._partial = data[position:]
        return frames

    def end(self) -> None:
        """The peer has closed. :raise RemoteProtocolError: in the middle of a frame, or without an exit status."""
        if self._partial or (self._is_client and not self._has_exited):
            raise RemoteProtocolError("the other side ended in the middle")

    def _check(self, index: int, length: int) -> None:
        if index < 0:
            if not self._is_client or length or index < -(MAX_STATUS + 1):
                raise RemoteProtocolError(f"an exit status that is none: {index}, {length} bytes")
        elif index not in self._open:
            raise RemoteProtocolError(f"a frame for descriptor {index}, which is not open")
        elif length > limits.GPG_MAX_DATA:
            raise RemoteProtocolError(f"a frame of {length} bytes")

    def _frame(self, index: int, data: bytes) -> Frame:
        if index < 0:
            self._has_exited = True
            return Exited(-(index + 1))
        if data:
            return Data(index, data)
        self._open.discard(index)
        return Closed(index)
