"""The prompt machine: events in, commands out, under a clock of the test's own."""

from __future__ import annotations

import itertools

from hypothesis import event as label
from hypothesis import given
from hypothesis import strategies as st

from insula.manager import prompt
from insula.manager.prompt import (
    AllowPressed,
    Answer,
    Asked,
    Cause,
    Command,
    DelayOver,
    DeniedUnseen,
    DenyAllPressed,
    DenyPressed,
    EscapePressed,
    Event,
    FilterTyped,
    FocusChanged,
    Hide,
    InputSeen,
    PromptMachine,
    ScreenLocked,
    Show,
    StartDelay,
    TargetChosen,
    View,
    Withdrawn,
)
from insula.policy.agent import Question

TARGETS = ("personal", "vault", "work")


def question(source: str = "untrusted", default: str | None = None, targets: tuple[str, ...] = TARGETS) -> Question:
    return Question(source, "qubes.Filecopy", "+", targets, default)


class Playbook:
    """A machine, its clock, and what it said last."""

    def __init__(self) -> None:
        self.machine = PromptMachine()
        self.now = 100.0
        self.answers: dict[int, str | None] = {}
        self.unseen: list[tuple[str, Cause]] = []
        self.ticket: int | None = None
        """Of the delay that runs."""

    def send(self, event: Event) -> list[Command]:
        commands = self.machine.handle(event, self.now)
        for command in commands:
            match command:
                case Answer():
                    assert command.number not in self.answers, "answered twice"
                    self.answers[command.number] = command.target
                case DeniedUnseen():
                    self.unseen.append((command.question.source, command.cause))
                case StartDelay():
                    assert command.seconds == prompt.ARM_DELAY_S
                    self.ticket = command.ticket
        return commands

    def wait(self) -> None:
        """The delay that runs is over."""
        assert self.ticket is not None
        self.send(DelayOver(self.ticket))

    @property
    def view(self) -> View:
        assert self.machine.view is not None
        return self.machine.view

    def ask(self, number: int = 1, source: str = "untrusted", default: str | None = None) -> None:
        self.send(Asked(number, question(source, default)))


def armed(default: str | None = "work") -> Playbook:
    play = Playbook()
    play.ask(default=default)
    play.send(FocusChanged(True))
    play.wait()
    assert play.view.is_armed
    return play


def test_question_is_shown_then_armed_when_it_had_the_focus_for_the_delay() -> None:
    play = Playbook()
    first = View(1, question(), TARGETS, None)
    assert play.send(Asked(1, question())) == [Show(first)]
    [shown, delay] = play.send(FocusChanged(True))
    assert isinstance(shown, Show)
    assert shown.view.has_focus
    assert not shown.view.is_armed
    assert isinstance(delay, StartDelay)
    [shown] = play.send(DelayOver(delay.ticket))
    assert isinstance(shown, Show)
    assert shown.view.is_armed
    assert not shown.view.may_allow, "nothing is selected"


def test_target_chosen_and_allowed_is_the_answer() -> None:
    play = armed(default=None)
    play.send(TargetChosen("vault"))
    assert play.view.may_allow
    assert play.send(AllowPressed()) == [Answer(1, "vault"), Hide()]
    assert play.send(AllowPressed()) == []


def test_default_target_is_selected_from_the_start_and_only_if_there_is_one() -> None:
    assert armed(default="work").view.selected == "work"
    play = armed(default=None)
    assert play.view.selected is None
    assert play.send(AllowPressed()) == []
    assert play.answers == {}


def test_mc32_nothing_but_deny_counts_before_the_delay_is_over() -> None:
    play = Playbook()
    play.ask(default="work")
    play.send(FocusChanged(True))
    for event in (AllowPressed(), TargetChosen("vault"), FilterTyped("v"), EscapePressed(), InputSeen()):
        play.send(event)
    assert play.answers == {}
    assert (play.view.selected, play.view.filter_text) == ("work", "")
    play.send(DenyPressed())
    assert play.answers == {1: None}


def test_mc32_input_before_the_delay_is_over_begins_it_anew() -> None:
    play = Playbook()
    play.ask(default="work")
    play.send(FocusChanged(True))
    earlier = play.ticket
    assert earlier is not None
    play.send(InputSeen())
    play.send(DelayOver(earlier))
    assert not play.view.is_armed
    play.wait()
    assert play.view.is_armed


