"""Output of a process on its way to the port without passing through this program.

splice(2) moves pages from one pipe to another and from a pipe to the port. Under software emulation that is worth
more than the copies it saves: the port driver takes 32 KiB in one write, but a whole pipe in one splice, and each of
its buffers, when the host has taken it, wakes whoever waits for the port.

The pages go through a pipe of our own. Linux's port driver (6.1, drivers/char/virtio_console.c) makes a buffer of as
many pages as the pipe has, also when fewer are moved, and the host takes the empty rest for a fault of the device; so
what is spliced to the port must be all there is in its pipe, and a process may write to its own at any moment.
"""

from __future__ import annotations

import fcntl
import os
import struct

from insula_agent.pieces import MAX_PIECES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DRAWER_PIPE = 1048576
"""Bytes of the pipe through which what is lent to the host is drawn: as much as a process's own holds."""
OWN_PIPE = 524288
"""Bytes of the pipe in between: 128 pages. It holds at most MAX_FRAMES frames and their headers, a page each."""
MAX_FRAMES = 8
FRAME_SIZE = 61440
"""Bytes moved under one header: whole pages, so that none is shared by two frames and then copied."""
HEADER_SIZE = 8
FRAMED_SIZE = FRAME_SIZE + HEADER_SIZE
"""Bytes moved at once of a pipe that holds messages with headers of their own, so sized by who wrote them…"""
MAX_FRAMED = 7
"""…and how many of these our pipe holds: the header is a page more."""
SMALLEST = 8192
"""Bytes below which reading and writing costs less. With header at most half of the smallest window of a stream: with
more than half of it left no credit would come (docs/protocols/mux.md)."""

IS_POSSIBLE = hasattr(os, "splice")
"""Python has it since 3.10."""
_PAGE = 4096
_FIONREAD = 0x541B
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032
"""<asm-generic/ioctls.h>, <linux/fcntl.h>; Python's ``fcntl`` has the latter since 3.10."""
_NO_NUMBER = bytes(4)


FULL_BODY = 65536
MESSAGE_SIZE = HEADER_SIZE + FULL_BODY
"""Bytes of a full message in shared memory, without and with its header."""
SMALLEST_SHARED = 16384
"""Bytes below which lending memory to the host costs more than sending them…"""
SMALLEST_WRITTEN = 65536
"""Bytes below which writing them to a pipe costs less than moving them there."""
SMALLEST_AHEAD = 524288
"""…and while the host still reads earlier ones of the stream: fewer can wait, and go with those that come meanwhile."""


def enlarge(pipe: int, size: int) -> None:
    """Make a pipe hold ``size`` bytes, where that is allowed."""
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, size)
    except OSError:
        # Users have a limit, all their pipes together; root has none. The pipe works as it is.
        return


def waiting(pipe: int) -> int:
    """Bytes that can be read from a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, _FIONREAD, _NO_NUMBER))[0])


def capacity(fd: int) -> int:
    """Bytes a pipe holds, in whole pages; 0: it is none. (Out of a pipe pages are moved, out of a socket copied.)"""
    try:
        return fcntl.fcntl(fd, _F_GETPIPE_SZ)
    except OSError:
        return 0


def open_anew(fd: int) -> int:
    """Somebody's pipe, to be read by a description of our own, which may be non-blocking without others noticing; -1:
    it is none, or not theirs to read."""
    if not capacity(fd) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1


def frame_size(available: int, *, is_framed: bool = False) -> int:
    """Bytes to move under the next header; 0: not worth it."""
    if is_framed and available >= FRAMED_SIZE:
        return FRAMED_SIZE
    size = min(available, FRAME_SIZE) & ~(_PAGE - 1)
    return size if size >= SMALLEST else 0


class Drawer:
    """Reads pipes of processes into memory, and writes to them, through a pipe of our own, which is empty in between.

    Whoever reads a pipe keeps its writer out as long as the copying takes, and a writer on another CPU spins meanwhile,
    and the other way round (Linux 6.1, fs/pipe.c: one mutex): under software emulation a MiB costs the two of them 4 ms
    like that. Pages are moved here first, or from here, which is quick; they are copied while the process goes on: 2.5.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        enlarge(self._in, DRAWER_PIPE)

    def read(self, pipe: int, places: list[memoryview], size: int) -> int:
        """Read once, at most ``size`` bytes, for which there is room; return how many came. :raise OSError:"""
        if not capacity(pipe):
            return os.readv(pipe, places)
        size = os.splice(pipe, self._in, size)
        if size:
            # All of it at once: nobody else uses this pipe, and what stayed in it would be another stream's.
            taken = os.readv(self._out, places)
            assert taken == size
        return size

    def write(self, pipe: int, pieces: Sequence[bytes | memoryview], room: int) -> int:
        """Write at most ``room`` bytes; return how many went. :raise OSError:"""
        places: list[bytes | memoryview] = []
        for piece in pieces:
            places.append(piece[:room])
            room -= len(places[-1])
            if not room:
                break
        staged = os.writev(self._in, places)
        moved = 0
        try:
            while moved < staged:
                moved += os.splice(self._out, pipe, staged - moved)
        except BlockingIOError:
            # What is in it takes more pages than it has bytes.
            if not moved:
                raise
        finally:
            # What did not go is the caller's still.
            if moved < staged:
                os.read(self._out, staged - moved)
        return moved


