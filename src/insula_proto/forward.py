"""Ports of a net qube that lead to a client of it, one word each: ``tcp:8080:80``. Pure; shared by host and net qube.

``PROTOCOL:PORT:TARGET``: what arrives at the net qube's port from outside goes to that port of the client.
"""

from __future__ import annotations

from insula_proto.firewall import MAX_PORT, TCP, UDP
from insula_proto.value import Value

MAX_FORWARDS = 64
"""Of one client."""
MAX_TEXT = MAX_FORWARDS * len("tcp:65535:65535 ")
"""Characters of all of them; a key of the net qube has more (agent-services §11)."""


class ForwardError(ValueError):
    """A text is no list of forwarded ports; the message says why."""


class Forward(Value):
    __slots__ = ("port", "protocol", "target")
    protocol: str
    port: int
    """Of the net qube."""
    target: int
    """Of the client."""

    def __init__(self, protocol: str, port: int, target: int) -> None:
        """:raise ForwardError:"""
        if protocol not in (TCP, UDP):
            raise ForwardError(f"{protocol!a} is not tcp or udp")
        for number in (port, target):
            if not 1 <= number <= MAX_PORT:
                raise ForwardError(f"{number} is no port")
        self._fill(port=port, protocol=protocol, target=target)

    def __str__(self) -> str:
        return f"{self.protocol}:{self.port}:{self.target}"


def parse_forward(untrusted_word: str) -> Forward:
    """:raise ForwardError:"""
    parts = untrusted_word.split(":")
    if len(parts) != 3 or not all(_is_number(part) for part in parts[1:]):
        raise ForwardError(f"{untrusted_word[:40]!a} is not of the form tcp:8080:80")
    return Forward(parts[0], int(parts[1]), int(parts[2]))


def _is_number(text: str) -> bool:
    return 1 <= len(text) <= 5 and text.isascii() and text.isdigit() and not text.startswith("0")


def parse_forwards(untrusted_text: str) -> list[Forward]:
    """:raise ForwardError: one of them is none, or a port leads to two places."""
    words = untrusted_text.split(" ") if untrusted_text else []
    if len(untrusted_text) > MAX_TEXT or len(words) > MAX_FORWARDS:
        raise ForwardError(f"more than {MAX_FORWARDS} forwarded ports")
    forwards = [parse_forward(word) for word in words]
    if len({(forward.protocol, forward.port) for forward in forwards}) < len(forwards):
        raise ForwardError("a port leads to two places")
    return forwards


def format_forwards(forwards: list[Forward]) -> str:
    return " ".join([str(forward) for forward in forwards])
