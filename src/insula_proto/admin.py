"""Admin API on the wire: request line, response, exception and event records (admin-api §1, §6).

One connection carries one call. The client sends ::

    METHOD "+" ARG " " SOURCE " name " DEST NUL PAYLOAD

and half-closes; the server answers with one of ::

    "0" NUL RESULT                                            success, up to the end of the stream
    "2" NUL TYPE NUL TRACEBACK NUL FORMAT NUL (ARG NUL)*      an exception
    ("1" NUL SUBJECT NUL EVENT NUL (KEY NUL VALUE NUL)* NUL)* a stream of events
    nothing                                                   refused, or an error the client is not told about

Everything here is sans-I/O: decoders are fed bytes in any split and raise
:class:`~insula_proto.errors.RemoteProtocolError` and nothing else on bad input. Encoders raise
:class:`~insula_proto.errors.LocalProtocolError` where a value cannot be put on the wire, except
:func:`encode_failure`, which makes every text presentable: reporting an error must not fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_REQUEST = 65536
"""Bytes of a whole request, header included; longer ones are dropped (admin-api §1)."""
MAX_RESPONSE = 16 * 1024 * 1024
"""Bytes of a success or exception a client accepts. Ours: ten times the list of 10 000 qubes."""
MAX_EVENT_RECORD = 256 * 1024
"""Bytes of one event record. Ours: a value is at most a property or a feature, which fit in a request."""
MAX_EVENT_KEYS = 64
"""Pairs in one event record. Ours: published events have at most a dozen (vm-stats)."""

ADMIN = "dom0"
"""Name of the control side; also what ``keyword adminvm`` stands for."""
UUID_PREFIX = "uuid:"
"""Source and destination may be given as ``uuid:`` and a lower-case UUID."""

_METHOD = re.compile(r"[A-Za-z0-9_.-]+")
_ARGUMENT = re.compile(r"[!-~]*")
_REFERENCE = re.compile(r"[!-~]+")
_NUL = b"\0"

_SUCCESS = b"0"
_EVENT = b"1"
_FAILURE = b"2"


@dataclass(frozen=True)
class RequestHead:
    """The request line. All four are printable ASCII without spaces; nothing else is checked yet."""

    method: str
    arg: str
    """May hold further ``+``; empty where none was given."""
    source: str
    """Who the caller claims to be: a qube name or ``uuid:…``. Identity comes from the channel, not from here."""
    dest: str
    """Qube name or ``uuid:…``."""


@dataclass(frozen=True)
class Request:
    head: RequestHead
    payload: bytes = b""


@dataclass(frozen=True)
class Success:
    payload: bytes


@dataclass(frozen=True)
class Failure:
    """An exception record."""

    type: str
    format: str
    args: tuple[str, ...] = ()
    traceback: str = ""

    @property
    def message(self) -> str:
        """``FORMAT % ARGS`` without Python's formatting: a width in a foreign format must not cost memory."""
        remaining = list(self.args)

        def replace(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            return remaining.pop(0) if remaining else match[0]

        return re.sub(r"%[%srdi]", replace, self.format)


@dataclass(frozen=True)
class EventRecord:
    """One record of an event stream."""

    subject: str
    """Qube name; empty for the system itself."""
    name: str
    kwargs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """The stream ended without a byte: refused, or an internal error of the server."""


Response = Union[Success, Failure, EventRecord, Refused]


def encode_request_head(head: RequestHead) -> bytes:
    """Return the request line with its NUL; the payload follows it as it is.

    :raise LocalProtocolError: a field is empty, not ASCII or has a space or control character in it.
    """
    if not _METHOD.fullmatch(head.method):
        raise LocalProtocolError(f"not a method name: {head.method!a}")
    if not _ARGUMENT.fullmatch(head.arg):
        raise LocalProtocolError(f"an argument must be printable ASCII without spaces: {head.arg!a}")
    for reference in (head.source, head.dest):
        if not _REFERENCE.fullmatch(reference):
            raise LocalProtocolError(f"a qube name must be printable ASCII without spaces: {reference!a}")
    return f"{head.method}+{head.arg} {head.source} name {head.dest}".encode("ascii") + _NUL


def encode_request(request: Request) -> bytes:
    """:raise LocalProtocolError: as :func:`encode_request_head`, or longer than :data:`MAX_REQUEST`."""
    encoded = encode_request_head(request.head) + request.payload
    if len(encoded) > MAX_REQUEST:
        raise LocalProtocolError(f"the request has {len(encoded)} bytes, the limit is {MAX_REQUEST}")
    return encoded


def parse_request_head(untrusted_line: bytes) -> RequestHead:
    """Parse the request line, without its NUL.

    :raise RemoteProtocolError: not ASCII, not four fields, or a kind of destination nobody sends.
    """
    try:
        untrusted_text = untrusted_line.decode("ascii")
    except UnicodeDecodeError:
        raise RemoteProtocolError("the request line is not ASCII") from None
    untrusted_fields = untrusted_text.split(" ")
    if len(untrusted_fields) != 4:
        raise RemoteProtocolError(f"the request line has {len(untrusted_fields)} fields instead of 4")
    untrusted_call, untrusted_source, untrusted_kind, untrusted_dest = untrusted_fields
    # A missing "+" is an empty argument; only the first one separates.
    untrusted_method, _, untrusted_arg = untrusted_call.partition("+")
    if not _METHOD.fullmatch(untrusted_method):
        raise RemoteProtocolError("the request line has no method name")
    if not _ARGUMENT.fullmatch(untrusted_arg):
        raise RemoteProtocolError("the argument has a control character in it")
    for untrusted_reference in (untrusted_source, untrusted_dest):
        if not _REFERENCE.fullmatch(untrusted_reference):
            raise RemoteProtocolError("source or destination is empty or has a control character in it")
    if untrusted_kind == "keyword" and untrusted_dest == "adminvm":
        return RequestHead(untrusted_method, untrusted_arg, untrusted_source, ADMIN)
    if untrusted_kind != "name":
        raise RemoteProtocolError("the destination is neither a name nor the keyword adminvm")
    return RequestHead(untrusted_method, untrusted_arg, untrusted_source, untrusted_dest)


class RequestDecoder:
    """Collects one request. Feed it with :meth:`receive`, at the end of the stream call :meth:`finish`.

    Keeps at most :data:`MAX_REQUEST` bytes. After an error the connection must be dropped.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._head_size = 0
        self._streaming = False

    @property
    def head(self) -> RequestHead | None:
        """The request line, as soon as it has arrived."""
        return self._head

    def receive(self, untrusted_data: bytes) -> None:
        """:raise RemoteProtocolError: the request is longer than allowed, or its line is malformed."""
        if self._streaming:
            raise LocalProtocolError("the payload is being streamed, the decoder takes no more of it")
        if len(self._buffer) + self._head_size + len(untrusted_data) > MAX_REQUEST:
            self._buffer.clear()
            raise RemoteProtocolError(f"the request is longer than {MAX_REQUEST} bytes")
        self._buffer += untrusted_data
        if self._head is None:
            end = self._buffer.find(_NUL)
            if end >= 0:
                self._head = parse_request_head(bytes(self._buffer[:end]))
                self._head_size = end + 1
                del self._buffer[: end + 1]

    def stream_payload(self) -> bytes:
        """Hand over the payload instead of collecting it: returns what has arrived of it so far.

        For methods whose payload is a stream; the caller reads the rest itself and sets its own limit.
        """
        if self._head is None:
            raise LocalProtocolError("the request line has not arrived yet")
        self._streaming = True
        untrusted_payload = bytes(self._buffer)
        self._buffer.clear()
        return untrusted_payload

    def finish(self) -> Request:
        """The stream ended. :raise RemoteProtocolError: it ended within the request line."""
        if self._head is None:
            raise RemoteProtocolError("the request ended before its line did")
        return Request(self._head, bytes(self._buffer))


def encode_success(payload: bytes = b"") -> bytes:
    return _SUCCESS + _NUL + payload


def encode_failure(type_name: str, message: str) -> bytes:
    """An exception with the finished message and no traceback.

    Clients compute ``FORMAT % ()``, so every ``%`` is doubled; NUL ends a field, so it is shown as ``\\x00``.
    """
    fields = (type_name, "", message.replace("%", "%%"))
    return _FAILURE + _NUL + b"".join(_printable(text) + _NUL for text in fields)


def encode_event(record: EventRecord) -> bytes:
    """:raise LocalProtocolError: a NUL in a text, an empty name or key, or a record over the limits."""
    if not record.name:
        raise LocalProtocolError("an event needs a name")
    if len(record.kwargs) > MAX_EVENT_KEYS:
        raise LocalProtocolError(f"an event has at most {MAX_EVENT_KEYS} values, this one {len(record.kwargs)}")
    parts = [_EVENT, _event_text(record.subject), _event_text(record.name)]
    for key, value in record.kwargs.items():
        if not key:  # an empty key is what ends the record
            raise LocalProtocolError("an event value needs a key")
        parts += [_event_text(key), _event_text(value)]
    encoded = b"".join(part + _NUL for part in parts) + _NUL
    if len(encoded) > MAX_EVENT_RECORD:
        raise LocalProtocolError(f"the event has {len(encoded)} bytes, the limit is {MAX_EVENT_RECORD}")
    return encoded


class ResponseDecoder:
    """Decodes what a server answers, in any split.

    Events come out of :meth:`receive` as they arrive, everything else out of :meth:`finish` at the end of the stream.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._kind = b""

    def receive(self, untrusted_data: bytes) -> list[EventRecord]:
        """:raise RemoteProtocolError: not a response, or over the limits."""
        self._buffer += untrusted_data
        if not self._kind:
            if len(self._buffer) < 2:
                self._check_marker()
                return []
            self._check_marker()
            self._kind = bytes(self._buffer[:1])
            if self._kind != _EVENT:
                del self._buffer[:2]
        if self._kind == _EVENT:
            return self._events()
        if len(self._buffer) > MAX_RESPONSE:
            raise RemoteProtocolError(f"the response is longer than {MAX_RESPONSE} bytes")
        return []

    def finish(self) -> Response | None:
        """The stream ended: the result; None after a stream of events.

        :raise RemoteProtocolError: it ended within a response or a record.
        """
        if not self._kind:
            if self._buffer:
                raise RemoteProtocolError("the response ended within its first two bytes")
            return Refused()
        if self._kind == _SUCCESS:
            return Success(bytes(self._buffer))
        if self._kind == _FAILURE:
            return self._failure()
        if self._buffer:
            raise RemoteProtocolError("the stream ended within an event")
        return None

    def _check_marker(self) -> None:
        start = bytes(self._buffer[:2])
        if start and (start[:1] not in (_SUCCESS, _EVENT, _FAILURE) or start[1:] not in (b"", _NUL)):
            raise RemoteProtocolError("not an Admin API response")

    def _failure(self) -> Failure:
        untrusted_fields = bytes(self._buffer).split(_NUL)
        if len(untrusted_fields) < 4 or untrusted_fields[-1]:
            raise RemoteProtocolError("the exception record is cut")
        type_name, traceback, text, *args = (_decode(item) for item in untrusted_fields[:-1])
        return Failure(type_name, text, tuple(args), traceback)

    def _events(self) -> list[EventRecord]:
        records = []
        start = 0
        while True:
            taken = _take_event(self._buffer, start)
            if taken is None:
                break
            record, start = taken
            records.append(record)
        del self._buffer[:start]
        if len(self._buffer) > MAX_EVENT_RECORD:
            raise RemoteProtocolError(f"an event is longer than {MAX_EVENT_RECORD} bytes")
        return records


def _take_event(buffer: bytearray, start: int) -> tuple[EventRecord, int] | None:
    """Return the event that begins at ``start`` and where the next one begins; None if it is not complete."""
    fields: list[str] = []
    position = start
    while True:
        end = buffer.find(_NUL, position, start + MAX_EVENT_RECORD)
        if end < 0:
            return None
        untrusted_field = bytes(buffer[position:end])
        position = end + 1
        # Fields: marker, subject, name, then key and value by turns; an empty key ends the record.
        if len(fields) == 0 and untrusted_field != _EVENT:
            raise RemoteProtocolError("an event stream holds events only")
        if len(fields) == 2 and not untrusted_field:
            raise RemoteProtocolError("an event has no name")
        if len(fields) >= 3 and len(fields) % 2 == 1 and not untrusted_field:
            kwargs = {fields[index]: fields[index + 1] for index in range(3, len(fields), 2)}
            return EventRecord(fields[1], fields[2], kwargs), position
        if len(fields) >= 3 + 2 * MAX_EVENT_KEYS:
            raise RemoteProtocolError(f"an event has more than {MAX_EVENT_KEYS} values")
        fields.append(_decode(untrusted_field))


def _decode(untrusted_field: bytes) -> str:
    try:
        return untrusted_field.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a field is not UTF-8") from None


def _printable(text: str) -> bytes:
    # Lone surrogates (from a file name, say) cannot be encoded; show them escaped as well.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace")


def _event_text(text: str) -> bytes:
    if "\0" in text:
        raise LocalProtocolError("a NUL in an event would end the field")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LocalProtocolError("an event text is not valid Unicode") from error
