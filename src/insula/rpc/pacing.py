"""Limits on how often something happens: pure, the caller brings the time."""

from __future__ import annotations

BACKOFF_FIRST = 1.0
BACKOFF_LONGEST = 60.0
BACKOFF_FORGIVEN = 60.0
"""Seconds a connection must have held for its next fault to count as the first."""


class Backoff:
    """Seconds to wait after each fault: doubling while faults follow one another."""

    def __init__(self) -> None:
        self._next = BACKOFF_FIRST
        self._since: float | None = None

    def succeeded(self, now: float) -> None:
        self._since = now

    def failed(self, now: float) -> float:
        """Return how long to wait before the next attempt."""
        if self._since is not None and now - self._since >= BACKOFF_FORGIVEN:
            self._next = BACKOFF_FIRST
        self._since = None
        delay, self._next = self._next, min(2 * self._next, BACKOFF_LONGEST)
        return delay


class RateLimit:
    """A bucket of ``burst`` tokens that refills at ``per_second``."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._tokens = burst
        self._last = 0.0

    def take(self, now: float) -> bool:
        """Whether it may happen once more now."""
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._per_second)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
