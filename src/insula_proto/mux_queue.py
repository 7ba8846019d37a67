"""What a mux has for the pipe, which may be cut at any time: buffers, and where frames end among them."""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError
from insula_proto.mux_frames import DATA, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported at run time: the agent starts under software emulation
    from typing import Union

    Buffer = Union[bytes, bytearray, memoryview]

_SMALL = 4096
"""Bytes of payload up to which joining it to its header costs less than keeping the two apart."""


class FrameQueue:
    """Buffers in order, not copied: what is queued must not change."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._is_end: list[bool] = []
        """For each buffer, whether a frame ends with it."""
        self.size = 0
        """Bytes waiting for the pipe."""
        self._head_sent = 0
        """Bytes of the first buffer the pipe has taken."""
        self._is_inside = False
        """The pipe has taken earlier buffers of the frame to which the first one belongs."""

    def push(self, buffer: Buffer, *, is_end: bool = True) -> None:
        self._buffers.append(buffer)
        self._is_end.append(is_end)
        self.size += len(buffer)

    def push_data(self, stream: int, size: int, pieces: tuple[Buffer, ...]) -> None:
        """One frame of ``size`` bytes: small pieces in front joined to the header, a large one as it is."""
        if not size:
            return
        joined: list[Buffer] = [HEADER.pack(stream, DATA, size)]
        for index, piece in enumerate(pieces):
            if len(piece) <= _SMALL:
                joined.append(piece)
                continue
            if joined:
                self.push(b"".join(joined), is_end=False)
                joined = []
            self.push(piece, is_end=index == len(pieces) - 1)
        if joined:
            self.push(b"".join(joined))

    def push_rest(self, rest: bytes) -> None:
        """The end of a frame whose beginning came to the pipe by other means."""
        self.push(rest)
        self._is_inside = True

    def drop(self) -> None:
        """Forget what is queued except the rest of a frame the pipe has begun to take: the peer is inside it."""
        if not self._head_sent and not self._is_inside:
            self.clear()
            return
        kept = self._is_end.index(True) + 1
        del self._buffers[kept:]
        del self._is_end[kept:]
        self.size = sum([len(buffer) for buffer in self._buffers]) - self._head_sent

    def clear(self) -> None:
        """Forget everything: nobody is at the other end of the pipe."""
        self._buffers.clear()
        self._is_end.clear()
        self.size = self._head_sent = 0
        self._is_inside = False

    def head(self, limit: int = limits.MUX_MAX_DATA) -> list[Buffer]:
        """Buffers to write next, in order, together about ``limit`` bytes; empty if there is nothing.

        They stay queued until :meth:`sent` says how many bytes the pipe took.
        """
        buffers: list[Buffer] = []
        size = 0
        for index, queued in enumerate(self._buffers):
            buffer: Buffer = memoryview(queued)[self._head_sent :] if index == 0 and self._head_sent else queued
            buffers.append(buffer)
            size += len(buffer)
            if size >= limit:
                break
        return buffers

    def sent(self, count: int) -> None:
        """The pipe took the first ``count`` bytes of :meth:`head`."""
        if not 0 <= count <= self.size:
            raise LocalProtocolError(f"{count} bytes sent of {self.size}")
        self.size -= count
        count += self._head_sent
        done = 0
        for buffer in self._buffers:
            if count < len(buffer):
                break
            count -= len(buffer)
            done += 1
        if done:
            self._is_inside = not self._is_end[done - 1]
            del self._buffers[:done]
            del self._is_end[:done]
        self._head_sent = count
