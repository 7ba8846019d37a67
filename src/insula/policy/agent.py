"""What is said to the program that asks the user (the *policy agent*): questions, notices, answers (qrexec §7).

One connection, one request: a header up to its NUL, JSON up to the end of the stream. A question is answered with
``allow:TARGET`` or ``deny``, a notice with nothing; so are what is ours, a remark (``insula.Tell``) and what a program
in a qube tells the user (``insula.Show``). Pure; both ends use this module, so that nobody is asked what could not have
been sent, and no answer is taken that was not offered.

All that is in a request was checked before by whoever sends it. It is checked here once more because a person decides
by what is shown of it: every text is of an alphabet that can neither move nor hide anything on a screen (MC-39).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import msgspec

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_REQUEST = 1 << 20
"""Bytes of header and JSON: the longest service, and :data:`MAX_TARGETS` targets with an icon each."""
MAX_TARGETS = 4096
MAX_ANSWER = 128
"""Bytes."""
MAX_NAME = 63
"""Characters of a source or a target: the wire's fields have 64 with their NUL (qrexec §2)."""
MAX_ICON = 128
MAX_REMARK = 300
"""Characters."""
MAX_TITLE = 400
MAX_TEXT = 2400
MAX_LINES = 8
"""Of what a program tells: characters of its first line and of the rest, and lines of that."""
MAX_NUMBER = 0xFFFFFFFF

_MAX_HEADER = 64
_HEADER = re.compile(rb"(policy\.Ask|policy\.Notify|insula\.Tell|insula\.Show)\+? dom0(?: name dom0| keyword adminvm)?")
"""As the local socket gets it, and as a service socket in another qube would."""
_SERVICE = rf"^[A-Za-z0-9_.-]{{1,{limits.QREXEC_MAX_SERVICE}}}\Z"
_ARGUMENT = rf"^\+[A-Za-z0-9_.+-]{{0,{limits.QREXEC_MAX_SERVICE}}}\Z"
_SOURCE = rf"^[A-Za-z0-9_.:-]{{1,{MAX_NAME}}}\Z"
_TARGET = rf"^[A-Za-z0-9_.@:-]{{1,{MAX_NAME}}}\Z"
_MAYBE_TARGET = rf"^[A-Za-z0-9_.@:-]{{0,{MAX_NAME}}}\Z"
_ICON = rf"^[A-Za-z0-9_.-]{{0,{MAX_ICON}}}\Z"

_MAYBE_SOURCE = rf"^[A-Za-z0-9_.:-]{{0,{MAX_NAME}}}\Z"
_REMARK = rf"^[ -~]{{1,{MAX_REMARK}}}\Z"

_Service = Annotated[str, msgspec.Meta(pattern=_SERVICE)]
_Argument = Annotated[str, msgspec.Meta(pattern=_ARGUMENT)]
_Source = Annotated[str, msgspec.Meta(pattern=_SOURCE)]
_Target = Annotated[str, msgspec.Meta(pattern=_TARGET)]
_MaybeTarget = Annotated[str, msgspec.Meta(pattern=_MAYBE_TARGET)]
_Icon = Annotated[str, msgspec.Meta(pattern=_ICON)]


