"""What a program in a qube wants to tell the user (``insula.Notify``): a few texts, one call each.

The payload is ``NUMBER URGENCY``, a NUL, and three texts in UTF-8 with NULs between them: which program, one line, more
lines. No pictures, no buttons, no sound, and no markup: what looks like markup is text. A later one of the same number
replaces an earlier one of the same qube; one without texts takes it away.
"""

from __future__ import annotations

from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

URGENCIES = ("low", "normal", "critical")
"""By their numbers in the Desktop Notifications Specification."""
MAX_NUMBER = 0xFFFFFFFF
MAX_PROGRAM = 64
MAX_SUMMARY = 256
MAX_BODY = 2048
"""Bytes of the texts: a line of a screen, and more lines than a corner of it has."""
MAX_SIZE = 64 + MAX_PROGRAM + MAX_SUMMARY + MAX_BODY
"""Bytes of a payload."""
_LIMITS = (MAX_PROGRAM, MAX_SUMMARY, MAX_BODY)


class Notification(Value):
    """The texts are the guest's: bytes of UTF-8 without NUL, not fit to be shown."""

    __slots__ = ("number", "untrusted_body", "untrusted_program", "untrusted_summary", "urgency")
    number: int
    urgency: str
    untrusted_program: bytes
    untrusted_summary: bytes
    untrusted_body: bytes

    def __init__(
        self, number: int, urgency: str, untrusted_program: bytes, untrusted_summary: bytes, untrusted_body: bytes
    ) -> None:
        self._fill(
            number=number,
            urgency=urgency,
            untrusted_program=untrusted_program,
            untrusted_summary=untrusted_summary,
            untrusted_body=untrusted_body,
        )

    @property
    def is_withdrawn(self) -> bool:
        return not (self.untrusted_summary or self.untrusted_body)


def cut(text: str, size: int) -> bytes:
    """As much of it as so many bytes hold, whole characters; a NUL is left out."""
    return text.replace("\0", "").encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()


def notification(number: int, urgency: str, program: str, summary: str, body: str) -> Notification:
    """Of any texts: what is too long is cut."""
    return Notification(number, urgency, cut(program, MAX_PROGRAM), cut(summary, MAX_SUMMARY), cut(body, MAX_BODY))


def encode(message: Notification) -> bytes:
    """:raise LocalProtocolError: :func:`decode` would not take it."""
    texts = (message.untrusted_program, message.untrusted_summary, message.untrusted_body)
    data = b"\0".join([f"{message.number} {message.urgency}".encode(), *texts])
    try:
        decode(data)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    return data


def decode(untrusted_data: bytes) -> Notification:
    """:raise RemoteProtocolError: and nothing else."""
    if len(untrusted_data) > MAX_SIZE:
        raise RemoteProtocolError(f"a notification has at most {MAX_SIZE} bytes")
    untrusted_head, *untrusted_texts = untrusted_data.split(b"\0")
    if len(untrusted_texts) != len(_LIMITS):
        raise RemoteProtocolError(f"{len(untrusted_texts)} texts where {len(_LIMITS)} are")
    untrusted_number, _, untrusted_urgency = untrusted_head.partition(b" ")
    if not (untrusted_number.isdigit() and len(untrusted_number) <= len(str(MAX_NUMBER))):
        raise RemoteProtocolError("not the number of a notification")
    number = int(untrusted_number)
    if number > MAX_NUMBER or str(number).encode() != untrusted_number:
        raise RemoteProtocolError("not the number of a notification")
    urgency = next((name for name in URGENCIES if name.encode() == untrusted_urgency), None)
    if urgency is None:
        raise RemoteProtocolError(f"the urgency is one of {', '.join(URGENCIES)}")
    for untrusted_text, size in zip(untrusted_texts, _LIMITS):  # noqa: B905 - Python 3.9; they are as many
        if len(untrusted_text) > size:
            raise RemoteProtocolError(f"a text of {len(untrusted_text)} bytes where {size} are the most")
        try:
            untrusted_text.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a text that is not UTF-8") from error
    return Notification(number, urgency, *untrusted_texts)
