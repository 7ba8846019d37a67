"""What the user is asked, in which order, and which of their keys and clicks is an answer. Pure: events in, commands
out.

A guest decides *when* a question appears: under the pointer of somebody who clicks, before the hands of somebody who
types (MC-32). So a question is **armed** only after it was on the screen, in the focus, and left alone for
:data:`ARM_DELAY_S`. Until then nothing that is typed or clicked does anything but begin the time anew; losing the focus
disarms it; the next question is not armed because the last one was. Only *Deny* works at once: it gives nothing away.

One question is on the screen. The others wait, in turns of their sources, so that a qube that asks a lot does not keep
others waiting; a source has at most :data:`MAX_OPEN_OF_SOURCE` open and may ask :data:`BURST` times at once, then every
:data:`REFILL_S` seconds. What is over that is denied unseen, and told in a notice (MC-33). A question whose asker is
gone disappears, and its number is never used again, so that no answer can reach another question (MC-20, MC-24).

A back end (window, terminal) shows the :class:`View` it is given and sends what happens to it. It decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from insula.policy.agent import Question

ARM_DELAY_S = 1.0
"""Longer than a double click, and than it takes to notice what has the focus now; short enough to wait for."""
MAX_OPEN = 64
"""Questions at a time, of all sources."""
MAX_OPEN_OF_SOURCE = 8
BURST = 10
"""Questions of one source in a row…"""
REFILL_S = 5.0
"""…and then one each so many seconds: what a person can still answer."""
MAX_SOURCES = 512
"""Sources whose rate is remembered; the one not heard of for longest is forgotten first."""
MAX_FILTER = 64
"""Characters."""


# events


@dataclass(frozen=True)
class Asked:
    number: int
    """Of the connection; each is used once."""
    question: Question


@dataclass(frozen=True)
class Withdrawn:
    """The connection is over without an answer."""

    number: int


@dataclass(frozen=True)
class FocusChanged:
    has_focus: bool


@dataclass(frozen=True)
class DelayOver:
    ticket: int


@dataclass(frozen=True)
class InputSeen:
    """A key or a click that is none of those below."""


@dataclass(frozen=True)
class FilterTyped:
    text: str


@dataclass(frozen=True)
class TargetChosen:
    target: str


@dataclass(frozen=True)
class AllowPressed:
    pass


@dataclass(frozen=True)
class DenyPressed:
    """The button, or the window's own way to be closed."""


@dataclass(frozen=True)
class DenyAllPressed:
    """This one and all that wait of the same source."""


@dataclass(frozen=True)
class EscapePressed:
    """A key, so it counts when keys do."""


@dataclass(frozen=True)
class ScreenLocked:
    is_locked: bool


Event = (
    Asked
    | Withdrawn
    | FocusChanged
    | DelayOver
    | InputSeen
    | FilterTyped
    | TargetChosen
    | AllowPressed
    | DenyPressed
    | DenyAllPressed
    | EscapePressed
    | ScreenLocked
)


# commands


@dataclass(frozen=True)
class View:
    """All that is on the screen."""

    number: int
    question: Question
    targets: tuple[str, ...]
    """Those that fit the filter."""
    selected: str | None
    """One of ``targets``."""
    filter_text: str = ""
    has_focus: bool = False
    is_armed: bool = False
    waiting: int = 0
    """Other questions…"""
    waiting_of_source: int = 0
    """…and those of them that come from the same source."""

    @property
    def may_allow(self) -> bool:
        return self.is_armed and self.selected is not None


@dataclass(frozen=True)
class Show:
    """Show this, instead of what was shown."""

    view: View


@dataclass(frozen=True)
class Hide:
    """Nothing is asked any more."""


@dataclass(frozen=True)
class StartDelay:
    """Send :class:`DelayOver` with the ticket after so many seconds. An earlier delay no longer matters."""

    ticket: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    number: int
    target: str | None
    """None: denied."""


class Cause(StrEnum):
    """Why a question was denied without being asked; for people."""

    FLOOD = "it asks too often"
    LOCKED = "the screen is locked"


@dataclass(frozen=True)
class DeniedUnseen:
    """To be told in a notice."""

    question: Question
    cause: Cause


Command = Show | Hide | StartDelay | Answer | DeniedUnseen


