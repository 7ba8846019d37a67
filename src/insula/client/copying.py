"""Copying files and folders into and out of a qube, through commands in it.

In: the qube's ``sh``, ``cat`` and ``tar`` write what comes on their input; the host trusts nothing they say but the
exit code. Out: the qube's ``tar`` writes a stream, and only :mod:`insula.client.tar_stream` and
:mod:`insula.client.receive` decide what becomes of it. Threads do the reading and writing of this machine's files, so
that a slow disk does not stop the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from insula.client.errors import EXCERPT, CopyFailed, copy_failed
from insula.client.receive import Reception
from insula.client.tar_stream import Limits

T = TypeVar("T")

Run = Callable[[list[str], int | None, int | None, int | None], Coroutine[Any, Any, int]]
"""Runs a command joined to three descriptors (stdin, stdout, stderr; None: nothing) and returns its exit code."""

DRAIN_SIZE = 65536

_WRITE_FILE = (
    'part="$1.part.$$" && trap "rm -f -- \\"\\$part\\"" EXIT HUP TERM && cat > "$part"'
    ' && [ "$(wc -c < "$part")" -eq "$2" ] && chmod "$3" "$part" && mv -fT -- "$part" "$1"'
)
"""For ``sh -c``, with path, size and mode: the size, because input that breaks off looks like its end (MC-07)."""
_WRITE_FOLDER = 'mkdir -p -- "$1" && exec tar --extract --no-same-owner --file=- --directory="$1"'


async def copy_in(run: Run, source: Path | bytes, target: str) -> None:
    """:raise CopyFailed: the qube could not take it. :raise OSError: ``source`` cannot be read."""
    _check(target)
    if isinstance(source, bytes):
        await _send_file(run, source, len(source), 0o644, target)
    elif source.is_dir():
        await _send_folder(run, source, target)
    else:
        with source.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CopyFailed(f"{source} is neither a file nor a folder")
            mode = 0o755 if status.st_mode & 0o100 else 0o644
            await _send_file(run, file.fileno(), status.st_size, mode, target)


async def _send_file(run: Run, source: bytes | int, size: int, mode: int, target: str) -> None:
    command = ["sh", "-c", _WRITE_FILE, "sh", target, str(size), f"{mode:o}"]
    async with _collected() as (stderr, errors):
        if isinstance(source, int):
            code = await run(command, source, None, stderr)
        else:
            code = await _with_writer(lambda fd: _write_all(fd, source), lambda fd: run(command, fd, None, stderr))
    if code:
        raise copy_failed(f"{target} could not be written in the qube (exit code {code})", bytes(errors))


async def _send_folder(run: Run, source: Path, target: str) -> None:
    command = ["sh", "-c", _WRITE_FOLDER, "sh", target]
    async with _collected() as (stderr, errors):
        code = await _with_writer(lambda fd: _write_tar(fd, source), lambda fd: run(command, fd, None, stderr))
    if code:
        raise copy_failed(f"{target} could not be written in the qube (exit code {code})", bytes(errors))


async def copy_out(run: Run, source: str, target: Path, limits: Limits) -> None:
    """:raise CopyFailed, UnsafeStream, CopyTooLarge, FileExistsError, OSError: nothing is left."""
    _check(source)
    folder, name = posixpath.split(source.rstrip("/"))
    if name in ("", ".", ".."):
        raise ValueError(f"there is no name at the end of {source!a}")
    command = [
        *("tar", "--create", "--format=gnu", "--hard-dereference", "--owner=0", "--group=0", "--numeric-owner"),
        *("--file=-", f"--directory={folder or ('/' if source.startswith('/') else '.')}", "--", name),
    ]
    with Reception(target, os.fsencode(name)) as reception:
        async with _collected() as (stderr, errors):
            code, problem = await _with_reader(
                lambda fd: reception.read(fd, limits), lambda fd: run(command, None, fd, stderr)
            )
        if code:
            raise copy_failed(f"{source} could not be read in the qube (exit code {code})", bytes(errors))
        if problem is not None:
            raise problem
        reception.keep()


def _check(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"not a path: {path!a}")


# between a thread and a command


async def _with_writer(write: Callable[[int], None], run: Callable[[int], Coroutine[Any, Any, int]]) -> int:
    """Run a command whose input a thread writes. An error of the thread ends the command and is raised."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        try:
            # Who reads no more gets no more: its exit code tells.
            with contextlib.suppress(BrokenPipeError):
                write(write_fd)
        finally:
            os.close(write_fd)

    writing = asyncio.ensure_future(asyncio.to_thread(work))
    running = asyncio.ensure_future(run(read_fd))
    try:
        await asyncio.wait({writing, running}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await writing
        code = await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        os.close(read_fd)  # the last end of that side: wakes a thread that waits for room
        await asyncio.gather(writing, return_exceptions=True)
    if not code:
        writing.result()
    return code


async def _with_reader(
    read: Callable[[int], None], run: Callable[[int], Coroutine[Any, Any, int]]
) -> tuple[int, BaseException | None]:
    """Run a command whose output a thread reads; returns its exit code and what the thread raised.

    An error of the thread that comes first ends the command and is raised. Otherwise the command's failure is the one
    to tell: its output is cut off by it.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    running = asyncio.ensure_future(run(write_fd))
    reading = asyncio.ensure_future(asyncio.to_thread(read, read_fd))
    try:
        await asyncio.wait({running, reading}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            reading.result()
            raise CopyFailed("the qube goes on after the end of what it should send")
        code = running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        os.close(write_fd)
        await asyncio.gather(reading, return_exceptions=True)
        os.close(read_fd)
    return code, reading.exception()


@contextlib.asynccontextmanager
async def _collected() -> AsyncIterator[tuple[int, bytearray]]:
    """A descriptor to write to and the beginning of what was written; the rest goes nowhere."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    kept = bytearray()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        data = os.read(read_fd, DRAIN_SIZE)
        kept.extend(data[: EXCERPT - len(kept)])

    loop.add_reader(read_fd, readable)
    try:
        yield write_fd, kept
        loop.remove_reader(read_fd)
        os.set_blocking(read_fd, False)
        with contextlib.suppress(BlockingIOError):
            readable()
    finally:
        loop.remove_reader(read_fd)
        os.close(write_fd)
        os.close(read_fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _write_tar(fd: int, folder: Path) -> None:
    """The content of a folder of this machine, whose owners are nobody's business in a qube."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with (
        open(fd, "wb", closefd=False) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        archive.add(folder, arcname=".", filter=anonymous)
