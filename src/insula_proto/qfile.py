"""qfile: files on their way between qubes (published format; reference: agent-services, §3).

The stream is records: a header of 32 bytes, a name, content. A folder is sent before what is in it and once more after,
for then its mode and times can be taken over. A header without name ends it. What comes back is an :class:`Answer`: an
errno, the CRC-32 of every byte that was sent, and the name of the last file (old receivers leave that out).

::

    header ── name ──► file: content ──► header …          folder ──► header …
       │          └──► link: target ───► header …
       └── without name: ended; what comes after it is not looked at

:class:`Encoder` writes a stream, :class:`Decoder` takes it apart, in any split, without a copy of the content. Both
sans I/O, both keep the checksum. An answer may come at any time, and one in the middle means failure.
"""

from __future__ import annotations

import errno
import stat
import struct
import zlib

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.file_names import NameRefused, check_path, check_target
from insula_proto.value import Value, put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

HEADER = struct.Struct("<IIQIIII")
_STATUS = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<I")
_END = bytes(HEADER.size)
_NANOSECONDS = 1000000000
_MAX_U32 = 0xFFFFFFFF
_MAX_SIGNED = (1 << 63) - 1

CUT_OFF = 31415926
"""In place of an errno: the stream ended in a name or in content, and the sender will know better why."""
NO_STREAM = errno.EREMOTEIO
"""The stream ended before or in a header, without its end."""
PLAIN_MODE = 0o777
"""What is taken over of a mode: no set-uid, set-gid or sticky bit (MC-04)."""
MAX_ANSWER = _STATUS.size + _LENGTH.size + limits.QFILE_MAX_PATH
"""Bytes of an answer; a sender reads no more (MC-10)."""


class StreamRefused(RemoteProtocolError):
    """The stream breaks the rules; ``code`` and ``name`` are what the answer says (``name`` None: nothing is known)."""

    def __init__(self, message: str, code: int, name: bytes | None) -> None:
        super().__init__(message)
        self.code = code
        self.name = name


class Entry(Value):
    """A file (``size`` bytes of Data follow), folder or link begins. Of ``mode``, type and plain permissions are left.

    ``atime`` and ``mtime`` are nanoseconds since 1970.
    """

    __slots__ = ("atime", "mode", "mtime", "path", "size", "target")
    path: tuple[bytes, ...]
    mode: int
    size: int
    atime: int
    mtime: int
    target: bytes

    def __init__(
        self, path: tuple[bytes, ...], mode: int, size: int = 0, *, atime: int = 0, mtime: int = 0, target: bytes = b""
    ) -> None:
        # A transfer may have very many: field by field is the quickest way.
        put(self, "path", path)
        put(self, "mode", mode)
        put(self, "size", size)
        put(self, "atime", atime)
        put(self, "mtime", mtime)
        put(self, "target", target)

    @property
    def name(self) -> bytes:
        return b"/".join(self.path)


class Data(Value):
    """The next bytes of the file that began last. Valid until the decoder gets more: copy what is kept."""

    __slots__ = ("data",)
    data: bytes | memoryview

    def __init__(self, data: bytes | memoryview) -> None:
        put(self, "data", data)


class End(Value):
    """The stream is complete."""

    __slots__ = ()


if TYPE_CHECKING:
    Event = Union[Entry, Data, End]


class Answer(Value):
    """What the receiver says: 0 or an errno, its checksum, the name of the last file (any bytes)."""

    __slots__ = ("code", "crc", "name")
    code: int
    crc: int
    name: bytes

    def __init__(self, code: int, crc: int, name: bytes = b"") -> None:
        self._fill(code=code, crc=crc, name=name)


class Quota(Value):
    """How much one transfer may have: bytes of content and targets, headers, parts of a path."""

    __slots__ = ("depth", "entries", "total")
    total: int
    entries: int
    depth: int

    def __init__(
        self,
        total: int = limits.QFILE_MAX_TOTAL,
        entries: int = limits.QFILE_MAX_ENTRIES,
        depth: int = limits.QFILE_MAX_DEPTH,
    ) -> None:
        self._fill(total=total, entries=entries, depth=depth)


