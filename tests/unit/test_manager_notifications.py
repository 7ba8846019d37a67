"""Notifications of qubes: shown, or the newest shown later with the number of the others."""

from __future__ import annotations

from insula.manager import notifications
from insula.manager.notifications import (
    HideNotification,
    HideNotifications,
    NotificationMachine,
    ShowNotification,
)
from insula.policy.agent import Notification


def told(source: str = "mail", number: int = 1, title: str = "New") -> Notification:
    return Notification(source, "appvm-red", number, False, title, "")


def test_notification_is_shown_at_once_and_taken_away_when_the_program_says_so() -> None:
    machine = NotificationMachine()
    assert machine.add(told(), 0.0) == [ShowNotification(told())]
    assert machine.add(told(title=""), 0.0) == [HideNotification("mail", 1)]
    assert machine.next_due_s(0.0) is None


def test_mc33_flood_is_a_few_then_the_newest_with_the_number_of_the_others() -> None:
    machine = NotificationMachine()
    shown = [command for number in range(100) for command in machine.add(told(number=number), 0.0)]
    assert len(shown) == notifications.QUBE_BURST
    wait = machine.next_due_s(0.0)
    assert wait == notifications.QUBE_REFILL_S
    assert machine.due(wait - 0.1) == []
    assert machine.due(wait) == [ShowNotification(told(number=99), 100 - notifications.QUBE_BURST - 1)]
    assert machine.next_due_s(wait) is None


def test_one_that_changes_all_the_time_counts_once() -> None:
    machine = NotificationMachine()
    for percent in range(100):
        machine.add(told(title=f"{percent} %"), 0.0)
    [show] = machine.due(notifications.QUBE_REFILL_S)
    assert show == ShowNotification(told(title="99 %"), 0)


def test_what_waits_and_is_withdrawn_is_never_shown() -> None:
    machine = NotificationMachine()
    for number in range(notifications.QUBE_BURST + 1):
        machine.add(told(number=number), 0.0)
    machine.add(told(number=notifications.QUBE_BURST, title=""), 0.0)
    assert machine.next_due_s(0.0) is None


def test_mc33_flood_of_one_qube_leaves_room_for_another() -> None:
    machine = NotificationMachine()
    for number in range(1000):
        machine.add(told(number=number), 0.0)
    assert machine.add(told("work"), 0.0) == [ShowNotification(told("work"))]


def test_all_qubes_together_are_bounded_and_each_has_its_turn() -> None:
    machine = NotificationMachine()
    shown = [command for number in range(50) for command in machine.add(told(f"q{number}"), 0.0)]
    assert len(shown) == notifications.TOTAL_BURST
    now = 0.0
    while (wait := machine.next_due_s(now)) is not None:
        now += wait
        shown += machine.due(now)
    assert len(shown) == 50
    assert now <= 50 * notifications.TOTAL_REFILL_S


def test_mc48_nothing_is_seen_while_the_screen_is_locked_and_the_newest_after_it() -> None:
    machine = NotificationMachine()
    machine.add(told(), 0.0)
    assert machine.locked(True, 1.0) == [HideNotifications()]
    assert machine.add(told(number=2, title="secret"), 2.0) == []
    assert machine.add(told(number=3, title="later"), 3.0) == []
    assert machine.next_due_s(3.0) is None
    assert machine.due(100.0) == []
    assert machine.locked(False, 100.0) == [ShowNotification(told(number=3, title="later"), 1)]


def test_qubes_beyond_those_told_apart_wait_for_nobody_and_a_quiet_one_is_forgotten() -> None:
    machine = NotificationMachine()
    for number in range(notifications.MAX_QUBES):
        machine.add(told(f"q{number}"), 1000.0 * number)
    assert machine.add(told("another"), 1e9) == [ShowNotification(told("another"))]
    machine.locked(True, 1e9)
    for number in range(notifications.MAX_QUBES):
        machine.add(told(f"r{number}"), 1e9)
    assert machine.add(told("one-more"), 1e9) == []