def test_mc32_lost_focus_disarms_and_the_delay_begins_when_it_is_back() -> None:
    play = armed()
    before = play.ticket
    assert before is not None
    play.send(FocusChanged(False))
    assert not play.view.is_armed
    play.send(AllowPressed())
    play.send(DelayOver(before))
    play.send(DelayOver(before + 1))
    assert not play.view.is_armed, "nothing counts time without the focus"
    play.send(FocusChanged(True))
    assert not play.view.is_armed
    play.send(AllowPressed())
    assert play.answers == {}
    play.wait()
    play.send(AllowPressed())
    assert play.answers == {1: "work"}


def test_mc32_next_question_is_not_armed_because_the_last_one_was() -> None:
    play = armed()
    play.ask(2, "personal", default="vault")
    play.send(AllowPressed())
    assert play.view.number == 2
    play.send(AllowPressed())
    assert play.answers == {1: "work"}
    play.wait()
    play.send(AllowPressed())
    assert play.answers == {1: "work", 2: "vault"}


def test_mc24_withdrawn_question_disappears_and_is_never_answered() -> None:
    play = armed()
    assert play.send(Withdrawn(1)) == [Hide()]
    assert play.send(AllowPressed()) == []
    assert play.send(Withdrawn(1)) == []
    assert play.answers == {}


def test_mc24_question_under_the_hand_is_withdrawn_the_next_one_does_not_get_its_click() -> None:
    play = armed()
    play.ask(2, "personal", default="vault")
    play.send(Withdrawn(1))
    play.send(AllowPressed())
    assert play.view.number == 2
    assert play.answers == {}


def test_waiting_question_withdrawn_leaves_the_shown_one_armed() -> None:
    play = armed()
    play.ask(2, "personal")
    assert play.view.waiting == 1
    play.send(Withdrawn(2))
    assert (play.view.number, play.view.waiting, play.view.is_armed) == (1, 0, True)


def test_filter_hides_targets_and_what_is_hidden_is_not_selected() -> None:
    play = armed()
    play.send(FilterTyped(" VAU"))
    assert (play.view.targets, play.view.selected) == (("vault",), None)
    assert play.send(AllowPressed()) == []
    play.send(TargetChosen("work"))
    assert play.view.selected is None, "it is not shown"
    play.send(FilterTyped(""))
    assert (play.view.targets, play.view.selected) == (TARGETS, None)
    play.send(FilterTyped("o" * 1000))
    assert play.view.filter_text == "o" * prompt.MAX_FILTER


def test_target_that_is_not_offered_cannot_be_chosen() -> None:
    play = armed()
    play.send(TargetChosen("dom0"))
    assert play.view.selected == "work"


def test_escape_denies_once_keys_count() -> None:
    play = armed()
    play.send(EscapePressed())
    assert play.answers == {1: None}


def test_sources_take_turns() -> None:
    play = Playbook()
    for number in (1, 2, 3):
        play.ask(number, "untrusted")
    play.ask(4, "work")
    assert (play.view.waiting, play.view.waiting_of_source) == (3, 2)
    order = []
    while play.machine.view is not None:
        order.append(play.view.number)
        play.send(DenyPressed())
    assert order == [1, 2, 4, 3]


def test_deny_all_denies_what_waits_of_the_same_source_only() -> None:
    play = Playbook()
    for number, source in enumerate(("untrusted", "untrusted", "work", "untrusted"), 1):
        play.ask(number, source)
    play.send(DenyAllPressed())
    assert play.answers == {2: None, 4: None, 1: None}
    assert play.view.question.source == "work"


def test_mc33_source_that_asks_without_end_is_denied_unseen_others_are_heard() -> None:
    play = Playbook()
    for number in range(100):
        play.ask(number, "untrusted")
    assert sum(target is None for target in play.answers.values()) == 100 - prompt.MAX_OPEN_OF_SOURCE
    assert play.unseen == [("untrusted", Cause.FLOOD)] * (100 - prompt.MAX_OPEN_OF_SOURCE)
    play.ask(100, "work")
    assert 100 not in play.answers
    assert play.view.waiting == prompt.MAX_OPEN_OF_SOURCE


def test_mc33_rate_holds_also_when_each_question_is_answered_at_once() -> None:
    play = Playbook()
    for number in range(30):
        play.ask(number)
        if play.machine.view is not None:
            play.send(DenyPressed())
    assert len(play.unseen) == 30 - prompt.BURST
    play.now += 2 * prompt.REFILL_S
    for number in range(30, 33):
        play.ask(number)
        if play.machine.view is not None:
            play.send(DenyPressed())
    assert len(play.unseen) == 30 - prompt.BURST + 1


