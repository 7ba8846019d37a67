"""The part of a user's X authority file that one display needs: its cookie, and nobody else's.

The format is of libXau (``Xauth.h``): family, then address, number, name and data, each behind its length; all of
these are unsigned 16 bit, big-endian.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_SIZE = 1 << 20
"""Bytes of a file that is looked at; they have some hundred."""
MAX_KEPT = 1024
"""Bytes that are passed on; one cookie with its address takes less than a hundred."""
_FAMILY_LOCAL = 256
_FAMILY_WILD = 0xFFFF


def _entries(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Family, number and the whole entry of each. :raise ValueError: cut short."""
    position = 0
    while position < len(data):
        start = position
        family = int.from_bytes(data[position : position + 2], "big")
        position += 2
        fields = []
        for _ in range(4):
            length = int.from_bytes(data[position : position + 2], "big")
            position += 2 + length
            if position > len(data):
                raise ValueError("the X authority file ends in the middle of an entry")
            fields.append(data[position - length : position])
        yield family, fields[1], data[start:position]


def of_display(data: bytes, number: str) -> bytes:
    """Return the entries by which programs of this machine reach display ``:number``. :raise ValueError: damaged."""
    if len(data) > MAX_SIZE:
        raise ValueError(f"an X authority file of {len(data)} bytes")
    families = (_FAMILY_LOCAL, _FAMILY_WILD)
    kept = b""
    for family, theirs, entry in _entries(data):
        if family in families and theirs in (b"", number.encode()) and len(kept) + len(entry) <= MAX_KEPT:
            kept += entry
    return kept