class Resolution(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    FAIL = "fail"
    """It was allowed, and did not come about."""


@dataclass(frozen=True)
class Question:
    """May ``source`` call ``service`` of one of ``targets``, and of which?"""

    source: str
    service: str
    argument: str
    """With its leading ``+``."""
    targets: tuple[str, ...]
    """At least one: names, ``dom0``, ``@dispvm:BASE``."""
    default_target: str | None = None
    """Offered first; one of ``targets``."""
    icons: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Icon names, of the source and of targets: ``appvm-red``. What is not in here has none."""


@dataclass(frozen=True)
class Notice:
    """What became of a call that nobody was asked about."""

    resolution: Resolution
    service: str
    argument: str
    source: str
    target: str
    """As the caller named it; may be empty."""


@dataclass(frozen=True)
class Remark:
    """Something the user should know, in the host's words."""

    source: str
    """The qube it is about; empty: none, it is about the clipboard."""
    text: str


@dataclass(frozen=True)
class Notification:
    """What a program in a qube tells the user. Its texts are the qube's own, of printable characters."""

    source: str
    """The qube, as the host knows it."""
    icon: str
    """Its icon's name: ``appvm-red``."""
    number: int
    """A later one of the same number of the same qube replaces this one."""
    is_urgent: bool
    title: str
    """One line; without it and without text: nothing is to be shown any more."""
    text: str
    """At most :data:`MAX_LINES` lines."""

    @property
    def is_withdrawn(self) -> bool:
        return not (self.title or self.text)


Request = Question | Notice | Remark | Notification


class _WireQuestion(msgspec.Struct, forbid_unknown_fields=True):
    source: _Source
    service: _Service
    argument: _Argument
    targets: Annotated[list[_Target], msgspec.Meta(min_length=1, max_length=MAX_TARGETS)]
    default_target: _MaybeTarget
    icons: Annotated[dict[_Target, _Icon], msgspec.Meta(max_length=2 * MAX_TARGETS)]


class _WireNotice(msgspec.Struct, forbid_unknown_fields=True):
    resolution: Resolution
    service: _Service
    argument: _Argument
    source: _Source
    target: _MaybeTarget


class _WireRemark(msgspec.Struct, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(pattern=_MAYBE_SOURCE)]
    text: Annotated[str, msgspec.Meta(pattern=_REMARK)]


class _WireNotification(msgspec.Struct, forbid_unknown_fields=True):
    source: _Source
    icon: _Icon
    number: Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
    is_urgent: bool
    title: Annotated[str, msgspec.Meta(max_length=MAX_TITLE)]
    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


def encode(request: Request) -> bytes:
    """A whole request; the sender then ends its half of the connection.

    :raise LocalProtocolError: it is not one that :func:`decode` takes.
    """
    name: str
    body: dict[str, object]
    match request:
        case Question():
            name = "policy.Ask"
            body = {
                "source": request.source,
                "service": request.service,
                "argument": request.argument,
                "targets": list(request.targets),
                "default_target": request.default_target or "",
                "icons": dict(request.icons),
            }
        case Notice():
            name = "policy.Notify"
            body = {
                "resolution": request.resolution.value,
                "service": request.service,
                "argument": request.argument,
                "source": request.source,
                "target": request.target,
            }
        case Remark():
            name = "insula.Tell"
            body = {"source": request.source, "text": request.text}
        case Notification():
            name = "insula.Show"
            body = {
                "source": request.source,
                "icon": request.icon,
                "number": request.number,
                "is_urgent": request.is_urgent,
                "title": request.title,
                "text": request.text,
            }
    data = f"{name} dom0 name dom0\0".encode() + msgspec.json.encode(body)
    try:
        decode(data)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"no request to the policy agent: {error}") from error
    return data


def decode(untrusted_data: bytes) -> Request:
    """:raise RemoteProtocolError: no request; nobody may be asked by it."""
    if len(untrusted_data) > MAX_REQUEST:
        raise RemoteProtocolError(f"a request has at most {MAX_REQUEST} bytes")
    untrusted_header, end, untrusted_body = untrusted_data.partition(b"\0")
    header = _HEADER.fullmatch(untrusted_header) if end and len(untrusted_header) <= _MAX_HEADER else None
    if header is None:
        raise RemoteProtocolError(f"not a header of a request: {untrusted_header[:_MAX_HEADER]!a}")
    try:
        if header[1] == b"policy.Ask":
            return _question(msgspec.json.decode(untrusted_body, type=_WireQuestion))
        if header[1] == b"insula.Tell":
            remark = msgspec.json.decode(untrusted_body, type=_WireRemark)
            return Remark(remark.source, remark.text)
        if header[1] == b"insula.Show":
            return _notification(msgspec.json.decode(untrusted_body, type=_WireNotification))
        wire = msgspec.json.decode(untrusted_body, type=_WireNotice)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a request to the policy agent: {error}") from error
    return Notice(wire.resolution, wire.service, wire.argument, wire.source, wire.target)


def encode_answer(target: str | None) -> bytes:
    """The user's choice; None: no."""
    return b"deny" if target is None else f"allow:{target}".encode("ascii")


def decode_answer(untrusted_data: bytes, targets: Iterable[str]) -> str | None:
    """The target chosen among ``targets``; None: denied.

    :raise RemoteProtocolError: anything else, no answer at all included.
    """
    if untrusted_data == b"deny":
        return None
    chosen = [target for target in targets if untrusted_data == b"allow:" + target.encode()]
    if not chosen:
        raise RemoteProtocolError(f"not an answer to the question: {untrusted_data[:MAX_ANSWER]!a}")
    return chosen[0]


def _question(wire: _WireQuestion) -> Question:
    if len(set(wire.targets)) != len(wire.targets):
        raise RemoteProtocolError("a target is offered twice")
    if wire.default_target and wire.default_target not in wire.targets:
        raise RemoteProtocolError(f"{wire.default_target!r} is to be offered first, and not among the targets")
    icons = {name: icon for name, icon in wire.icons.items() if icon}
    return Question(wire.source, wire.service, wire.argument, tuple(wire.targets), wire.default_target or None, icons)


def _notification(wire: _WireNotification) -> Notification:
    lines = wire.text.split("\n") if wire.text else []
    if len(lines) > MAX_LINES or not all(line.isprintable() for line in (wire.title, *lines)):
        raise RemoteProtocolError("a text that cannot be shown as it is")
    return Notification(wire.source, wire.icon, wire.number, wire.is_urgent, wire.title, wire.text)