class Encoder:
    """Writes a stream; whoever sends the content of a file tells :meth:`sent` about it."""

    def __init__(self) -> None:
        self.crc = 0
        """Of everything returned and told so far."""
        self._owed = 0
        self._is_ended = False

    def folder(self, name: bytes, mode: int, atime: int, mtime: int) -> bytes:
        """Before what is in it, and once more after. Times are nanoseconds since 1970."""
        return self._header(name, stat.S_IFDIR | stat.S_IMODE(mode), 0, atime, mtime)

    def file(self, name: bytes, mode: int, size: int, atime: int, mtime: int) -> bytes:
        """``size`` bytes of content follow."""
        header = self._header(name, stat.S_IFREG | stat.S_IMODE(mode), size, atime, mtime)
        self._owed = size
        return header

    def link(self, name: bytes, target: bytes, atime: int, mtime: int) -> bytes:
        """With its target."""
        if not 0 < len(target) <= limits.QFILE_MAX_PATH or b"\0" in target:
            raise LocalProtocolError(f"a target of {len(target)} bytes")
        header = self._header(name, stat.S_IFLNK | PLAIN_MODE, len(target), atime, mtime)
        self.crc = zlib.crc32(target, self.crc)
        return header + target

    def sent(self, data: bytes | memoryview) -> None:
        """The next bytes of the file's content are on their way. :raise LocalProtocolError: more than announced."""
        if len(data) > self._owed:
            raise LocalProtocolError("more content than was announced")
        self._owed -= len(data)
        self.crc = zlib.crc32(data, self.crc)

    def end(self) -> bytes:
        self._require_between_records()
        self._is_ended = True
        self.crc = zlib.crc32(_END, self.crc)
        return _END

    def _require_between_records(self) -> None:
        if self._owed or self._is_ended:
            raise LocalProtocolError("a record inside another one, or after the end")

    def _header(self, name: bytes, mode: int, size: int, atime: int, mtime: int) -> bytes:
        """:raise LocalProtocolError: something does not fit."""
        self._require_between_records()
        if not 0 < len(name) < limits.QFILE_MAX_PATH or b"\0" in name or not 0 <= size <= _MAX_SIGNED:
            raise LocalProtocolError(f"a name of {len(name)} bytes, a file of {size}")
        # Seconds are unsigned and 32 bits wide: what was before 1970 or is after 2106 becomes the nearest that fits.
        times = [divmod(max(0, time), _NANOSECONDS) for time in (atime, mtime)]
        (atime_s, atime_ns), (mtime_s, mtime_ns) = [(min(s, _MAX_U32), ns) for s, ns in times]
        header = HEADER.pack(len(name) + 1, mode, size, atime_s, atime_ns, mtime_s, mtime_ns) + name + b"\0"
        self.crc = zlib.crc32(header, self.crc)
        return header


