"""The caller's end of a command's output: made safe for a terminal, collected for JSON, given up when nobody reads.

The call itself writes to descriptors (:func:`insula.rpc.client.run`); what has to happen to the bytes happens here,
behind a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

READ_SIZE = 65536

_HARMLESS = frozenset(b"\t\n\r\b\a") | frozenset(range(0x20, 0x7F))
"""What reaches a terminal as it is: printable ASCII, tab, newline, carriage return, backspace, bell (qrexec §4, -t)."""
_FILTER = bytes(byte if byte in _HARMLESS else ord("_") for byte in range(256))


def safe_for_terminal(untrusted_output: bytes) -> bytes:
    """The same number of bytes, each that could steer the terminal replaced by ``_`` (MC-103)."""
    return untrusted_output.translate(_FILTER)


class TooMuchOutput(Exception):
    """More output than is kept."""


class Collector:
    """Keeps what comes, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def __call__(self, chunk: bytes) -> None:
        """:raise TooMuchOutput:"""
        if len(self.data) + len(chunk) > self._limit:
            raise TooMuchOutput(f"more than {self._limit} bytes of output")
        self.data += chunk


def writer_to(fd: int, change: Callable[[bytes], bytes]) -> Callable[[bytes], None]:
    """Deliver changed bytes to a descriptor, all of them, waiting if it must."""

    def write(chunk: bytes) -> None:
        changed = memoryview(change(chunk))
        while changed:
            try:
                changed = changed[os.write(fd, changed) :]
            except BlockingIOError:  # somebody else made the terminal non-blocking
                select.select([], [fd], [])

    return write


@contextlib.asynccontextmanager
async def delivered(deliver: Callable[[bytes], None]) -> AsyncIterator[int]:
    """A descriptor to write to; ``deliver`` gets what was written, all of it before the block is left.

    Whoever writes may keep a copy of the descriptor, but must close it before the block ends. If ``deliver`` raises,
    the pipe is closed, which the writer notices, and the error comes out at the end of the block.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def stop(error: Exception | None) -> None:
        loop.remove_reader(read_fd)
        os.close(read_fd)
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def readable() -> None:
        try:
            chunk = os.read(read_fd, READ_SIZE)
            if chunk:
                deliver(chunk)
                return
        except (OSError, TooMuchOutput) as error:
            stop(error)
            return
        stop(None)

    loop.add_reader(read_fd, readable)
    try:
        yield write_fd
    except BaseException:
        os.close(write_fd)
        if not ended.done():
            stop(None)
        ended.exception()  # the first error is the one to tell
        raise
    os.close(write_fd)
    await ended


async def while_read(fds: Sequence[int], work: Coroutine[Any, Any, T]) -> T | None:
    """Await ``work``; cancel it and return None once the reader of one of these pipes has gone away.

    Without this a command that writes for ever would go on for ever after ``insula run … | head -1``. Descriptors
    that are no pipes are not watched.
    """
    running = asyncio.ensure_future(work)
    is_unread = False

    def nobody_reads() -> None:
        nonlocal is_unread
        is_unread = True
        running.cancel()

    with contextlib.ExitStack() as watches:
        for fd in fds:
            watches.enter_context(_watch(fd, nobody_reads))
        try:
            return await running
        except asyncio.CancelledError:
            if is_unread:
                return None
            raise


@contextlib.contextmanager
def _watch(fd: int, when_gone: Callable[[], object]) -> Iterator[None]:
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()
    # A pipe's write end never becomes readable; the selector reports its error condition as that. A copy, because
    # the loop watches each number only once.
    watched = os.dup(fd)

    def gone() -> None:
        loop.remove_reader(watched)
        when_gone()

    loop.add_reader(watched, gone)
    try:
        yield
    finally:
        loop.remove_reader(watched)
        os.close(watched)
