"""The policy as of now: read once, and again when a file of it has changed on disk, whoever changed it.

Every question is preceded by a look at the times of all files and folders that were read, some microseconds each; so
what was saved before a call was made judges that call. A change is taken over whole: readers and writers lock the
folder (:mod:`insula.policy.store`), and until a new version is complete nobody is judged (MC-30).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from insula.policy.ruleset import Policy
from insula.policy.store import PolicyStore

RECENT_NS = 50_000_000
"""A file changed no longer ago than this when it was read is read again: clocks of file systems tick in steps of some
milliseconds, and a second change within the same step would not show."""

Stamp = tuple[int, int, int, int] | None
"""Inode, size, times of change of content and of anything; None: it cannot be looked at."""


class CurrentPolicy:
    def __init__(self, store: PolicyStore, on_change: Callable[[Policy], None]) -> None:
        """``on_change`` is told of every version, the first included. A file that says the same as before, or nothing
        that matters, does not make another version."""
        self.store = store
        self._on_change = on_change
        self._policy: Policy | None = None
        self._stamps: dict[Path, Stamp] = {}
        self._is_settled = False
        self._loading = asyncio.Lock()

    async def get(self) -> Policy:
        """The version that is on disk now."""
        policy = self._fresh()
        if policy is not None:
            return policy
        async with self._loading:
            policy = self._fresh()
            if policy is None:
                policy = await self._load()
            return policy

    def _fresh(self) -> Policy | None:
        if not self._is_settled:
            return None
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                return None
        return self._policy

    async def _load(self) -> Policy:
        stamps: dict[Path, Stamp] = {}

        def look(path: Path) -> None:
            stamps.setdefault(path, _stamp(path))

        look(self.store.folder)
        policy = await asyncio.to_thread(self.store.load, look)
        newest = max((max(stamp[2:]) for stamp in stamps.values() if stamp is not None), default=0)
        self._stamps = stamps
        self._is_settled = abs(time.time_ns() - newest) > RECENT_NS
        if self._policy is None or not _is_same(self._policy, policy):
            self._policy = policy
            self._on_change(policy)
        return self._policy


def _is_same(one: Policy, other: Policy) -> bool:
    if (one.rules, one.problems, one.files) != (other.rules, other.problems, other.files):
        return False
    # Two rules are equal wherever they stand; what is said about a decision must name the right line, though.
    return [rule.location for rule in one.rules] == [rule.location for rule in other.rules]


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, and done for every file at every call
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
