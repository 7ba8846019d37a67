"""The name that goes before a file to ``qubes.OpenInVM`` (published format; reference: agent-services, §4).

Exactly 256 bytes: the file's own name, filled up with NUL, with ``view-only-`` before it when no edits are wanted. Of a
name that is too long the end is kept: it has what tells the kind of file.
"""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

VIEW_ONLY = b"view-only-"
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+@-")


class FileName(Value):
    """A name that is safe as a file's, of few letters, and whether the file is only to be looked at."""

    __slots__ = ("is_view_only", "name")
    name: str
    is_view_only: bool

    def __init__(self, name: str, *, is_view_only: bool) -> None:
        self._fill(name=name, is_view_only=is_view_only)


def encode(name: bytes, *, is_view_only: bool) -> bytes:
    """:raise LocalProtocolError: not a file's name."""
    if not name or b"/" in name or b"\0" in name:
        raise LocalProtocolError(f"no name: {name!r}")
    prefix = VIEW_ONLY if is_view_only else b""
    room = limits.OPEN_NAME_SIZE - 1 - len(prefix)
    return (prefix + name[-room:]).ljust(limits.OPEN_NAME_SIZE, b"\0")


def decode(untrusted_field: bytes) -> FileName:
    """:raise RemoteProtocolError: not 256 bytes, no NUL in it, no name, a path."""
    if len(untrusted_field) != limits.OPEN_NAME_SIZE or b"\0" not in untrusted_field:
        raise RemoteProtocolError(f"a name field of {len(untrusted_field)} bytes")
    untrusted_name = untrusted_field.partition(b"\0")[0]
    is_view_only = untrusted_name.startswith(VIEW_ONLY)
    if is_view_only:
        untrusted_name = untrusted_name[len(VIEW_ONLY) :]
    if b"/" in untrusted_name:
        raise RemoteProtocolError("a path in place of a name")
    name = "".join([chr(byte) if byte in _LETTERS else "_" for byte in untrusted_name])
    # An option for the program that opens it, or a folder, is no name for a file either.
    if name in ("", ".", "..") or name.startswith("-"):
        name = "_" + name
    return FileName(name, is_view_only=is_view_only)
