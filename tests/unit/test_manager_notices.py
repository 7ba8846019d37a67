"""Notices: shown, or counted and told later in one line."""

from __future__ import annotations

from insula.manager import notices
from insula.manager.notices import NoticeMachine, ShownNotice
from insula.manager.prompt import Cause, DeniedUnseen
from insula.policy.agent import Notice, Question, Remark, Resolution


def notice(source: str = "untrusted", resolution: Resolution = Resolution.DENY, target: str = "vault") -> Notice:
    return Notice(resolution, "qubes.Gpg", "+", source, target)


def test_notice_says_who_what_whom_and_how_it_ended() -> None:
    machine = NoticeMachine()
    assert machine.add(notice(), 0.0) == [ShownNotice("untrusted", "qubes.Gpg of vault was denied", True)]
    assert machine.add(notice("work", Resolution.ALLOW, "@dispvm:web"), 0.0) == [
        ShownNotice("work", "qubes.Gpg of a new disposable of web was allowed", False)
    ]
    assert machine.add(notice("mail", Resolution.FAIL, ""), 0.0) == [
        ShownNotice("mail", "qubes.Gpg of the default target was allowed and failed", True)
    ]
    unseen = DeniedUnseen(Question("web", "qubes.OpenURL", "+", ("work",)), Cause.LOCKED)
    assert machine.add(unseen, 0.0) == [ShownNotice("web", "qubes.OpenURL was denied: the screen is locked", True)]
    assert machine.next_due_s(0.0) is None


def test_mc33_flood_is_a_few_notices_then_one_summary() -> None:
    machine = NoticeMachine()
    shown = [line for _ in range(1000) for line in machine.add(notice(), 0.0)]
    assert len(shown) == notices.SOURCE_BURST
    assert machine.due(0.0) == []
    wait = machine.next_due_s(0.0)
    assert wait == notices.SOURCE_REFILL_S
    left_out = 1000 - notices.SOURCE_BURST
    assert machine.due(wait) == [ShownNotice("untrusted", f"{left_out} more calls: {left_out} denied", True)]
    assert machine.next_due_s(wait) is None


def test_mc33_flood_of_one_source_leaves_room_for_another() -> None:
    machine = NoticeMachine()
    for _ in range(1000):
        machine.add(notice(), 0.0)
    assert machine.add(notice("work"), 0.0) != []


def test_all_sources_together_are_bounded_and_nothing_is_lost() -> None:
    machine = NoticeMachine()
    now = 0.0
    told = sum(len(machine.add(notice(f"q{number}"), now)) for number in range(50))
    assert told == notices.TOTAL_BURST
    while (wait := machine.next_due_s(now)) is not None:
        now += wait
        told += len(machine.due(now))
    assert told == 50
    assert now <= 50 * notices.TOTAL_REFILL_S


def test_summary_says_how_calls_ended() -> None:
    machine = NoticeMachine()
    for _ in range(notices.SOURCE_BURST):
        machine.add(notice(), 0.0)
    machine.add(notice(resolution=Resolution.ALLOW), 0.0)
    machine.add(notice(), 0.0)
    machine.add(notice(), 0.0)
    [summary] = machine.due(notices.SOURCE_REFILL_S)
    assert summary.text == "3 more calls: 1 allowed, 2 denied"


def test_memory_of_sources_is_bounded() -> None:
    machine = NoticeMachine()
    for number in range(3 * notices.MAX_SOURCES):
        machine.add(notice(f"q{number}"), 0.0)
    assert len(machine._sources) == notices.MAX_SOURCES


def test_long_service_is_cut() -> None:
    [shown] = NoticeMachine().add(Notice(Resolution.DENY, "x" * 60_000, "+", "work", "vault"), 0.0)
    assert len(shown.text) < 120


def test_remarks_about_the_clipboard_are_shown_at_once_whatever_else_there_is() -> None:
    machine = NoticeMachine()
    for _ in range(100):
        machine.add(notice(), 0.0)
        [shown] = machine.remark(Remark("", "7 bytes copied from work"), 0.0)
        assert shown == ShownNotice("Clipboard", "7 bytes copied from work", False, True)


def test_remarks_about_a_qube_are_few() -> None:
    """MC-33."""
    machine = NoticeMachine()
    shown = [line for _ in range(100) for line in machine.remark(Remark("work", "it has too many windows"), 0.0)]
    assert shown == [ShownNotice("work", "it has too many windows", False, True)] * notices.SOURCE_BURST
    assert machine.next_due_s(0.0) is None
    assert machine.remark(Remark("mail", "it has too many windows"), 0.0)
