"""How many calls a qube may have, and how deep they may nest. Counts are the host's own: nothing a qube says matters.

A call made by a qube that serves calls is *inside* the deepest of them, whether it has to do with it or not: the host
cannot see which of its programs calls. Its *origin* is the qube that began that chain. So two qubes that call each
other endlessly, or a service that calls the next, end at :data:`MAX_DEPTH` (MC-23), and what is started on the way is
charged to who began (MC-68).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from insula_proto import limits

MAX_CALLS_OF_QUBE = limits.MAX_CALLS
"""Calls a qube makes at a time, those that wait for an answer included (MC-15)."""
MAX_DEPTH = 16
"""Calls inside calls. A file opened in a disposable whose link is opened in another that fetches a key is three."""
MAX_DISPOSABLES_OF_ORIGIN = 16
"""Disposables alive at a time for calls that one qube began."""


class QuotaExceeded(Exception):
    """The message says which."""


@dataclass(frozen=True)
class Place:
    """Where a call stands in its chain."""

    origin: str
    depth: int
    """1: its caller serves no call."""


@dataclass
class _Load:
    made: int = 0
    serving: Counter[Place] = field(default_factory=Counter)

    @property
    def is_idle(self) -> bool:
        return not self.made and not self.serving


class Quota:
    """Of one daemon."""

    def __init__(self) -> None:
        self._loads: dict[str, _Load] = {}
        self._disposables: Counter[str] = Counter()

    @contextmanager
    def making(self, caller: str) -> Iterator[Place]:
        """For as long as a call of ``caller`` is judged or runs. :raise QuotaExceeded:"""
        load = self._loads.setdefault(caller, _Load())
        try:
            if load.made >= MAX_CALLS_OF_QUBE:
                raise QuotaExceeded(f"it has {MAX_CALLS_OF_QUBE} calls under way")
            outer = max(load.serving, key=lambda place: place.depth, default=Place(caller, 0))
            if outer.depth >= MAX_DEPTH:
                raise QuotaExceeded(f"calls inside calls, {MAX_DEPTH} deep, begun by {outer.origin}")
            load.made += 1
            try:
                yield Place(outer.origin, outer.depth + 1)
            finally:
                load.made -= 1
        finally:
            self._forget_idle(caller, load)

    @contextmanager
    def serving(self, server: str, place: Place) -> Iterator[None]:
        """For as long as ``server`` serves a call."""
        load = self._loads.setdefault(server, _Load())
        load.serving[place] += 1
        try:
            yield
        finally:
            load.serving[place] -= 1
            if not load.serving[place]:
                del load.serving[place]
            self._forget_idle(server, load)

    @contextmanager
    def disposable(self, place: Place) -> Iterator[None]:
        """For as long as a disposable is there for a call. :raise QuotaExceeded:"""
        if self._disposables[place.origin] >= MAX_DISPOSABLES_OF_ORIGIN:
            raise QuotaExceeded(f"{MAX_DISPOSABLES_OF_ORIGIN} disposables are there for {place.origin}")
        self._disposables[place.origin] += 1
        try:
            yield
        finally:
            self._disposables[place.origin] -= 1
            if not self._disposables[place.origin]:
                del self._disposables[place.origin]

    def _forget_idle(self, qube: str, load: _Load) -> None:
        if load.is_idle and self._loads.get(qube) is load:
            del self._loads[qube]
