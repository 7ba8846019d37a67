"""Reading the tar stream of a qube: a strict codec without I/O that knows the little that is needed and nothing else.

What a hostile qube may send is anything; this is what it may mean: folders, plain files and symbolic links, in GNU
format (GNU tar manual, "Basic Tar Format"), with long names. Hard links, devices, FIFOs, sparse files, extended
headers and numbers in base 256 are refused: each has been the way into some unpacker, and none is needed, because the
program that writes the stream is asked not to use them. Everything that is announced is compared with a limit before
it is believed, and nothing is kept but one header and one long name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from insula.client.errors import CopyTooLarge, UnsafeStream

BLOCK = 512
MAX_NAME = 255
"""Bytes of one name; Linux file systems store no longer ones."""
MAX_PATH = 4096
"""Bytes of a path or of a link's target; PATH_MAX of Linux."""
MAX_DEPTH = 64
"""Folders inside each other."""
MAX_TRAILER = 65536
"""Bytes of zeros after the end; GNU tar fills up to 10240."""

_MAGIC = b"ustar  \0"
_FILE, _OLD_FILE, _LINK, _FOLDER = b"0", b"\0", b"2", b"5"
_LONG_NAME, _LONG_TARGET = b"L", b"K"
_ZEROS = bytes(BLOCK)


class Kind(Enum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True)
class Limits:
    total_bytes: int
    """Of all files together."""
    entries: int


@dataclass(frozen=True)
class Entry:
    """The beginning of something; a file's data follow as :class:`Data`, ``size`` bytes of them."""

    path: tuple[bytes, ...]
    """Its names from the top down: each 1 to 255 bytes, none ``.`` or ``..``, no NUL, no slash."""
    kind: Kind
    executable: bool = False
    size: int = 0
    target: bytes = b""
    """Of a link: relative, and inside what is copied wherever the link is followed from."""


@dataclass(frozen=True)
class Data:
    """Some bytes of the file that was announced last."""

    data: bytes


Event = Entry | Data