def test_mc33_open_questions_of_all_sources_together_are_bounded() -> None:
    play = Playbook()
    for number in range(prompt.MAX_OPEN + 10):
        play.ask(number, f"q{number}")
    assert play.view.waiting == prompt.MAX_OPEN - 1
    assert len(play.unseen) == 10


def test_mc33_memory_of_sources_is_bounded() -> None:
    play = Playbook()
    for number in range(prompt.MAX_SOURCES + 100):
        play.ask(number, f"q{number}")
        play.send(Withdrawn(number))
    assert play.unseen == []
    assert len(play.machine._allowances) == prompt.MAX_SOURCES


def test_mc31_locked_screen_denies_what_is_open_and_what_comes() -> None:
    play = armed()
    play.ask(2, "personal")
    assert play.send(ScreenLocked(True))[-1] == Hide()
    play.ask(3)
    assert play.answers == {1: None, 2: None, 3: None}
    assert {cause for _, cause in play.unseen} == {Cause.LOCKED}
    play.send(ScreenLocked(False))
    play.ask(4)
    assert play.view.number == 4


TIME_PASSES = DelayOver(-1)
"""Stands for the end of whatever delay runs."""
EVENTS = st.one_of(
    st.builds(
        Asked,
        st.integers(1, 6),
        st.sampled_from([question("a", "work"), question("b"), question("c", None, ("vault",))]),
    ),
    st.builds(Withdrawn, st.integers(1, 6)),
    st.builds(FocusChanged, st.booleans()),
    st.builds(DelayOver, st.integers(1, 12)),
    st.builds(TargetChosen, st.sampled_from(TARGETS)),
    st.builds(FilterTyped, st.sampled_from(["", "v", "xyz"])),
    st.builds(ScreenLocked, st.booleans()),
    st.sampled_from([AllowPressed(), DenyPressed(), DenyAllPressed(), EscapePressed(), InputSeen()]),
)


RUNS = st.one_of(
    EVENTS.map(lambda event: [event]),
    st.just([FocusChanged(True), TIME_PASSES]),
    st.just([TIME_PASSES, TargetChosen("vault"), AllowPressed()]),
)
"""What a person would do, so that questions do get allowed between all that goes wrong."""


class Witness:
    """Remembers by itself what was asked, and which delay nothing disturbed."""

    def __init__(self) -> None:
        self.machine = PromptMachine()
        self.open: dict[int, Question] = {}
        self.quiet: int | None = None
        """Ticket of the delay that runs."""
        self.is_ripe = False

    def send(self, event: Event) -> None:
        if event == TIME_PASSES:
            event = DelayOver(self.quiet or 0)
        if isinstance(event, Asked):
            if event.number in self.open:
                return
            self.open[event.number] = event.question
        elif isinstance(event, DelayOver):
            self.is_ripe = self.is_ripe or event.ticket == self.quiet
        elif isinstance(event, FocusChanged | InputSeen) and not self.is_ripe:
            self.quiet = None
        before = self.machine.view
        for command in self.machine.handle(event, 0.0):
            self.check(command, event, before)
        if isinstance(event, Withdrawn):
            self.open.pop(event.number, None)
            assert self.machine.view is None or self.machine.view.number != event.number
        assert self.machine._open() == len(self.open)

    def check(self, command: Command, event: Event, before: View | None) -> None:
        match command:
            case StartDelay():
                self.quiet, self.is_ripe = command.ticket, False
            case Answer():
                asked = self.open.pop(command.number)
                if command.target is not None:
                    label("allowed")
                    assert (event, self.is_ripe) == (AllowPressed(), True)
                    assert before is not None
                    assert (before.number, before.selected) == (command.number, command.target)
                    assert before.may_allow
                    assert command.target in asked.targets
            case Show(view):
                assert view.number in self.open
                assert view.selected is None or view.selected in view.targets
                assert not view.is_armed or view.has_focus
            case Hide():
                assert self.machine.view is None


@given(st.lists(RUNS, min_size=5, max_size=40))
def test_any_events_every_allow_was_in_focus_undisturbed_for_the_delay_and_offered(runs: list[list[Event]]) -> None:
    """MC-24, MC-32: whatever happens, in whatever order."""
    witness = Witness()
    for event in itertools.chain.from_iterable(runs):
        witness.send(event)
