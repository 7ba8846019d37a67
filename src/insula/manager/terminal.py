"""The back end of a terminal: where there is no screen, or nothing to show windows with.

The terminal gives each key as it is pressed and echoes nothing by itself; what is typed before a question counts goes
nowhere, and begins the delay anew, as in a window. A line chooses: the number of a target, its name, or ``deny``. An
empty line chooses nothing, whatever is offered first.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

from insula.daemon.paths import Paths
from insula.manager import wording
from insula.manager.agent_server import AgentServer, ServerEvent
from insula.manager.desk import Desk, DeskEvent
from insula.manager.host_mark import HostMark
from insula.manager.notices import ShownNotice
from insula.manager.notifications import NotificationCommand, ShowNotification
from insula.manager.prompt import (
    AllowPressed,
    DenyPressed,
    EscapePressed,
    FocusChanged,
    InputSeen,
    TargetChosen,
    View,
)
from insula.policy.agent import Question

MAX_LINE = 80
"""Characters of an answer; further ones are not taken."""
READ_SIZE = 4096
_RULE = "─" * 48
_ENTER = frozenset("\r\n")
_ERASE = frozenset("\x7f\x08")
_ERASE_LINE = "\x15"
_DENY = frozenset({"d", "deny", "n", "no"})


class TerminalSurface:
    """Questions as text on ``out``; :meth:`typed` is told each key."""

    def __init__(self, mark: HostMark, out: TextIO, answer: Callable[[int, str | None], None]) -> None:
        self._mark = mark
        self._out = out
        self._loop = asyncio.get_running_loop()
        self._desk = Desk(self, answer, self._loop.time)
        self._view: View | None = None
        self._line = ""

    @property
    def feed(self) -> Callable[[DeskEvent], None]:
        return self._desk.feed

    # for the desk

    def show(self, view: View) -> None:
        before, self._view = self._view, view
        if before is None or before.number != view.number:
            self._line = ""
            self._write("\n".join(["", *question_lines(view.question, self._mark), ""]))
            if not view.has_focus:
                self._desk.feed(FocusChanged(True))
        elif view.is_armed and not before.is_armed:
            self._ask()

    def hide(self) -> None:
        if self._view is not None:
            self._view = None
            self._line = ""
            self._write("Nothing is asked any more.\n")

    def tell(self, notice: ShownNotice) -> None:
        self._write(f"\n{notice.title}: {notice.text}\n")
        if self._view is not None and self._view.is_armed:
            self._ask()

    def notify(self, command: NotificationCommand) -> None:
        """A line each; what is written is not taken back."""
        if isinstance(command, ShowNotification):
            shown = command.notification
            lines = "; ".join(line for line in (shown.title, *shown.text.split("\n")) if line)
            self.tell(ShownNotice(f"[{shown.source}] says", lines, is_refusal=False))

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._loop.call_later(seconds, function)

    # keys

    def typed(self, text: str) -> None:
        for key in text:
            self._key(key)

    def _key(self, key: str) -> None:
        view = self._view
        if view is None:
            return
        if not view.is_armed:
            self._desk.feed(InputSeen())
        elif key in _ENTER:
            line, self._line = self._line.strip(), ""
            self._write("\n")
            self._chosen(view, line)
        elif key in _ERASE or key == _ERASE_LINE:
            self._erase(len(self._line) if key == _ERASE_LINE else 1)
        elif key == "\x1b":
            self._desk.feed(EscapePressed())
        elif key.isprintable() and len(self._line) < MAX_LINE:
            self._line += key
            self._write(key)

    def _chosen(self, view: View, line: str) -> None:
        if line.lower() in _DENY:
            self._desk.feed(DenyPressed())
            return
        target = target_of(view.question, line)
        if target is None:
            self._write("Nothing chosen.\n" if not line else "That is none of them.\n")
            self._ask()
            return
        self._desk.feed(TargetChosen(target))
        self._desk.feed(AllowPressed())

    def _erase(self, count: int) -> None:
        count = min(count, len(self._line))
        self._line = self._line[: len(self._line) - count]
        self._write("\b \b" * count)

    def _ask(self) -> None:
        self._write(f"Number to allow, or deny: {self._line}")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def question_lines(question: Question, mark: HostMark) -> list[str]:
    purpose = wording.purpose_of(question.service)
    command = wording.command_of(question)
    lines = [
        _RULE,
        f"Insula asks{mark.words:>37}",
        _RULE,
        f"{question.source} asks to {purpose.text}.",
        f"  service   {wording.shortened(question.service)}",
    ]
    if command is not None:
        lines.append(f"  command   {wording.shortened(command)}")
    elif argument := wording.shown_argument(question.argument):
        lines.append(f"  argument  {argument}")
    if purpose.risk:
        lines.append(f"  {purpose.risk}")
    lines.append("Which qube may it use?")
    for number, target in enumerate(question.targets, 1):
        is_first = target == question.default_target
        note = "  (suggested)" if is_first else ""
        lines.append(f"  {number:>2}  {wording.target_title(target)}{note}")
    return lines


def target_of(question: Question, line: str) -> str | None:
    """The target with this number, or this name; a name that is a number is reached by its number only."""
    if line.isascii() and line.isdecimal() and len(line) < 6:
        number = int(line)
        return question.targets[number - 1] if 1 <= number <= len(question.targets) else None
    return line if line in question.targets else None


async def serve(paths: Paths, mark: HostMark, descriptor: int, out: TextIO) -> None:
    """Ask on a terminal until cancelled, or until it is closed.

    :param descriptor: of the terminal, to read keys from.
    :raise AlreadyServed:
    :raise OSError: the socket cannot be made.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def heard(event: ServerEvent) -> None:
        surface.feed(event)

    server = AgentServer(paths.policy_agent_socket, heard)
    surface = TerminalSurface(mark, out, server.answer)
    async with server:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def read() -> None:
            try:
                untrusted_data = os.read(descriptor, READ_SIZE)
            except OSError:  # the terminal is gone
                untrusted_data = b""
            if not untrusted_data:
                loop.remove_reader(descriptor)
                ended.set()
            surface.typed(decoder.decode(untrusted_data))

        with _keys(descriptor):
            out.write(f"Insula asks here. The mark of this computer: {mark.words}. Ctrl-C ends it.\n")
            out.flush()
            loop.add_reader(descriptor, read)
            loop.add_signal_handler(signal.SIGHUP, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_signal_handler(signal.SIGHUP)
                loop.remove_reader(descriptor)


@contextlib.contextmanager
def _keys(descriptor: int) -> Iterator[None]:
    """Each key at once and without an echo; Ctrl-C as ever. What was typed before is thrown away."""
    before = termios.tcgetattr(descriptor)
    changed = termios.tcgetattr(descriptor)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, changed)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
