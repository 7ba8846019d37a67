"""Tar streams for tests, honest and otherwise, made by the standard library."""

from __future__ import annotations

import tarfile

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end mark."""


def member(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", size: int = 0, mode: int = 0o644) -> bytes:
    """One header (with long names before it) and its data, ``size`` letters x."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, size, mode
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * size + bytes(-size % BLOCK)


FOLDER = member("top/", tarfile.DIRTYPE, mode=0o755)

LONG = "/".join(["top", "n" * 200, "n" * 200, "file"])
"""A path that needs a long name."""

STREAM = b"".join((
    FOLDER,
    member("top/a", size=1000),
    member("top/run", size=512, mode=0o4777),
    member("top/empty"),
    member("top/in/", tarfile.DIRTYPE),
    member("top/in/link", tarfile.SYMTYPE, target="../a"),
    member("top/" + "n" * 200 + "/", tarfile.DIRTYPE),
    member("top/" + "n" * 200 + "/" + "n" * 200 + "/", tarfile.DIRTYPE),
    member(LONG, size=3),
    END,
    bytes(6 * BLOCK),
))  # fmt: skip
"""A folder ``top`` as GNU tar writes it."""
