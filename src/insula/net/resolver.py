"""Which name server this host asks: the first one with an IPv4 address (resolv.conf(5))."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_SIZE = 64 * 1024
"""Bytes that are read."""


def first_server(text: str) -> str | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                return str(IPv4Address(words[1]))
            except ValueError:
                continue
    return None


def host_server(path: Path = RESOLV_CONF) -> str | None:
    """None: there is none, or the file cannot be read."""
    try:
        with path.open("rb") as file:
            return first_server(file.read(MAX_SIZE).decode("utf-8", "replace"))
    except OSError:
        return None
