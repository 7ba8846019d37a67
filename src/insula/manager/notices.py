"""Which notices are shown, and what becomes of a flood of them. Pure: told what happened and when, says what to show.

Calls that are denied are told to the user, and a guest may make as many as it likes (MC-33). So each source has a few
notices at once and then one each :data:`SOURCE_REFILL_S` seconds, and all together are bounded as well. What is not
shown is counted, and told in one line when the source's turn comes again. No notice has buttons: nothing in it can be
pressed by mistake.

Remarks about the clipboard follow the user's own keys, so each is shown at once. One about a qube is shown if it is the
qube's turn, else left out: each says something once that goes on being so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from insula.manager.prompt import DeniedUnseen
from insula.manager.wording import target_title
from insula.policy.agent import Notice, Remark, Resolution

SOURCE_BURST = 3
SOURCE_REFILL_S = 10.0
TOTAL_BURST = 6
TOTAL_REFILL_S = 2.0
MAX_SOURCES = 256
"""Sources that are told apart; what further ones do is not shown while so many have something to tell."""
MAX_SHOWN_SERVICE = 64
"""Characters of a service in a notice."""

CLIPBOARD = "Clipboard"
"""Title of remarks about it: no qube's, whose names stand in a line of their own form."""

_TOLD = {
    Resolution.ALLOW: "was allowed",
    Resolution.DENY: "was denied",
    Resolution.FAIL: "was allowed and failed",
}


@dataclass(frozen=True)
class ShownNotice:
    """Plain text, of printable characters."""

    title: str
    text: str
    is_refusal: bool
    is_remark: bool = False
    """About no call."""


@dataclass
class Bucket:
    """How often something may be shown: some at once, then one each ``refill_s``."""

    burst: float
    refill_s: float
    left: float
    at: float

    def fill(self, now: float) -> None:
        self.left = min(self.burst, self.left + max(0.0, now - self.at) / self.refill_s)
        self.at = now

    @property
    def wait_s(self) -> float:
        """Until there is one again."""
        return max(0.0, 1 - self.left) * self.refill_s


@dataclass
class _Source:
    bucket: Bucket
    held: Counter[str] = field(default_factory=Counter)
    """What is not shown yet: how it ended → how often."""


class NoticeMachine:
    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._total = Bucket(TOTAL_BURST, TOTAL_REFILL_S, TOTAL_BURST, 0.0)

    def remark(self, remark: Remark, now: float) -> list[ShownNotice]:
        """What to show at once; nothing if it is too much."""
        if not remark.source:
            return [ShownNotice(CLIPBOARD, remark.text, is_refusal=False, is_remark=True)]
        source = self._source(remark.source, now)
        if source is None or not self._may_show(source, now):
            return []
        return [ShownNotice(remark.source, remark.text, is_refusal=False, is_remark=True)]

    def add(self, event: Notice | DeniedUnseen, now: float) -> list[ShownNotice]:
        """What to show at once; nothing if it is too much."""
        match event:
            case Notice():
                name, outcome, cause = event.source, _TOLD[event.resolution], ""
                what = f"{_service(event.service)} of {target_title(event.target or '@default')}"
                is_refusal = event.resolution is not Resolution.ALLOW
            case DeniedUnseen():
                name, outcome, cause = event.question.source, "was denied", f": {event.cause}"
                what, is_refusal = _service(event.question.service), True
        source = self._source(name, now)
        if source is None:
            return []
        if not self._may_show(source, now):
            source.held[outcome] += 1
            return []
        return [ShownNotice(name, f"{what} {outcome}{cause}", is_refusal)]

    def _may_show(self, source: _Source, now: float) -> bool:
        """Whether it is its turn, which this takes."""
        self._total.fill(now)
        source.bucket.fill(now)
        if source.held or source.bucket.left < 1 or self._total.left < 1:
            return False
        self._take(source)
        return True

    def due(self, now: float) -> list[ShownNotice]:
        """Summaries whose turn has come."""
        self._total.fill(now)
        shown = []
        for name, source in self._sources.items():
            source.bucket.fill(now)
            if source.held and source.bucket.left >= 1 and self._total.left >= 1:
                self._take(source)
                shown.append(ShownNotice(name, _summary(source.held), any(key != "was allowed" for key in source.held)))
                source.held.clear()
        return shown

    def next_due_s(self, now: float) -> float | None:
        """Seconds until :meth:`due` may have something; None: never, unless something is added."""
        self._total.fill(now)
        waits = []
        for source in self._sources.values():
            if source.held:
                source.bucket.fill(now)
                waits.append(max(source.bucket.wait_s, self._total.wait_s))
        return min(waits, default=None)

    def _source(self, name: str, now: float) -> _Source | None:
        source = self._sources.get(name)
        if source is None:
            if len(self._sources) >= MAX_SOURCES and not self._forget():
                return None
            source = _Source(Bucket(SOURCE_BURST, SOURCE_REFILL_S, SOURCE_BURST, now))
            self._sources[name] = source
        self._sources.move_to_end(name)
        return source

    def _forget(self) -> bool:
        """Make room: the source that was quiet for longest, if it has nothing to tell."""
        for name, source in self._sources.items():
            if not source.held:
                del self._sources[name]
                return True
        return False

    def _take(self, source: _Source) -> None:
        source.bucket.left -= 1
        self._total.left -= 1


def _service(service: str) -> str:
    return service if len(service) <= MAX_SHOWN_SERVICE else service[: MAX_SHOWN_SERVICE - 1] + "…"


def _summary(held: Counter[str]) -> str:
    number = sum(held.values())
    parts = ", ".join(f"{count} {outcome.removeprefix('was ')}" for outcome, count in sorted(held.items()))
    return f"{number} more call{'' if number == 1 else 's'}: {parts}"
