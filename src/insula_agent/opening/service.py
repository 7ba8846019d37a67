"""``qubes.OpenInVM`` and ``qubes.OpenURL``: open what another qube sends, wait, and give back what was changed.

A file gets a folder of its own in ``/tmp``, for the user alone, and a name of few letters. When the application has
ended and the file is not as before, the whole of it goes back; a file that was only to be looked at never does.
"""

from __future__ import annotations

import os
import stat
import sys

from insula_agent import sockets
from insula_agent.client_call import write_all
from insula_agent.opening import handlers, running
from insula_agent.opening.handlers import NoHandler
from insula_proto import limits, open_in_vm
from insula_proto.errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = ("http://", "https://", "ftp://")
MAX_URL = 8192
"""Bytes of an address; browsers and servers take about as many."""
BLOCK = 1 << 20
_REMOTE_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


class Refused(Exception):
    """What came cannot be opened."""


def read_exactly(fd: int, size: int) -> bytes:
    """That many bytes, or what there is before the end."""
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


def make_folder(remote: str, place: str = "/tmp") -> str:  # noqa: S108 - published; a new folder, for us alone
    """A new folder, named after the qube a file comes from. :raise Refused: that is no name. :raise OSError:"""
    if not remote or remote.startswith(".") or not _REMOTE_LETTERS.issuperset(remote):
        raise Refused(f"no name of a qube: {remote!a}")
    path = f"{place}/{remote}-{os.urandom(6).hex()}"
    os.mkdir(path, 0o700)
    return path


def receive_file(source: int, path: str, *, is_view_only: bool) -> None:
    """Write what comes into a new file. :raise OSError:"""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        block = memoryview(bytearray(BLOCK))
        while count := os.readv(source, [block]):
            write_all(fd, block[:count])
        if is_view_only:
            os.fchmod(fd, 0o400)
    finally:
        os.close(fd)


def version(path: str) -> tuple[int, ...]:
    """What differs when a file was written to or replaced; empty: it is gone, or no file any more."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else ()


def send_file(path: str, sink: int) -> None:
    """:raise OSError:"""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        block = memoryview(bytearray(BLOCK))
        while count := os.readv(fd, [block]):
            write_all(sink, block[:count])
    finally:
        os.close(fd)


def clear(folder: str) -> None:
    """Remove a folder with what an application has left in it. What stays is told: it is no failure of the edit."""
    try:
        for item in os.listdir(folder):
            # Nothing but files is expected here: copies and locks of editors.
            if not os.path.isdir(f"{folder}/{item}"):
                sockets.remove(f"{folder}/{item}")
        os.rmdir(folder)
    except FileNotFoundError:
        # A program that had run before, and was only told what to open, still clears up after itself.
        return
    except OSError as error:
        sys.stderr.write(f"{folder} stays: {error.strerror}\n")


def open_file(environment: Mapping[str, str]) -> int:
    """:raise Refused, NoHandler, RemoteProtocolError, OSError:"""
    name = open_in_vm.decode(read_exactly(0, limits.OPEN_NAME_SIZE))
    folder = make_folder(environment.get("QREXEC_REMOTE_DOMAIN", ""))
    path = f"{folder}/{name.name}"
    try:
        receive_file(0, path, is_view_only=name.is_view_only)
        before = version(path)
        code = running.run(handlers.find(handlers.kinds_of(path, environment), path, environment))
        after = version(path)
        if after and after != before and not name.is_view_only:
            send_file(path, 1)
            return 0
        return 1 if code else 0
    finally:
        clear(folder)


def parse_url(untrusted_line: bytes) -> str:
    """:raise Refused: not one address of a kind that is opened."""
    text = untrusted_line.partition(b"\n")[0].decode("ascii", "replace")
    if not text.startswith(SCHEMES) or not text.isascii() or not text.isprintable() or " " in text:
        raise Refused("not an address that starts with http://, https:// or ftp://")
    return text


def open_url(environment: Mapping[str, str]) -> int:
    """:raise Refused, NoHandler:"""
    untrusted_line = b""
    while b"\n" not in untrusted_line and (part := os.read(0, MAX_URL + 1)):
        untrusted_line += part
        if len(untrusted_line) > MAX_URL:
            raise Refused("an address that is too long")
    url = parse_url(untrusted_line)
    kind = "x-scheme-handler/" + url.partition(":")[0]
    return 1 if running.run(handlers.find([kind, "text/html"], url, environment)) else 0


def main(service: str) -> int:
    try:
        return open_url(os.environ) if service == "qubes.OpenURL" else open_file(os.environ)
    except (Refused, NoHandler, RemoteProtocolError, OSError) as error:
        sys.stderr.write(f"{service}: {error}\n")
        return 1
