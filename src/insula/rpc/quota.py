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
from typing import TypeVar

from insula_proto import limits

T = TypeVar("T")

MAX_CALLS_OF_QUBE = limits.MAX_CALLS
"""Calls a qube makes at a time, those that wait for an answer included (MC-15)."""
MAX_DEPTH = 16
"""Calls inside calls. A file opened in a disposable whose link is opened in another that fetches a key is three."""
MAX_DISPOSABLES_OF_ORIGIN = 16
"""Disposables alive at a time for calls that one qube began."""


LAST_PLACES = 32
"""Of the calls a qube can serve: kept for callers with fewer than :data:`FEW` of them, so that one caller alone cannot
keep a service from all others (MC-15)."""
FEW = 8


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
    callers: Counter[str] = field(default_factory=Counter)
    """Who makes the calls it serves."""

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
    def serving(self, server: str, caller: str, place: Place) -> Iterator[None]:
        """For as long as ``server`` serves a call of ``caller``. :raise QuotaExceeded:"""
        load = self._loads.setdefault(server, _Load())
        if load.callers.total() >= limits.MAX_CALLS - LAST_PLACES and load.callers[caller] >= FEW:
            raise QuotaExceeded(f"{server} serves {load.callers[caller]} of its calls, and has few places left")
        _add(load.serving, place)
        _add(load.callers, caller)
        try:
            yield
        finally:
            _take(load.serving, place)
            _take(load.callers, caller)
            self._forget_idle(server, load)

    @contextmanager
    def disposable(self, place: Place) -> Iterator[None]:
        """For as long as a disposable is there for a call. :raise QuotaExceeded:"""
        if self._disposables[place.origin] >= MAX_DISPOSABLES_OF_ORIGIN:
            raise QuotaExceeded(f"{MAX_DISPOSABLES_OF_ORIGIN} disposables are there for {place.origin}")
        _add(self._disposables, place.origin)
        try:
            yield
        finally:
            _take(self._disposables, place.origin)

    def _forget_idle(self, qube: str, load: _Load) -> None:
        if load.is_idle and self._loads.get(qube) is load:
            del self._loads[qube]


def _add(counter: Counter[T], key: T) -> None:
    counter[key] += 1


def _take(counter: Counter[T], key: T) -> None:
    """Nothing is kept of what is not there any more."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
