"""``qvm-open-in-vm`` and ``qvm-open-in-dvm``: open a file or an address in another qube, take back what was changed.

What comes back is written beside the file and takes its place when the call has ended well and something came; never if
the file was only to be looked at. A file that was changed here meanwhile is not overwritten: the other version is kept
beside it.
"""

from __future__ import annotations

import os
import stat
import sys

from insula_agent.client_call import EXIT_INTERRUPTED, EXIT_REFUSED, ClientCall, write_all
from insula_proto import open_in_vm
from insula_proto.file_names import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DISPOSABLE = "@dispvm"
BLOCK = 1 << 20
MAX_GROWTH = 1 << 30
"""Bytes by which a file may be larger when it comes back: the other qube could fill this one's disk."""
_SCHEME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+")

_USAGE = """
Opens a file or an address (http://, https://, ftp://) in %s and waits until it is closed there.
A file that is changed there is changed here.

  --view-only   the file is only looked at: nothing comes back
  --help        show this
"""


class Failed(Exception):
    """It was not opened, or what was changed could not be taken over."""


def is_address(text: str) -> bool:
    """Whether it looks like SCHEME://…"""
    scheme, separator, _ = text.partition("://")
    return bool(separator and scheme[:1].isalpha() and _SCHEME_LETTERS.issuperset(scheme))


def main(name: str, arguments: Sequence[str]) -> int:
    is_disposable = name == "qvm-open-in-dvm"
    rest = list(arguments)
    is_view_only = False
    is_understood = True
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        is_understood = is_understood and option == "--view-only"
        is_view_only = is_view_only or option == "--view-only"
    target = DISPOSABLE if is_disposable else (rest.pop(0) if rest else "")
    if not is_understood or len(rest) != 1 or not target:
        sys.stderr.write(f"usage: {name} [--view-only] {'' if is_disposable else 'QUBE '}FILE|ADDRESS\n")
        sys.stderr.write(_USAGE % ("a new disposable" if is_disposable else "another qube"))
        return 0 if "--help" in arguments else 2
    try:
        if is_address(rest[0]) and not os.path.exists(rest[0]):
            return open_address(target, rest[0])
        return open_file(target, os.fsencode(rest[0]), is_view_only=is_view_only)
    except (Failed, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def open_address(target: str, address: str) -> int:
    """:raise Failed, OSError:"""
    if not address.isascii() or not address.isprintable():
        raise Failed("an address has printable letters of ASCII only")
    call = ClientCall(target, "qubes.OpenURL", ["--filter-escape-chars-stderr"])
    _send(call, [address.encode() + b"\n"])
    while os.read(call.stdout, BLOCK):
        # An address has no other version that could come back.
        continue
    return call.wait()


def _send(call: ClientCall, pieces: Sequence[bytes | memoryview]) -> bool:
    """Send; False: the other side takes no more."""
    try:
        for piece in pieces:
            write_all(call.stdin, piece)
    except BrokenPipeError:
        return False
    return True


def open_file(target: str, path: bytes, *, is_view_only: bool) -> int:
    """The exit code of the call. :raise Failed, OSError:"""
    # Through links: the file itself is to change, not a link to it be replaced by a file.
    path = os.path.realpath(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise Failed(f"{shown(path)} is not a file")
        call = ClientCall(target, "qubes.OpenInVM", ["--filter-escape-chars-stderr"])
        if _send(call, [open_in_vm.encode(os.path.basename(path), is_view_only=is_view_only)]):
            block = memoryview(bytearray(BLOCK))
            while (count := os.readv(fd, [block])) and _send(call, [block[:count]]):
                continue
        call.close_stdin()
    finally:
        os.close(fd)
    edit = Edit(path, before, is_view_only=is_view_only)
    try:
        while untrusted_data := os.read(call.stdout, BLOCK):
            edit.take(untrusted_data)
    finally:
        code = call.wait()
        edit.close(is_whole=code == 0)
    if code == EXIT_REFUSED:
        raise Failed("the call was refused")
    return code


class Edit:
    """The version that comes back, beside the file, until it takes its place."""

    def __init__(self, path: bytes, before: os.stat_result, *, is_view_only: bool) -> None:
        self._path = path
        self._before = before
        self._is_view_only = is_view_only
        self._name = b""
        self._fd = -1
        self._size = 0

    def take(self, untrusted_data: bytes) -> None:
        """:raise Failed: more than it may be. :raise OSError:"""
        if self._is_view_only:
            return
        self._size += len(untrusted_data)
        if self._size > self._before.st_size + MAX_GROWTH:
            raise Failed("what comes back is too large; nothing was changed")
        if self._fd < 0:
            self._begin()
        write_all(self._fd, untrusted_data)

    def _begin(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        suffix = b".edited-" + os.urandom(4).hex().encode()
        self._name = self._path + suffix
        try:
            self._fd = os.open(self._name, flags, 0o600)
        except PermissionError:
            # The folder is not ours to write to: what was worked on is not lost all the same.
            self._name = b"/tmp/" + os.path.basename(self._path) + suffix
            self._fd = os.open(self._name, flags, 0o600)

    def close(self, *, is_whole: bool) -> None:
        """Take the file's place, if something came and all of it. :raise Failed: it is kept beside. :raise OSError:"""
        if self._fd < 0:
            return
        try:
            if not is_whole or self._size > self._before.st_size + MAX_GROWTH:
                os.unlink(self._name)
                raise Failed("what came back is not whole; nothing was changed")
            os.fchmod(self._fd, stat.S_IMODE(self._before.st_mode) & 0o777)
            os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1
        if os.path.dirname(self._name) != os.path.dirname(self._path):
            raise Failed(f"its folder cannot be written to; the changed version is {shown(self._name)}")
        if not self._is_unchanged():
            raise Failed(f"it was changed here too; the version of the other qube is {shown(self._name)}")
        os.rename(self._name, self._path)

    def _is_unchanged(self) -> bool:
        try:
            now = os.lstat(self._path)
        except FileNotFoundError:
            return False
        fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        return all([getattr(now, field) == getattr(self._before, field) for field in fields])  # noqa: C419
