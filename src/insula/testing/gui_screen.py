"""A desktop that is a table: it carries out what a window machine commands, and objects to what must not be.

An AssertionError of :meth:`Screen.obey` is a fault of the machine: a window shown twice, moved while it is not shown, a
popup without what it belongs to, a message that does not fit the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from insula.gui.desktop import (
    Activate,
    Command,
    Hide,
    Move,
    Paint,
    Picture,
    Send,
    SetCursor,
    SetHints,
    SetIcon,
    SetPicture,
    SetState,
    SetTitle,
    Show,
    State,
    Style,
)
from insula.gui.geometry import Desk
from insula.gui.settings import Settings
from insula_proto import gui_wire


class Screen:
    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self.desk = desk
        self.windows: dict[int, Show] = {}
        """What is shown, as it is shown now."""
        self.pictures: dict[int, Picture | None] = {}
        self.sent: list[bytes] = []

    def obey(self, commands: Iterable[Command]) -> None:
        """Carry out the commands in their order. :raise AssertionError: one that makes no sense."""
        for command in commands:
            if isinstance(command, Send):
                self.sent.append(gui_wire.encode(command.message))
            elif isinstance(command, Show):
                self._show(command)
            elif isinstance(command, Hide):
                assert not any(w.parent == command.window and w.style is Style.POPUP for w in self.windows.values())
                del self.windows[command.window]
                del self.pictures[command.window]
            else:
                self._change(command)

    def _show(self, command: Show) -> None:
        assert command.window not in self.windows
        assert command.parent is None or command.parent in self.windows
        assert command.class_name.startswith(f"{self._settings.qube}:")
        assert not command.place.is_empty
        if command.style is Style.POPUP:
            assert command.state == State()
            assert not command.may_focus
        self.windows[command.window] = command
        self.pictures[command.window] = None

    def _change(self, command: Command) -> None:
        if not isinstance(
            command, (Move, SetTitle, SetState, SetHints, SetPicture, SetCursor, SetIcon, Paint, Activate)
        ):
            return
        window = self.windows[command.window]
        if isinstance(command, Move):
            assert command.place != window.place
            assert not command.place.is_empty
            window = replace(window, place=command.place)
        elif isinstance(command, SetTitle):
            window = replace(window, title=command.title)
        elif isinstance(command, SetState):
            assert window.style is Style.WINDOW
            assert self._settings.allows_fullscreen or not command.state.is_fullscreen or window.state.is_fullscreen
            window = replace(window, state=command.state)
        elif isinstance(command, SetHints):
            window = replace(window, hints=command.hints)
        elif isinstance(command, SetPicture):
            self.pictures[command.window] = command.picture
        self.windows[command.window] = window


class FakeBackend:
    """A back end (:class:`insula.gui.session.Backend`) over a :class:`Screen`."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self.screen = Screen(settings, desk)
        self.commands: list[Command] = []
        """All there were."""

    @property
    def desk(self) -> Desk:
        return self.screen.desk

    def look(self) -> Desk:
        return self.screen.desk

    def obey(self, command: Command) -> None:
        self.commands.append(command)
        self.screen.obey([command])