class TarDecoder:
    """Feed it with :meth:`receive`; call :meth:`finish` at the end of the stream."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._entries = 0
        self._total = 0
        self._file_left = 0
        self._padding_left = 0
        self._zero_blocks = 0
        self._trailer = 0
        self._collecting: tuple[bytes, int] | None = None
        """Type and size of the long name that is being received."""
        self._long: dict[bytes, bytes] = {}

    def receive(self, untrusted_data: bytes) -> Iterator[Event]:
        """Events that are complete now. :raise UnsafeStream, CopyTooLarge: of no use from then on."""
        self._buffer += untrusted_data
        while self._step_is_possible():
            yield from self._step()

    def finish(self) -> None:
        """:raise UnsafeStream: the stream ended before its end mark."""
        if self._zero_blocks < 2 or self._long:
            raise UnsafeStream("the stream ended early")

    def _step_is_possible(self) -> bool:
        if self._file_left:
            return bool(self._buffer)
        if self._padding_left:
            return len(self._buffer) >= self._padding_left
        if self._collecting is not None:
            return len(self._buffer) >= self._collecting[1]
        return len(self._buffer) >= BLOCK or (self._zero_blocks == 2 and bool(self._buffer))

    def _step(self) -> Iterator[Event]:
        if self._file_left:
            part = self._take(min(self._file_left, len(self._buffer)))
            self._file_left -= len(part)
            yield Data(part)
        elif self._padding_left:
            self._take(self._padding_left)
            self._padding_left = 0
        elif self._collecting is not None:
            self._take_long_name(*self._collecting)
        elif self._zero_blocks == 2:
            self._take_trailer()
        else:
            yield from self._header(self._take(BLOCK))

    def _take(self, size: int) -> bytes:
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        return part

    def _take_trailer(self) -> None:
        rest = self._take(len(self._buffer))
        self._trailer += len(rest)
        if any(rest) or self._trailer > MAX_TRAILER:
            raise UnsafeStream("something follows the end of the stream")

    def _take_long_name(self, kind: bytes, size: int) -> None:
        name = self._take(size).removesuffix(b"\0")
        self._long[kind] = name
        self._collecting = None
        self._padding_left = -size % BLOCK

    def _header(self, block: bytes) -> Iterator[Entry]:
        if block == _ZEROS:
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise UnsafeStream("an end mark in the middle of the stream")
        _check(block)
        kind, size = block[156:157], _number(block[124:136], "size")
        if kind in (_LONG_NAME, _LONG_TARGET):
            if kind in self._long or not 1 <= size <= MAX_PATH + 1:
                raise UnsafeStream("a long name that cannot be")
            self._collecting = (kind, size)
            return
        path = parse_path(self._long.pop(_LONG_NAME, _text(block[0:100])), is_folder=kind == _FOLDER)
        target = self._long.pop(_LONG_TARGET, _text(block[157:257]))
        self._count(path)
        if kind in (_FILE, _OLD_FILE):
            yield self._file(path, size, executable=bool(_number(block[100:108], "mode") & 0o100))
            return
        if size:
            raise UnsafeStream(f"{_shown(path)} is no file and has a size")
        if kind == _FOLDER:
            yield Entry(path, Kind.FOLDER)
        elif kind == _LINK:
            check_target(path, target)
            yield Entry(path, Kind.LINK, target=target)
        else:
            raise UnsafeStream(f"{_shown(path)} is neither file nor folder nor symbolic link (type {kind!a})")

    def _count(self, path: tuple[bytes, ...]) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise CopyTooLarge(f"more than {self._limits.entries} files and folders; stopped at {_shown(path)}")

    def _file(self, path: tuple[bytes, ...], size: int, *, executable: bool) -> Entry:
        self._total += size
        if self._total > self._limits.total_bytes:
            raise CopyTooLarge(f"more than {self._limits.total_bytes} bytes; stopped at {_shown(path)}")
        self._file_left = size
        self._padding_left = -size % BLOCK
        return Entry(path, Kind.FILE, executable=executable, size=size)


def parse_path(untrusted_path: bytes, *, is_folder: bool = False) -> tuple[bytes, ...]:
    """The names of a path. :raise UnsafeStream: empty, absolute, with ``.``, ``..``, too long or too deep (MC-01)."""
    if is_folder:
        untrusted_path = untrusted_path.removesuffix(b"/")
    names = tuple(untrusted_path.split(b"/"))
    if len(untrusted_path) > MAX_PATH or len(names) > MAX_DEPTH:
        raise UnsafeStream(f"a path of {len(untrusted_path)} bytes in {len(names)} levels")
    for name in names:
        if name in (b"", b".", b"..") or b"\0" in name or len(name) > MAX_NAME:
            raise UnsafeStream(f"a path that may not be: {untrusted_path[:100]!a}")
    return names


def check_target(path: tuple[bytes, ...], untrusted_target: bytes) -> None:
    """:raise UnsafeStream: the link could lead out of what is copied.

    ``..`` only at the beginning, and no more of them than there are folders (not links: a link has nothing below it)
    above the link; what follows only goes down. By induction no chain of such links leaves the top.
    """
    names = [name for name in untrusted_target.split(b"/") if name != b"."]
    ups = 0
    while ups < len(names) and names[ups] == b"..":
        ups += 1
    # The link lies in folder len(path) - 1; the first of these is the top itself, which it must not leave.
    fits = ups <= len(path) - 2 and all(
        name not in (b"", b"..") and b"\0" not in name and len(name) <= MAX_NAME for name in names[ups:]
    )
    if not fits or len(untrusted_target) > MAX_PATH:
        raise UnsafeStream(f"the link {_shown(path)} may lead elsewhere: {untrusted_target[:100]!a}")


def _check(block: bytes) -> None:
    """:raise UnsafeStream: not a header, or damaged."""
    if block[257:265] != _MAGIC:
        raise UnsafeStream("not a tar stream in GNU format")
    if sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) != _number(block[148:156], "checksum"):
        raise UnsafeStream("a header with a wrong checksum")


def _number(untrusted_field: bytes, what: str) -> int:
    """Octal digits, ended by NUL or space. :raise UnsafeStream:"""
    digits = untrusted_field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or not set(digits) <= set(b"01234567"):
        raise UnsafeStream(f"a header whose {what} is no octal number")
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _shown(path: tuple[bytes, ...]) -> str:
    return ascii(b"/".join(path)[:200].decode("utf-8", "backslashreplace"))
