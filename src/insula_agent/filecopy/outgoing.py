"""Sending files: a walk through them by open folders, packed for the other qube, its answer looked for all the while.

Small files are collected, many to a write; of a large one each block is read once, added to the checksum and written.
Nothing that is a link is followed. What is neither file, folder nor link is left out (:attr:`Outgoing.left_out`).
"""

from __future__ import annotations

import errno
import os
import select
import stat

from insula_agent.client_call import write_all
from insula_agent.filecopy.tree import SendFailed
from insula_agent.files import FOLDER_FLAGS
from insula_proto import qfile
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.file_names import shown
from insula_proto.qfile import Answer, AnswerDecoder, Encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula_agent.filecopy.tree import Root

BLOCK = 1 << 20
"""Bytes read and written at once; a pipe holds as many."""
SMALL = 65536
"""Bytes of a file up to which it is collected with others."""
BATCH = 262144
"""Bytes collected before they are written."""

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Outgoing:
    """One transfer. ``stream`` takes it, ``answers`` is where the receiver speaks; both stay the caller's.

    ``report`` is told the bytes of content sent so far. ``remembers``: what was sent is kept in mind, for a move.
    """

    def __init__(
        self,
        stream: int,
        answers: int,
        report: Callable[[int], None],
        *,
        ignore_symlinks: bool = False,
        remembers: bool = False,
    ) -> None:
        self._stream = stream
        self._answers = answers
        self._report = report
        self._ignore_symlinks = ignore_symlinks
        self._remembers = remembers
        self._encoder = Encoder()
        self._answer = AnswerDecoder()
        self._poll = select.poll()
        self._poll.register(answers, select.POLLIN)
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._block = memoryview(bytearray(BLOCK))
        self._total = 0
        self.sent: dict[bytes, tuple[int, ...]] = {}
        """For a move: what was sent, by its name in the stream, and what tells whether it is still the same."""
        self.left_out: list[bytes] = []

    def send(self, roots: Sequence[Root]) -> None:
        """Send all, to the end. :raise SendFailed: not everything could be sent, or the receiver stopped it."""
        try:
            for root in roots:
                folder = os.open(root.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._send_any(folder, root.name, root.name)
                finally:
                    os.close(folder)
            self._collect(self._encoder.end())
            self._flush()
        except BrokenPipeError:
            # The receiver has stopped; it has said why, or has gone.
            self._raise_answer()
        except OSError as error:
            raise SendFailed(f"{shown(os.fsencode(error.filename or b''))}: {error.strerror}") from error
        except LocalProtocolError as error:
            raise SendFailed(str(error)) from error

    def confirm(self) -> None:
        """Wait for the answer. :raise SendFailed: the receiver has not, or not rightly, taken all."""
        answer = self._read_answer()
        if answer.code != 0 or answer.crc != self._encoder.crc:
            raise SendFailed(describe(answer))

    # --- the walk ------------------------------------------------------------------------------------------------

    def _send_any(self, folder: int, name: bytes, path: bytes) -> None:
        """What is called ``name`` in an open folder; ``path`` is its name in the stream."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            self._send_file(folder, name, path)
        elif stat.S_ISDIR(found.st_mode):
            self._send_folder(folder, name, path)
        elif not stat.S_ISLNK(found.st_mode):
            self.left_out.append(path)
        elif not self._ignore_symlinks:
            target = os.readlink(name, dir_fd=folder)
            self._collect(self._encoder.link(path, target, found.st_atime_ns, found.st_mtime_ns))
            if self._remembers:
                self.sent[path] = identity(found)

    def _send_folder(self, folder: int, name: bytes, path: bytes) -> None:
        inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        try:
            found = os.fstat(inner)
            header = self._encoder.folder(path, found.st_mode, found.st_atime_ns, found.st_mtime_ns)
            self._collect(header)
            with os.scandir(inner) as items:
                for item in items:
                    item_name = os.fsencode(item.name)
                    item_path = path + b"/" + item_name
                    if item.is_file(follow_symlinks=False):
                        # The usual case, with one look at it less.
                        self._send_file(inner, item_name, item_path)
                    else:
                        self._send_any(inner, item_name, item_path)
            self._collect(self._encoder.folder(path, found.st_mode, found.st_atime_ns, found.st_mtime_ns))
            if self._remembers:
                self.sent[path] = ()
        finally:
            os.close(inner)

    def _send_file(self, folder: int, name: bytes, path: bytes) -> None:
        """:raise SendFailed: it is not what it was when it was looked at."""
        file = os.open(name, _READ_FLAGS, dir_fd=folder)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise SendFailed(f"{shown(path)} changed while it was copied")
            size = found.st_size
            self._collect(self._encoder.file(path, found.st_mode, size, found.st_atime_ns, found.st_mtime_ns))
            if size <= SMALL:
                content = os.read(file, size) if size else b""
                if len(content) != size:
                    raise SendFailed(f"{shown(path)} changed while it was copied")
                self._encoder.sent(content)
                self._collect(content)
                self._total += size
            else:
                self._send_content(file, size, path)
            if self._remembers:
                self.sent[path] = identity(found)
        finally:
            os.close(file)

    def _send_content(self, file: int, size: int, path: bytes) -> None:
        self._flush()
        left = size
        while left:
            count = os.readv(file, [self._block[: min(left, BLOCK)]])
            if count == 0:
                raise SendFailed(f"{shown(path)} changed while it was copied")
            data = self._block[:count]
            self._encoder.sent(data)
            self._write(data)
            left -= count
            self._total += count
            self._report(self._total)

    # --- the stream ----------------------------------------------------------------------------------------------

    def _collect(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= BATCH:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_size = 0
        self._write(data)
        self._report(self._total)

    def _write(self, data: bytes | memoryview) -> None:
        """:raise SendFailed: the receiver says something before it has all, and so is not content."""
        if self._poll.poll(0):
            self._raise_answer()
        write_all(self._stream, data)

    # --- the answer ----------------------------------------------------------------------------------------------

    def _read_answer(self) -> Answer:
        while not self._answer.is_full:
            untrusted_data = os.read(self._answers, qfile.MAX_ANSWER)
            if not untrusted_data:
                break
            self._answer.receive(untrusted_data)
        try:
            return self._answer.finish()
        except RemoteProtocolError as error:
            raise SendFailed("the other qube did not say that it has the files") from error

    def _raise_answer(self) -> None:
        """:raise SendFailed: always."""
        raise SendFailed(describe(self._read_answer()))


def identity(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def describe(answer: Answer) -> str:
    """What a failed transfer's answer means. Of its name only printable letters are shown (MC-05, MC-10)."""
    name = shown(answer.name[-_SHOWN_NAME:])
    if answer.code == errno.EEXIST:
        return f'the other qube has "{name}" already; nothing is replaced'
    if answer.code == errno.EILSEQ:
        return f'the other qube refuses a name; it may look like "{name}"'
    if answer.code == errno.ENOLINK:
        return f'a symbolic link may lead outside of what is copied: "{name}"'
    if answer.code == errno.EDQUOT:
        return f'more than the other qube takes in one transfer, at "{name}"'
    if answer.code == 0:
        return "what arrived is not what was sent (checksum)"
    if answer.code == qfile.CUT_OFF:
        return f'the transfer was cut off, at "{name}"'
    reason = os.strerror(answer.code) if answer.code <= _MAX_ERRNO else f"error {answer.code}"
    return f'the other qube says: {reason}, at "{name}"'


_SHOWN_NAME = 200
"""Bytes of a name that are shown: its end, which tells most."""
_MAX_ERRNO = 4095
"""<linux/err.h>"""
