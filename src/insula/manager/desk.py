"""Between the machines and a back end: feeds events, carries out commands, keeps time.

A back end is a :class:`Surface`. It runs in one thread, and so does its desk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from insula.manager.notices import NoticeMachine, ShownNotice
from insula.manager.notifications import NotificationCommand, NotificationMachine
from insula.manager.prompt import (
    Answer,
    Command,
    DelayOver,
    DeniedUnseen,
    Event,
    Hide,
    PromptMachine,
    ScreenLocked,
    Show,
    StartDelay,
    View,
)
from insula.policy.agent import Notice, Notification, Remark

DeskEvent = Event | Notice | Remark | Notification


class Surface(Protocol):
    def show(self, view: View) -> None:
        """Instead of what is shown."""

    def hide(self) -> None: ...

    def tell(self, notice: ShownNotice) -> None: ...

    def notify(self, command: NotificationCommand) -> None: ...

    def call_later(self, seconds: float, function: Callable[[], None]) -> None: ...


class Desk:
    def __init__(
        self,
        surface: Surface,
        answer: Callable[[int, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``answer(number, target)`` sends the user's answer; None: no."""
        self._surface = surface
        self._answer = answer
        self._clock = clock
        self._prompt = PromptMachine()
        self._notices = NoticeMachine()
        self._notifications = NotificationMachine()
        self._events: deque[DeskEvent] = deque()
        self._is_busy = False
        self._is_summary_due = False
        self._is_notification_due = False

    def feed(self, event: DeskEvent) -> None:
        """Also from within a surface's method: showing a window can give it the focus before the method returns."""
        self._events.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._is_busy = False

    def _handle(self, event: DeskEvent) -> None:
        if isinstance(event, Remark):
            for notice in self._notices.remark(event, self._clock()):
                self._surface.tell(notice)
            return
        if isinstance(event, Notice):
            self._note(event)
            return
        if isinstance(event, Notification):
            self._notify(self._notifications.add(event, self._clock()))
            return
        if isinstance(event, ScreenLocked):
            self._notify(self._notifications.locked(event.is_locked, self._clock()))
        for command in self._prompt.handle(event, self._clock()):
            self._act(command)

    def _act(self, command: Command) -> None:
        match command:
            case Show():
                self._surface.show(command.view)
            case Hide():
                self._surface.hide()
            case StartDelay():
                over = DelayOver(command.ticket)
                self._surface.call_later(command.seconds, lambda: self.feed(over))
            case Answer():
                self._answer(command.number, command.target)
            case DeniedUnseen():
                self._note(command)

    def _note(self, event: Notice | DeniedUnseen) -> None:
        for notice in self._notices.add(event, self._clock()):
            self._surface.tell(notice)
        self._plan_summary()

    def _plan_summary(self) -> None:
        wait_s = self._notices.next_due_s(self._clock())
        if wait_s is not None and not self._is_summary_due:
            self._is_summary_due = True
            self._surface.call_later(wait_s, self._summarise)

    def _summarise(self) -> None:
        self._is_summary_due = False
        for notice in self._notices.due(self._clock()):
            self._surface.tell(notice)
        self._plan_summary()

    def _notify(self, commands: list[NotificationCommand]) -> None:
        for command in commands:
            self._surface.notify(command)
        wait_s = self._notifications.next_due_s(self._clock())
        if wait_s is not None and not self._is_notification_due:
            self._is_notification_due = True
            self._surface.call_later(wait_s, self._notify_late)

    def _notify_late(self) -> None:
        self._is_notification_due = False
        self._notify(self._notifications.due(self._clock()))
