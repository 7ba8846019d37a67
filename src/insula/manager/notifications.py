"""Which notifications of programs in qubes are shown, and when. Pure: told what happened and when, says what to show.

They are apart from notices of the host, so that no qube keeps one of those from being seen (MC-33). Each qube has a few
at once and then one each :data:`QUBE_REFILL_S` seconds; of what comes more often the newest is shown when its turn
comes, with the number of the others. While the screen is locked none is shown, and those that are go away (MC-48).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from insula.manager.notices import Bucket
from insula.policy.agent import Notification

QUBE_BURST = 4
QUBE_REFILL_S = 4.0
TOTAL_BURST = 8
TOTAL_REFILL_S = 1.0
MAX_QUBES = 256
"""Qubes that are told apart; what further ones tell is not shown while so many wait."""
MAX_COUNTED = 1000
"""Notifications of a qube that wait and are told apart."""


@dataclass(frozen=True)
class ShowNotification:
    """In place of an earlier one of the same qube and number."""

    notification: Notification
    more: int = 0
    """Others of the qube that came meanwhile and are not shown."""


@dataclass(frozen=True)
class HideNotification:
    source: str
    number: int


@dataclass(frozen=True)
class HideNotifications:
    """All of them."""


NotificationCommand = ShowNotification | HideNotification | HideNotifications


@dataclass
class _Qube:
    bucket: Bucket
    newest: Notification | None = None
    """Not shown yet."""
    more: int = 0
    """How many others are not."""
    numbers: set[int] = field(default_factory=set)
    """Of those that wait: one that changes often counts once."""

    def forget(self) -> None:
        self.newest, self.more, self.numbers = None, 0, set()


class NotificationMachine:
    def __init__(self) -> None:
        self._qubes: OrderedDict[str, _Qube] = OrderedDict()
        self._total = Bucket(TOTAL_BURST, TOTAL_REFILL_S, TOTAL_BURST, 0.0)
        self._is_locked = False

    def add(self, notification: Notification, now: float) -> list[NotificationCommand]:
        """What to do at once."""
        qube = self._qube(notification.source, now)
        if notification.is_withdrawn:
            if qube is not None and qube.newest is not None and qube.newest.number == notification.number:
                qube.forget()
            return [HideNotification(notification.source, notification.number)]
        if qube is None:
            return []
        if notification.number not in qube.numbers and len(qube.numbers) < MAX_COUNTED:
            qube.numbers.add(notification.number)
            qube.more += qube.newest is not None
        qube.newest = notification
        return self._show_if_due(qube, now)

    def locked(self, is_locked: bool, now: float) -> list[NotificationCommand]:
        """The screen is locked, or not any more."""
        self._is_locked = is_locked
        return [HideNotifications()] if is_locked else self.due(now)

    def due(self, now: float) -> list[NotificationCommand]:
        """Those whose turn has come."""
        return [command for qube in self._qubes.values() for command in self._show_if_due(qube, now)]

    def next_due_s(self, now: float) -> float | None:
        """Seconds until :meth:`due` may have something; None: never, unless something happens."""
        if self._is_locked:
            return None
        self._total.fill(now)
        waits = []
        for qube in self._qubes.values():
            if qube.newest is not None:
                qube.bucket.fill(now)
                waits.append(max(qube.bucket.wait_s, self._total.wait_s))
        return min(waits, default=None)

    def _show_if_due(self, qube: _Qube, now: float) -> list[NotificationCommand]:
        self._total.fill(now)
        qube.bucket.fill(now)
        if self._is_locked or qube.newest is None or qube.bucket.left < 1 or self._total.left < 1:
            return []
        qube.bucket.left -= 1
        self._total.left -= 1
        shown = ShowNotification(qube.newest, qube.more)
        qube.forget()
        return [shown]

    def _qube(self, name: str, now: float) -> _Qube | None:
        qube = self._qubes.get(name)
        if qube is None:
            if len(self._qubes) >= MAX_QUBES and not self._forget():
                return None
            qube = self._qubes[name] = _Qube(Bucket(QUBE_BURST, QUBE_REFILL_S, QUBE_BURST, now))
        self._qubes.move_to_end(name)
        return qube

    def _forget(self) -> bool:
        """Make room: the qube that was quiet for longest, if nothing of it waits."""
        for name, qube in self._qubes.items():
            if qube.newest is None:
                del self._qubes[name]
                return True
        return False
