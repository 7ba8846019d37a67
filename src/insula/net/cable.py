"""Frames on a cable: a length of four bytes, then the frame, as QEMU's network ends write them (net/stream.c)."""

from __future__ import annotations

import struct

from insula_proto.errors import RemoteProtocolError

MAX_FRAME = 65536 + 14
"""Bytes: the largest packet of IP with its Ethernet header. QEMU's own limit is a little more (NET_BUFSIZE)."""
_LENGTH = struct.Struct(">I")


def encode(frame: bytes) -> bytes:
    return _LENGTH.pack(len(frame)) + frame


class FrameDecoder:
    """Bytes of a machine monitor become frames; keeps less than one frame."""

    def __init__(self) -> None:
        self._kept = b""

    def receive(self, data: bytes) -> list[bytes]:
        """:raise RemoteProtocolError: a length that no frame has; what follows cannot be understood any more."""
        data = self._kept + data if self._kept else data
        frames: list[bytes] = []
        position, size = 0, len(data)
        while size - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, position)
            if not 0 < length <= MAX_FRAME:
                raise RemoteProtocolError(f"a frame of {length} bytes")
            begin = position + _LENGTH.size
            if size - begin < length:
                break
            position = begin + length
            frames.append(data[begin:position])
        self._kept = data[position:]
        return frames
