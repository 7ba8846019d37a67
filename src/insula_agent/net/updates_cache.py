"""Copies of repositories' files that the proxy for templates keeps, so that many templates fetch each file once.

Which files are kept is a list, :func:`rule_of`; everything else is fetched each time. A copy answers for one address,
the whole of it, and nothing that a template sends decides what is in it: what is fetched for keeping is asked for in
the proxy's own words (:mod:`insula_agent.net.updates_fetch`). Whether the bytes are good is for the package manager's
signatures to say, as without copies; where a name is the file's hash, other bytes are not kept.

On the disk a copy is one file: a head (:func:`encode_head`), then its bytes. It has its name, the hash of its address,
once all of it is on the disk; before that it is a ``part-``, and one of those that is found at the start is removed.
There is a bound on the whole; those unused for longest go first.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict

from insula_agent.log import log
from insula_proto.value import Value

HASHED, PACKAGE, INDEX = "hashed", "package", "index"
"""Rules: its name is its hash; its name has its version; it changes, so the repository is asked each time."""
PACKAGES = (".deb", ".udeb", ".rpm", ".drpm", ".pkg.tar.zst", ".pkg.tar.xz")
_HASH_IN_NAME = re.compile(
    r"/(?:by-hash/(?:SHA256/([0-9a-f]{64})|SHA512/([0-9a-f]{128}))|repodata/(?:([0-9a-f]{64})|([0-9a-f]{128}))-[^/]+)\Z"
)
"""As apt and dnf name such files."""
_INDEX = re.compile(
    r"(?:Packages|Sources|Contents-[\w.-]+|Translation-[\w.-]+)\.(?:gz|xz|bz2|zst)|[\w.@+-]+\.(?:db|files)"
)
"""Names of large lists of apt and pacman. What says which list is valid (InRelease, repomd.xml) is not kept: it is
small, and an old one would be a lie that is well signed."""

MAX_VALUE = 1024
"""Characters of an address or a header that is kept."""
MAX_HEAD = 8192
"""Bytes; more than four such lines."""
MAX_COPIES = 20_000
SHARE = 2
"""Copies take at most one part in so many of the disk they are on, and one copy one in so many of that."""
_MAGIC = b"insula-copy 1"
_LINES = 5
"""Of a head."""
_NAME = re.compile(r"[0-9a-f]{64}")
_PART = "part-"


def digest_in(path: str) -> str:
    """SHA-256 or SHA-512 (hex) that a file must have, because its address says so; empty: it does not say."""
    found = _HASH_IN_NAME.search(path)
    return "" if found is None else next(filter(None, found.groups()))


def rule_of(path: str) -> str | None:
    """How a file of a repository is kept; None: it is not. :param path: of the address, with its query."""
    if "?" in path:
        return None
    if digest_in(path):
        return HASHED
    if path.endswith(PACKAGES):
        return PACKAGE
    return INDEX if _INDEX.fullmatch(path.rpartition("/")[2]) else None


class Damaged(ValueError):
    """A file in the folder is no copy."""


class Copy(Value):
    """A file of a repository."""

    __slots__ = ("etag", "modified", "size", "url")
    url: str
    size: int
    etag: str
    """As the repository said, with its quotes; empty: nothing."""
    modified: str

    def __init__(self, url: str, size: int, etag: str = "", modified: str = "") -> None:
        """:raise ValueError: one of them cannot be kept."""
        if size < 0 or not all(len(value) <= MAX_VALUE and _is_plain(value) for value in (url, etag, modified)):
            raise ValueError("not a line of plain letters")
        self._fill(etag=etag, modified=modified, size=size, url=url)


def _is_plain(text: str) -> bool:
    return text.isascii() and (text.isprintable() or not text)


def encode_head(copy: Copy) -> bytes:
    lines = (_MAGIC.decode(), copy.url, str(copy.size), copy.etag, copy.modified)
    return "".join([f"{line}\n" for line in lines]).encode()


def decode_head(untrusted_start: bytes) -> tuple[Copy, int]:
    """What a file is a copy of, and where its bytes begin. :raise Damaged:"""
    lines = untrusted_start[:MAX_HEAD].split(b"\n", _LINES)
    if len(lines) <= _LINES or lines[0] != _MAGIC:
        raise Damaged("it has no head")
    try:
        url, size, etag, modified = [line.decode("ascii") for line in lines[1:_LINES]]
        copy = Copy(url, int(size), etag, modified)
    except ValueError as error:
        raise Damaged("its head is none") from error
    head = encode_head(copy)
    if not untrusted_start.startswith(head):
        raise Damaged("its head is of another form")
    return copy, len(head)


class Part:
    """A copy that is being written; ``start``: where its bytes begin. Who had it made closes it."""

    __slots__ = ("copy", "fd", "path", "start", "total")

    def __init__(self, path: str, fd: int, copy: Copy, start: int) -> None:
        self.path = path
        self.fd = fd
        self.copy = copy
        self.start = start
        self.total = start + copy.size


class Store:
    """The folder of copies. Its methods may be called by any thread."""

    def __init__(self, folder: str, limit: int = 0) -> None:
        """``limit``: bytes of all copies; 0: a share of the disk. :raise OSError: no such folder."""
        disk = os.statvfs(folder)
        self._folder = folder
        self._limit = limit or disk.f_blocks * disk.f_frsize // SHARE
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Of the copies, the one unused for longest first."""
        self._used = 0
        self._promised = 0
        """Of parts."""
        self._number = 0
        found: list[tuple[float, str, int]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    found.append((about.st_mtime, entry.name, about.st_size))
                elif entry.name.startswith(_PART):
                    os.unlink(entry.path)
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._used += size
        self._make_room(0)

    def find(self, url: str) -> tuple[Copy, int, int] | None:
        """The copy of an address, an open file with it, and where its bytes begin."""
        name = _name_of(url)
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            fd = os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            # It had to make room meanwhile.
            return None
        try:
            copy, start = _read_head(fd, url)
            os.utime(fd)
        except (Damaged, OSError) as error:
            os.close(fd)
            log(f"updates cache: {name}: {error}")
            self.forget(url)
            return None
        return copy, fd, start

    def forget(self, url: str) -> None:
        with self._lock:
            self._remove(_name_of(url))

    def begin(self, copy: Copy) -> Part | None:
        """A file to write a copy to, with the space it takes; None: there is no room, so it is not kept."""
        head = encode_head(copy)
        total = len(head) + copy.size
        with self._lock:
            if total > self._limit // SHARE or not self._make_room(total):
                return None
            self._promised += total
            self._number += 1
            path = f"{self._folder}/{_PART}{self._number}"
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(fd, 0, total)
            os.pwrite(fd, head, 0)
        except OSError as error:
            log(f"updates cache: {error}")
            if fd >= 0:
                os.close(fd)
                os.unlink(path)
            with self._lock:
                self._promised -= total
            return None
        return Part(path, fd, copy, len(head))

    def keep(self, part: Part) -> None:
        """A part has all its bytes. :raise OSError: it is not kept; it must still be dropped."""
        name = _name_of(part.copy.url)
        os.fsync(part.fd)
        with self._lock:
            os.rename(part.path, f"{self._folder}/{name}")
            self._used += part.total - self._sizes.pop(name, 0)
            self._promised -= part.total
            self._sizes[name] = part.total

    def drop(self, part: Part) -> None:
        """A part is not to become a copy."""
        with self._lock:
            self._promised -= part.total
            _unlink(part.path)

    def _make_room(self, size: int) -> bool:
        while self._sizes and (self._used + self._promised + size > self._limit or len(self._sizes) >= MAX_COPIES):
            self._remove(next(iter(self._sizes)))
        return self._used + self._promised + size <= self._limit

    def _remove(self, name: str) -> None:
        """Whoever reads it goes on reading."""
        self._used -= self._sizes.pop(name, 0)
        _unlink(f"{self._folder}/{name}")


def _read_head(fd: int, url: str) -> tuple[Copy, int]:
    """:raise Damaged, OSError:"""
    copy, start = decode_head(os.pread(fd, MAX_HEAD, 0))
    if copy.url != url or os.fstat(fd).st_size != start + copy.size:
        raise Damaged("it is not of the address or the size")
    return copy, start


def _name_of(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