class Decoder:
    """Takes a stream apart. After an exception nothing more of it can be read; :attr:`crc` is of what was."""

    def __init__(self, quota: Quota, *, all_names: bool) -> None:
        self._quota = quota
        self._all_names = all_names
        self._partial = bytearray()
        """Of a header with name and target, which is short; content is never kept."""
        self._left = 0
        """Bytes of content still to come."""
        self._entries = 0
        self._total = 0
        self._folder = b""
        """Path of the folder of the last entry that was in one…"""
        self._folder_parts: tuple[bytes, ...] = ()
        """…and checked."""
        self.crc = 0
        self.is_ended = False
        self.last_name: bytes | None = None
        """As it came: what an answer names."""

    def receive(self, untrusted_data: bytes | memoryview) -> Iterator[Event]:
        """What these bytes complete, one after the other; to be read to its end.

        :raise StreamRefused: after all that was right.
        """
        view = memoryview(untrusted_data)
        position = 0
        end = len(view)
        try:
            while position < end and not self.is_ended:
                if self._left:
                    count = min(self._left, end - position)
                    data = view[position : position + count]
                    self._left -= count
                    position += count
                    yield Data(data)
                else:
                    position, event = self._receive_record(view, position)
                    if event is not None:
                        yield event
        finally:
            self.crc = zlib.crc32(view[:position], self.crc)

    def finish(self) -> None:
        """No more bytes come. :raise StreamRefused: the end is missing."""
        if self._left or len(self._partial) >= HEADER.size:
            raise StreamRefused("the stream was cut off", CUT_OFF, self.last_name)
        if not self.is_ended:
            raise StreamRefused("the stream has no end", NO_STREAM, self.last_name)

    def _receive_record(self, view: memoryview, position: int) -> tuple[int, Event | None]:
        """Take what belongs to a header, name and target; the position behind it, and the record if complete."""
        partial = self._partial
        if not partial and len(view) - position >= HEADER.size:
            # Most often all is there: nothing needs to be kept.
            fields = HEADER.unpack_from(view, position)
            wanted = self._wanted(fields)
            if len(view) - position >= wanted:
                rest = bytes(view[position + HEADER.size : position + wanted])
                return position + wanted, self._record(fields, rest)
        wanted = HEADER.size if len(partial) < HEADER.size else self._wanted(HEADER.unpack_from(partial))
        taken = view[position : position + wanted - len(partial)]
        partial += taken
        position += len(taken)
        if len(partial) == HEADER.size:
            wanted = self._wanted(HEADER.unpack_from(partial))
        if len(partial) < wanted:
            return position, None
        record = bytes(partial)
        partial.clear()
        return position, self._record(HEADER.unpack_from(record), record[HEADER.size :])

    def _wanted(self, fields: tuple[int, ...]) -> int:
        """Bytes of header, name and, for a link, target; checked before anything is kept for them (MC-11)."""
        name_size, mode, size = fields[:3]
        if name_size > limits.QFILE_MAX_PATH:
            raise StreamRefused(f"a name of {name_size} bytes", errno.ENAMETOOLONG, None)
        if name_size and stat.S_ISLNK(mode):
            if size > limits.QFILE_MAX_PATH:
                raise StreamRefused(f"a target of {size} bytes", errno.ENAMETOOLONG, None)
            return HEADER.size + name_size + size
        return HEADER.size + name_size

    def _record(self, fields: tuple[int, ...], rest: bytes) -> Event:
        """``rest``: name and target."""
        name_size, mode, size, atime_s, atime_ns, mtime_s, mtime_ns = fields
        if name_size == 0:
            self.is_ended = True
            return End()
        name = rest[:name_size]
        if name.endswith(b"\0"):
            name = name[:-1]
        self.last_name = name
        if atime_ns >= _NANOSECONDS or mtime_ns >= _NANOSECONDS:
            raise StreamRefused("more nanoseconds than a second has", errno.EINVAL, name)
        kind = stat.S_IFMT(mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise StreamRefused(f"a file of type {kind:#o}", errno.EINVAL, name)
        is_link = kind == stat.S_IFLNK
        target = rest[name_size:]
        try:
            path = self._parts(name)
            if is_link:
                check_target(len(path), target, all_names=self._all_names)
        except NameRefused as error:
            # As published: for a link the target is named.
            raise StreamRefused(str(error), error.code, target if is_link else name) from error
        # Published senders announce nothing for a folder, others may; nothing follows either way.
        announced = 0 if kind == stat.S_IFDIR else size
        self._count(path, announced, name)
        if kind == stat.S_IFREG:
            self._left = size
        return Entry(
            path, kind | (mode & PLAIN_MODE), size if kind == stat.S_IFREG else 0,
            atime=atime_s * _NANOSECONDS + atime_ns, mtime=mtime_s * _NANOSECONDS + mtime_ns, target=target,
        )  # fmt: skip

    def _parts(self, name: bytes) -> tuple[bytes, ...]:
        """The path's parts. Many files in one folder: only their last part is new."""
        folder, slash, last = name.rpartition(b"/")
        if folder and folder == self._folder:
            return self._folder_parts + check_path(last, all_names=self._all_names)
        parts = check_path(name, all_names=self._all_names)
        if slash:
            self._folder, self._folder_parts = folder, parts[:-1]
        return parts

    def _count(self, path: tuple[bytes, ...], announced: int, name: bytes) -> None:
        """MC-06: what is over a limit ends the transfer, before anything is made for it."""
        self._entries += 1
        self._total += announced
        quota = self._quota
        if self._entries > quota.entries or self._total > quota.total or len(path) > quota.depth:
            raise StreamRefused("more than one transfer may have", errno.EDQUOT, name)


def encode_answer(answer: Answer) -> bytes:
    """:raise LocalProtocolError: a number or the name does not fit."""
    if not 0 <= answer.code <= _MAX_U32 or not 0 <= answer.crc <= _MAX_U32:
        raise LocalProtocolError(f"answer {answer.code}")
    name = answer.name[: limits.QFILE_MAX_PATH]
    return _STATUS.pack(answer.code, 0, answer.crc) + _LENGTH.pack(len(name)) + name


class AnswerDecoder:
    """Collects an answer. Of what comes, :data:`MAX_ANSWER` bytes are kept and the rest is not looked at (MC-10)."""

    def __init__(self) -> None:
        self._collected = bytearray()

    def receive(self, untrusted_data: bytes) -> None:
        self._collected += untrusted_data[: MAX_ANSWER - len(self._collected)]

    @property
    def is_begun(self) -> bool:
        """Whether there is anything: no receiver that still works says something."""
        return bool(self._collected)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can belong to it."""
        collected = self._collected
        fixed = _STATUS.size + _LENGTH.size
        if len(collected) < fixed:
            return False
        (size,) = _LENGTH.unpack_from(collected, _STATUS.size)
        return bool(len(collected) >= fixed + min(size, limits.QFILE_MAX_PATH))

    def finish(self) -> Answer:
        """The answer, when it is full or nothing more comes. :raise RemoteProtocolError: not even a status came."""
        if len(self._collected) < _STATUS.size:
            raise RemoteProtocolError(f"an answer of {len(self._collected)} bytes")
        code, _, crc = _STATUS.unpack_from(self._collected)
        # A name that was cut off is taken as far as it came: it is for people only.
        rest = self._collected[_STATUS.size :]
        size = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else 0
        return Answer(code, crc, bytes(rest[_LENGTH.size : _LENGTH.size + size]))
