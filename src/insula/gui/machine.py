"""The machines of one qube's windows, joined: messages of the guest and events of the desktop in, commands out.

:meth:`Machine.receive` and :meth:`Machine.happened` take what comes and return what must not wait;
:meth:`Machine.settle` is called when all that could be read was, and returns the rest. Commands are to be carried out
in their order.
"""

from __future__ import annotations

from insula.gui.clipboard import QubeClipboard
from insula.gui.desktop import Command, Event, Hide
from insula.gui.geometry import Desk
from insula.gui.keyboard import Keyboard
from insula.gui.settings import Settings
from insula.gui.windows import Windows
from insula_proto import gui, gui_channel
from insula_proto.gui import Message


class Machine:
    def __init__(self, settings: Settings, desk: Desk, *, memory_size: int, minor: int = gui_channel.MINOR) -> None:
        """As :class:`insula.gui.windows.Windows`: one for each connection of the guest's agent."""
        limit = min(settings.clipboard_limit, gui_channel.max_clipboard(minor))
        self._clipboard = QubeClipboard(limit)
        self._keyboard = Keyboard(settings, self._clipboard)
        self._windows = Windows(settings, desk, memory_size=memory_size, minor=minor)

    @property
    def wake_at(self) -> float | None:
        """When to settle again though nothing happens."""
        return self._windows.wake_at

    @property
    def has_focus(self) -> bool:
        """Whether the user works in this qube."""
        return self._windows.has_focus

    @property
    def has_popups(self) -> bool:
        """Whether something is shown above all other windows."""
        return self._windows.has_popups

    def depends_on_others(self, message: Message | Event) -> bool:
        """Whether it depends on where others' windows are: a new :class:`DeskChanged` first."""
        return self._windows.depends_on_others(message)

    def receive(self, message: Message, now: float) -> list[Command]:
        """Take a message of the guest. :raise RemoteProtocolError: :meth:`clear` is all that is left to do."""
        if isinstance(message, gui.ClipboardData):
            return self._clipboard.received(message.data, now)
        self._windows.receive(message)
        return []

    def happened(self, event: Event, now: float) -> list[Command]:
        """Take an event of the desktop."""
        window = getattr(event, "window", None)
        if window is not None and not self._windows.is_shown(window):
            return []
        commands = self._keyboard.happened(event, now)
        self._windows.focus_changed(self._keyboard.focused)
        self._windows.happened(event)
        return commands

    def expect(self, now: float) -> None:
        """The user has started a program in this qube."""
        self._windows.expect(now)

    def deliver(self, number: int, data: bytes, now: float) -> list[Command]:
        """What may be pasted, as the answer to :class:`insula.gui.desktop.AskPaste`."""
        return self._clipboard.deliver(number, data, now)

    def settle(self, now: float) -> list[Command]:
        """Return what there is to do."""
        commands = self._windows.settle(now)
        released = self._released_by(commands)
        if not released:
            return commands
        # Without focus there are no popups.
        return [*released, *commands, *self._windows.settle(now)]

    def clear(self) -> list[Command]:
        """The guest is gone: take everything from the desktop."""
        return [command for command in self._windows.clear() if isinstance(command, Hide)]

    def _released_by(self, commands: list[Command]) -> list[Command]:
        """A window that is hidden has lost the focus, whether the desktop says so or not."""
        released: list[Command] = []
        for command in commands:
            if isinstance(command, Hide):
                released += self._keyboard.hidden(command.window)
        if released:
            self._windows.focus_changed(self._keyboard.focused)
        return released
