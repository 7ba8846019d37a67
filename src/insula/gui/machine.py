"""The machines of one qube's windows, joined: messages of the guest and events of the desktop in, commands out.

:meth:`Machine.receive` and :meth:`Machine.happened` take what comes and return what must not wait;
:meth:`Machine.settle` is called when all that could be read was, and returns the rest. Commands are to be carried out
in their order.
"""

from __future__ import annotations

from insula.gui.clipboard import QubeClipboard
from insula.gui.desktop import PASSED_ON, ButtonChanged, Command, DeskChanged, Event, Hide, Layout, LayoutChanged, Send
from insula.gui.geometry import Desk, Monitor
from insula.gui.keyboard import Keyboard
from insula.gui.settings import Settings
from insula.gui.windows import Windows
from insula_proto import gui, gui_channel, limits
from insula_proto.gui import Message


def _row(monitor: Monitor) -> tuple[int, int, int, int, int, int] | None:
    """As the guest is told; None: it cannot be (no size, or too far away)."""
    place = monitor.place
    is_there = place.x >= 0 and place.y >= 0 and not place.is_empty
    if not is_there or place.right > limits.GUI_MAX_WIDTH or place.bottom > limits.GUI_MAX_HEIGHT:
        return None
    return place.x, place.y, place.width, place.height, max(0, monitor.width_mm), max(0, monitor.height_mm)


def _name(text: str) -> bytes:
    """A name of XKB's. What switches between layouts is left out: the desktop switches, and the guest follows."""
    options = [option for option in text.split(",") if not option.startswith("grp:")]
    return ",".join(options).encode("ascii", "replace")


class Machine:
    def __init__(self, settings: Settings, desk: Desk, *, memory_size: int, minor: int = gui_channel.MINOR) -> None:
        """As :class:`insula.gui.windows.Windows`: one for each connection of the guest's agent."""
        limit = min(settings.clipboard_limit, gui_channel.max_clipboard(minor))
        self._clipboard = QubeClipboard(limit, settings.image_limit)
        self._windows = Windows(settings, desk, memory_size=memory_size, minor=minor)
        self._keyboard = Keyboard(settings, self._clipboard, self._windows.is_icon)
        self._desk = desk
        self._follows = not settings.keyboard
        self._layout = Layout.parse(settings.keyboard)

    def greet(self) -> list[Command]:
        """What the guest is told first: screens and keyboard."""
        return [*self._screens(), *self._keyboard_layout()]

    def _screens(self) -> list[Command]:
        told = map(_row, self._desk.monitors[: limits.GUI_MAX_MONITORS])
        rows = [row for row in told if row is not None]
        dpi = min(max(self._desk.dpi, limits.GUI_MIN_DPI), limits.GUI_MAX_DPI)
        return [Send(gui.Screens(gui.NO_WINDOW, dpi, tuple(rows)))] if rows else []

    def _keyboard_layout(self) -> list[Command]:
        layout = self._layout
        fields = [_name(text) for text in (layout.layout, layout.variant, layout.options)]
        size = limits.GUI_KEYBOARD_SIZE
        if not fields[0] or any(len(field) >= most for field, most in zip(fields, (size, size, 4 * size), strict=True)):
            return []
        return [Send(gui.Keyboard(gui.NO_WINDOW, *fields))]

    def _surroundings_changed(self, event: Event) -> list[Command]:
        """Screens and keyboard as the guest should have them."""
        if isinstance(event, LayoutChanged):
            if not self._follows or event.layout == self._layout:
                return []
            self._layout = event.layout
            return self._keyboard_layout()
        if isinstance(event, DeskChanged):
            before, self._desk = self._desk, event.desk
            if (before.monitors, before.dpi) != (self._desk.monitors, self._desk.dpi):
                return self._screens()
        return []

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
        if isinstance(message, gui.ClipboardImage):
            return self._clipboard.received_image(message, now)
        self._windows.receive(message)
        return []

    def happened(self, event: Event, now: float) -> list[Command]:
        """Take an event of the desktop."""
        window = getattr(event, "window", None)
        if window is not None and not self._windows.is_shown(window):
            return []
        if isinstance(event, PASSED_ON):
            return self._keyboard.happened(event, now)
        commands = [*self._surroundings_changed(event), *self._keyboard.happened(event, now)]
        self._windows.focus_changed(self._keyboard.focused)
        self._windows.happened(event)
        if isinstance(event, ButtonChanged) and event.is_press and self._windows.is_icon(event.window):
            # What the program shows now is what the user clicked for.
            self._windows.expect(now)
        return commands

    def expect(self, now: float) -> None:
        """The user has started a program in this qube."""
        self._windows.expect(now)

    def deliver(self, number: int, data: bytes, now: float, *, is_image: bool = False) -> list[Command]:
        """What may be pasted, as the answer to :class:`insula.gui.desktop.AskPaste`."""
        return self._clipboard.deliver(number, data, now, is_image=is_image)

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