_shared: list[Drawer] = []


def drawer() -> Drawer:
    """The one of this program, made when there is bulk for the first time."""
    if not _shared:
        _shared.append(Drawer())
    return _shared[0]


def write(fd: int, pieces: Sequence[bytes | memoryview]) -> int:
    """As writev(2); much goes into a pipe by moving pages there, as far as it has room. :raise OSError:"""
    pieces = pieces[:MAX_PIECES]
    size = capacity(fd) if IS_POSSIBLE and sum([len(piece) for piece in pieces]) >= SMALLEST_WRITTEN else 0
    room = size - waiting(fd) if size else 0
    return os.writev(fd, pieces) if room < SMALLEST_WRITTEN else drawer().write(fd, pieces, room)


class MessageReader:
    """Fills a piece of shared memory from pipes with messages: there is room for headers, which are filled in then.

    For a piece that is used again and again: where its messages are is worked out once.
    """

    def __init__(self, memory: memoryview, drawer: Drawer) -> None:
        starts = range(0, len(memory) - HEADER_SIZE, MESSAGE_SIZE)
        self._headers = [memory[start : start + HEADER_SIZE] for start in starts]
        self._bodies = [memory[start + HEADER_SIZE : start + MESSAGE_SIZE] for start in starts]
        self._memory = memory
        self._drawer = drawer
        self._full_header = b""
        self._full_headers = 0
        """So many of the headers, from the first on, are that one: nobody else writes here."""

    def read(self, pipe: int, room: int, available: int, make_header: Callable[[int], bytes]) -> int:
        """Read into at most ``room`` bytes of the memory, headers included, as long as the pipe has whole messages (at
        first it has ``available`` bytes); one that is not whole is taken where it is the first, or the last there is
        room for. Return how many were used.
        """
        done = used = 0
        while size := self._next(done, room - used, available):
            count = -(-size // FULL_BODY)
            places = self._bodies[done : done + count]
            if size < count * FULL_BODY:
                places[-1] = places[-1][: size - FULL_BODY * (count - 1)]
            size = self._drawer.read(pipe, places, size)
            full, last = divmod(size, FULL_BODY)
            done += full
            if full:
                self._head(done, make_header(FULL_BODY))
            used += size + HEADER_SIZE * full
            if last:
                self._headers[done][:] = make_header(last)
                self._full_headers = min(self._full_headers, done)
                used += HEADER_SIZE
            if last or not size or room - used < MESSAGE_SIZE:
                break
            available = waiting(pipe)
        return used

    def _head(self, count: int, header: bytes) -> None:
        """Have so many messages begin with this header; most do already."""
        if header != self._full_header:
            self._full_header = header
            self._full_headers = 0
        for place in self._headers[self._full_headers : count]:
            place[:] = header
        self._full_headers = max(self._full_headers, count)

    def _next(self, done: int, room: int, available: int) -> int:
        """How many bytes to read now, behind so many messages; 0: no more."""
        full, left = divmod(room, MESSAGE_SIZE)
        last = max(left - HEADER_SIZE, 0)
        if available >= full * FULL_BODY + last:
            return full * FULL_BODY + last
        whole = available // FULL_BODY
        return whole * FULL_BODY if whole or done else available

    def read_framed(self, pipe: int, room: int) -> int:
        """The same of a pipe whose messages have their headers already."""
        used = self._full_headers = 0
        while (available := waiting(pipe)) >= (FULL_BODY if used else 1) and used < room:
            size = min(available, room - used)
            size = self._drawer.read(pipe, [self._memory[used : used + size]], size)
            if not size:
                break
            used += size
        return used


class Conveyor:
    """Our own pipe. What was put on it goes to the port before anything else may."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        enlarge(self._in, OWN_PIPE)
        self.size = 0
        """Bytes on it."""

    def put(self, header: bytes, pipe: int, size: int) -> bytes:
        """Put a header and the next ``size`` bytes of a pipe on it.

        :return: what must follow at once, because it did not fit; normally nothing.
        """
        try:
            taken = os.write(self._in, header)
        except BlockingIOError:
            return header + _read_exactly(pipe, size)
        moved = 0
        try:
            while moved < size and (count := os.splice(pipe, self._in, size - moved)):
                moved += count
        except BlockingIOError:
            # Very small pieces fill our pipe, which counts pieces.
            pass
        self.size += taken + moved
        return b"" if moved == size else _read_exactly(pipe, size - moved)

    def move(self, port: int) -> None:
        """Hand on all that the port takes. :raise BlockingIOError: it takes no more now. :raise OSError:"""
        while self.size:
            self.size -= os.splice(self._out, port, self.size)

    def clear(self) -> None:
        """Nobody is there to take what is on it."""
        while self.size:
            self.size -= len(os.read(self._out, self.size))


def _read_exactly(pipe: int, size: int) -> bytes:
    """Bytes that were there a moment ago; should somebody else have taken some, the frame is filled up."""
    data = b""
    try:
        while len(data) < size and (part := os.read(pipe, size - len(data))):
            data += part
    except BlockingIOError:
        pass
    return data.ljust(size, b"\0")
