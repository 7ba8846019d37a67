"""The log of calls: who asked for what of whom, what was decided and by which line, how long and how much it was.

One JSON object a line, in a file that is renamed when it is full; the same goes to the event bus, a bounded number a
second, for whoever watches. Never what was said in a call (MC-109). An argument is part of what is called; a long one
is cut.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from logging.handlers import RotatingFileHandler
from pathlib import Path

from insula.events.bus import EventBus
from insula.events.types import Event
from insula.rpc.pacing import RateLimit

MAX_FILE_BYTES = 4 << 20
"""Of the file, and of the one before it: some 20 000 calls each."""
MAX_ARGUMENT = 128
EVENTS_BURST = 200
EVENTS_PER_SECOND = 50
"""Published; the file has all. Listeners of the bus have bounded queues, which calls must not fill."""
REFUSALS_BURST = 200
REFUSALS_PER_SECOND = 2
"""Written for one caller of what was not allowed; of the rest the number. So no qube makes the past of others be
forgotten."""
COMPLAINTS_PER_SECOND = 1 / 60
"""How often it is told that the file cannot be written."""

ALLOWED = "allowed"
DENIED = "denied"
REFUSED = "refused"
"""By a limit, or because it could not be done."""
WITHDRAWN = "withdrawn"
"""The caller did not wait for an answer."""

log = logging.getLogger("insula.rpc")


@dataclass
class CallRecord:
    """Filled in while a call goes on, written when it ends."""

    number: int
    caller: str
    service: str
    argument: str
    """With its plus sign."""
    target: str
    """As the caller named it."""
    claimed_source: str = ""
    began: float = field(default_factory=time.time)
    """Unix time."""
    decision: str = ""
    reason: str = ""
    rule: str = ""
    """``FILE:LINE`` that decided."""
    asked: bool = False
    """Whether the user was asked."""
    server: str = ""
    """Who served it."""
    depth: int = 0
    answered_after_s: float = 0.0
    ended_after_s: float = 0.0
    from_caller: int = 0
    """Bytes, with qrexec's headers."""
    to_caller: int = 0
    left_out: int = 0
    """Records of this caller that were not written before this one."""


class _File(RotatingFileHandler):
    """A disk that is full costs lines of the log and nothing else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=1, encoding="ascii", delay=True)
        self._complaints = RateLimit(1, COMPLAINTS_PER_SECOND)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of the base class
        del record
        if self._complaints.take(time.monotonic()):
            log.error("a call could not be written down: %s", sys.exception())


@dataclass
class _Refusals:
    """Of one caller."""

    limit: RateLimit = field(default_factory=lambda: RateLimit(REFUSALS_BURST, REFUSALS_PER_SECOND))
    left_out: int = 0


class CallLog:
    """Belongs to one daemon."""

    def __init__(self, path: Path, bus: EventBus) -> None:
        self._bus = bus
        self._file = _File(path)
        self._events = RateLimit(EVENTS_BURST, EVENTS_PER_SECOND)
        self._refusals: dict[str, _Refusals] = {}

    def close(self) -> None:
        self._file.close()

    def forget(self, qube: str) -> None:
        """It has no session any more."""
        self._refusals.pop(qube, None)

    def decided(self, record: CallRecord) -> None:
        """The caller was answered."""
        self._publish("call-decided", record)

    def ended(self, record: CallRecord) -> None:
        """The call is over, or never was one."""
        refusals = self._refusals.get(record.caller)
        if refusals is None:
            refusals = self._refusals[record.caller] = _Refusals()
        if record.decision != ALLOWED and not refusals.limit.take(time.monotonic()):
            refusals.left_out += 1
            return
        record.left_out, refusals.left_out = refusals.left_out, 0
        line = json.dumps(to_json(record))
        self._file.emit(logging.LogRecord("insula.calls", logging.INFO, "", 0, line, None, None))
        self._publish("call-ended", record)

    def _publish(self, name: str, record: CallRecord) -> None:
        if not self._events.take(time.monotonic()):
            return
        told = {
            "number": str(record.number),
            "service": record.service,
            "target": record.target,
            "decision": record.decision,
            "reason": record.reason,
            "rule": record.rule,
            "server": record.server,
        }
        self._bus.publish(Event(record.caller, name, told))


def to_json(record: CallRecord) -> dict[str, object]:
    """The object of a line."""
    values = dict(vars(record))
    if len(record.argument) > MAX_ARGUMENT:
        values["argument"] = record.argument[:MAX_ARGUMENT] + "…"
    for name in ("began", "answered_after_s", "ended_after_s"):
        values[name] = round(values[name], 6)
    return values


class LogReader:
    """Reads the log from its beginning, then what was added, also when the file is put aside for an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        """None: nothing was read yet."""
        self._position = 0
        self._partial = b""

    def read(self) -> Iterator[Mapping[str, object]]:
        """Records since the last time; the first time, those of the file put aside as well. Damaged lines are left
        out."""
        inode = self._path.stat().st_ino if self._path.exists() else 0
        if inode != self._inode:
            # Another file now: what was added to the one before between the last look and its end comes first.
            yield from self._rest(older(self._path), self._position)
            self._position, self._partial = 0, b""
        self._inode = inode
        yield from self._rest(self._path, self._position)

    def _rest(self, path: Path, position: int) -> Iterator[Mapping[str, object]]:
        try:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return
        self._position = position + len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            record = _record(line)
            if record is not None:
                yield record


def older(path: Path) -> Path:
    """The file before that one."""
    return path.with_name(f"{path.name}.1")


def _record(line: bytes) -> Mapping[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.keys() >= _FIELDS else None


_FIELDS = frozenset(field.name for field in fields(CallRecord))