@dataclass
class _Allowance:
    """A bucket of questions that one source may still ask."""

    left: float
    at: float

    def take(self, now: float) -> bool:
        self.left = min(BURST, self.left + max(0.0, now - self.at) / REFILL_S)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class PromptMachine:
    """``handle`` each event; act on what comes back, in order."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._waiting: OrderedDict[str, deque[Asked]] = OrderedDict()
        """Source → its questions, oldest first. The first source is the next in turn; none is empty."""
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._has_focus = False
        self._is_locked = False
        self._ticket = 0

    @property
    def view(self) -> View | None:
        return self._view

    def handle(self, event: Event, now: float) -> list[Command]:
        """``now``: seconds of a clock that never goes back. An event that does not fit the state does nothing."""
        match event:
            case Asked():
                return self._asked(event, now)
            case Withdrawn():
                return self._withdrawn(event.number)
            case FocusChanged():
                return self._focus_changed(event.has_focus)
            case ScreenLocked():
                return self._screen_locked(event.is_locked)
        if self._view is None:
            return []
        return self._used(self._view, event)

    # questions come and go

    def _asked(self, asked: Asked, now: float) -> list[Command]:
        cause = self._refusal(asked.question.source, now)
        if cause is not None:
            return [Answer(asked.number, None), DeniedUnseen(asked.question, cause)]
        self._waiting.setdefault(asked.question.source, deque()).append(asked)
        return self._next() if self._view is None else self._recounted()

    def _refusal(self, source: str, now: float) -> Cause | None:
        if self._is_locked:
            return Cause.LOCKED
        open_of_source = len(self._waiting.get(source, ())) + (
            self._view is not None and self._view.question.source == source
        )
        if open_of_source >= MAX_OPEN_OF_SOURCE or self._open() >= MAX_OPEN or not self._allowance(source, now):
            return Cause.FLOOD
        return None

    def _allowance(self, source: str, now: float) -> bool:
        allowance = self._allowances.setdefault(source, _Allowance(BURST, now))
        self._allowances.move_to_end(source)
        if len(self._allowances) > MAX_SOURCES:
            self._allowances.popitem(last=False)
        return allowance.take(now)

    def _withdrawn(self, number: int) -> list[Command]:
        if self._view is not None and self._view.number == number:
            return self._next()
        if self._drop(lambda asked: asked.number == number):
            return self._recounted()
        return []

    def _screen_locked(self, is_locked: bool) -> list[Command]:
        self._is_locked = is_locked
        if not is_locked:
            return []
        denied = self._drop(lambda _: True)
        shown = [] if self._view is None else [Asked(self._view.number, self._view.question)]
        commands: list[Command] = []
        for asked in (*shown, *denied):
            commands += [Answer(asked.number, None), DeniedUnseen(asked.question, Cause.LOCKED)]
        return [*commands, *(self._next() if shown else [])]

    # what is on the screen is used

    def _focus_changed(self, has_focus: bool) -> list[Command]:
        if has_focus == self._has_focus:
            return []
        self._has_focus = has_focus
        return self._disarmed()

    def _used(self, view: View, event: Event) -> list[Command]:
        match event:
            case DenyPressed():
                return self._answered(view, None)
            case DenyAllPressed():
                others = self._drop(lambda asked: asked.question.source == view.question.source)
                return [*(Answer(asked.number, None) for asked in others), *self._answered(view, None)]
            case DelayOver():
                if event.ticket != self._ticket or not self._has_focus or view.is_armed:
                    return []
                return self._shown(replace(view, is_armed=True))
        if not view.is_armed:
            return self._disarmed()
        match event:
            case EscapePressed():
                return self._answered(view, None)
            case FilterTyped():
                return self._filtered(view, event.text)
            case TargetChosen() if event.target in view.targets:
                return self._shown(replace(view, selected=event.target))
            case AllowPressed() if view.selected is not None:
                return self._answered(view, view.selected)
        return []

    def _filtered(self, view: View, text: str) -> list[Command]:
        """Fewer targets; what is not shown is not selected either."""
        text = text[:MAX_FILTER]
        targets = tuple(target for target in view.question.targets if text.strip().lower() in target.lower())
        selected = view.selected if view.selected in targets else None
        return self._shown(replace(view, filter_text=text, targets=targets, selected=selected))

    def _answered(self, view: View, target: str | None) -> list[Command]:
        return [Answer(view.number, target), *self._next()]

    # parts

    def _next(self) -> list[Command]:
        """Show the next question in turn, or nothing."""
        if not self._waiting:
            self._view = None
            self._ticket += 1
            # Whoever shows the next question shows a new window, which says so when it gets the focus.
            self._has_focus = False
            return [Hide()]
        source, questions = self._waiting.popitem(last=False)
        asked = questions.popleft()
        if questions:
            self._waiting[source] = questions  # behind the others
        question = asked.question
        self._view = View(asked.number, question, question.targets, question.default_target)
        return self._disarmed()

    def _disarmed(self) -> list[Command]:
        """The time begins anew, if the question has the focus."""
        if self._view is None:
            return []
        self._ticket += 1
        commands = self._shown(replace(self._view, is_armed=False))
        return [*commands, StartDelay(self._ticket, ARM_DELAY_S)] if self._has_focus else commands

    def _recounted(self) -> list[Command]:
        return [] if self._view is None else self._shown(self._view)

    def _shown(self, view: View) -> list[Command]:
        self._view = replace(
            view,
            has_focus=self._has_focus,
            waiting=self._open() - 1,
            waiting_of_source=len(self._waiting.get(view.question.source, ())),
        )
        return [Show(self._view)]

    def _open(self) -> int:
        return sum(map(len, self._waiting.values())) + (self._view is not None)

    def _drop(self, is_meant: Callable[[Asked], bool]) -> list[Asked]:
        """Take those out of the queue; returns them."""
        dropped: list[Asked] = []
        for source, questions in list(self._waiting.items()):
            dropped += filter(is_meant, questions)
            kept = deque(asked for asked in questions if not is_meant(asked))
            if kept:
                self._waiting[source] = kept
            else:
                del self._waiting[source]
        return dropped
