"""The windows of the qube's X server, told to the host; and what the host says, done to them.

The agent is the window manager: programs' requests are granted, as the host places, frames and focuses. Each window
has a picture in the frame memory; what a program draws is copied there by the X server, a rectangle at a time. What has
changed is reported when the host has painted the last report, so a program that draws faster than the screen shows
costs no more than one that does not.
"""

from __future__ import annotations

import xcffib
import xcffib.damage
import xcffib.xfixes
import xcffib.xproto

from insula_agent.gui import display as x11
from insula_agent.gui import properties
from insula_agent.gui.display import BadRequest, Display
from insula_agent.gui.pictures import Memory, Place
from insula_agent.gui.properties import Properties
from insula_agent.gui.tray import Tray
from insula_agent.log import log
from insula_proto import gui, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from insula_agent.gui.selection import Selection
    from insula_proto.gui import Message

_CREATE_GC = xcffib.xproto.GC.SubwindowMode | xcffib.xproto.GC.GraphicsExposures
_INCLUDE_INFERIORS = 1
_CONFIG = xcffib.xproto.ConfigWindow
_NORMAL, _ICONIC = 1, 3
"""WM_STATE (ICCCM)."""
_STATE_REMOVE, _STATE_ADD = 0, 1
"""_NET_WM_STATE (EWMH); 2 toggles."""
MAX_WINDOWS = 1000
"""Windows that are told of; the host gives up a guest with more than 1024."""

_CURSORS = {
    "xterm": 152, "text": 152, "ibeam": 152, "hand1": 58, "hand2": 60, "pointer": 60, "pointing_hand": 60, "watch": 150,
    "wait": 150, "crosshair": 34, "cross": 34, "fleur": 52, "move": 52, "sb_h_double_arrow": 108, "ew-resize": 108,
    "col-resize": 108, "sb_v_double_arrow": 116, "ns-resize": 116, "row-resize": 116, "question_arrow": 92, "help": 92,
    "top_left_corner": 134, "nw-resize": 134, "top_right_corner": 136, "ne-resize": 136, "bottom_left_corner": 12,
    "sw-resize": 12, "bottom_right_corner": 14, "se-resize": 14,
}  # fmt: skip
"""Names that toolkits give their pointers, and the glyphs of X's cursor font that look so."""


def united(first: tuple[int, int, int, int] | None, second: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The smallest rectangle around both."""
    if first is None:
        return second
    x, y = min(first[0], second[0]), min(first[1], second[1])
    right = max(first[0] + first[2], second[0] + second[2])
    bottom = max(first[1] + first[3], second[1] + second[3])
    return x, y, right - x, bottom - y


class Picture:
    __slots__ = ("pixmap", "place")

    def __init__(self, place: Place, pixmap: int) -> None:
        self.place = place
        self.pixmap = pixmap


class Window:
    __slots__ = (
        "damage", "depth", "dirty", "gc", "height", "is_announced", "is_icon", "is_mapped", "is_reported",
        "must_answer", "number", "old", "override", "picture", "width", "window", "x", "y",
    )  # fmt: skip

    def __init__(self, number: int, window: int, geometry: Any, override: bool) -> None:
        self.number = number
        """The host's name of it; never used twice."""
        self.window = window
        self.x, self.y, self.width, self.height = geometry.x, geometry.y, geometry.width, geometry.height
        self.depth = geometry.depth
        self.override = override
        self.is_mapped = False
        self.is_icon = False
        """Whether the host shows it in its tray."""
        self.gc = 0
        self.damage = 0
        self.picture: Picture | None = None
        self.is_announced = False
        """Whether the host knows the picture."""
        self.old: list[Picture | None] = []
        """What the host may still look at, until it says of each next one that it looks there."""
        self.dirty: tuple[int, int, int, int] | None = None
        self.is_reported = False
        """Whether the host has not painted yet what it was told of."""
        self.must_answer = False
        """The host said where it is, and waits."""

    @property
    def is_placed(self) -> bool:
        """Whether it lies elsewhere than where X puts windows that nobody has placed."""
        return bool(self.x or self.y)


class Windows:
    def __init__(self, display: Display, send: Callable[[Message], None]) -> None:
        self._display = display
        self._memory = Memory(0)
        self._send = send
        self._properties = Properties(display, send)
        self._windows: dict[int, Window] = {}
        """By the X server's number."""
        self._numbers: dict[int, Window] = {}
        self._gone: dict[int, list[Picture]] = {}
        """Pictures of windows that are destroyed, until the host has let go."""
        self._next = 1
        self._pointer_in = 0
        self._last_used: list[Window] = []
        """Windows that are shown; the one that had the keyboard last, or else appeared last, first."""
        self._own: set[int] = set()
        self.selection: Selection | None = None
        self._tray = Tray(display, self._drop)
        self._events: dict[type, Callable[[Any], None]] = {
            xcffib.xproto.CreateNotifyEvent: self._created,
            xcffib.xproto.DestroyNotifyEvent: self._destroyed,
            xcffib.xproto.MapRequestEvent: self._map_requested,
            xcffib.xproto.MapNotifyEvent: self._mapped,
            xcffib.xproto.UnmapNotifyEvent: self._unmapped,
            xcffib.xproto.ReparentNotifyEvent: self._reparented,
            xcffib.xproto.ConfigureRequestEvent: self._configure_requested,
            xcffib.xproto.ConfigureNotifyEvent: self._configured,
            xcffib.xproto.PropertyNotifyEvent: self._property_changed,
            xcffib.xproto.ClientMessageEvent: self._client_message,
            xcffib.damage.NotifyEvent: self._damaged,
            xcffib.xfixes.CursorNotifyEvent: self._cursor_changed,
        }
        self._messages: dict[type, Callable[[Any], None]] = {
            gui.Destroy: self._host_destroyed,
            gui.Map: self._host_mapped,
            gui.Configure: self._host_configured,
            gui.WindowFlags: self._host_flags,
            gui.Close: self._host_closes,
            gui.Key: self._host_key,
            gui.Button: self._host_button,
            gui.Motion: self._host_motion,
            gui.Crossing: self._host_crossing,
            gui.Focus: self._host_focus,
            gui.KeymapNotify: self._host_keymap,
            gui.DumpAcknowledged: self._host_looks,
            gui.Painted: self._host_painted,
        }

    def enter(self, own: set[int]) -> None:
        """Be the window manager; ``own`` are the agent's windows, which are none. Programs' wait for :meth:`start`.

        :raise NoDisplay: there is another one.
        """
        display = self._display
        display.know(properties.ATOMS)
        self._own = own
        check = int(display.connection.generate_id())
        display.core.CreateWindow(0, check, display.root, -10, -10, 1, 1, 0, 2, 0, 0, [])
        self._own |= {check, self._tray.window}
        for window in (display.root, check):
            display.set_numbers(window, "_NET_SUPPORTING_WM_CHECK", "WINDOW", [check])
        supported = [display.atom(name) for name in properties.SUPPORTED]
        display.set_numbers(display.root, "_NET_SUPPORTED", "ATOM", supported)
        name = b"Insula"
        display.core.ChangeProperty(
            0, check, display.atom("_NET_WM_NAME"), display.atom("UTF8_STRING"), 8, len(name), name
        )
        display.redirect()

    def start(self, memory_size: int) -> None:
        """Tell of the windows there are, and of what happens to them from now on."""
        display = self._display
        self._memory = Memory(memory_size)
        for window in display.core.QueryTree(display.root).reply().children:
            self._add(window)
            if window in self._windows and display.core.GetWindowAttributes(window).reply().map_state:
                self._show(self._windows[window])
        self._tray.start()

    # --- the X server --------------------------------------------------------------------------------------------

    def take_event(self, event: Any) -> None:
        handler = self._events.get(type(event))
        if handler is None:
            return
        try:
            handler(event)
        except BadRequest:
            return  # the window went meanwhile; its end is the next thing that is heard of it

    def _created(self, event: Any) -> None:
        if event.parent == self._display.root:
            self._add(event.window)
            window = self._windows.get(event.window)
            if window is not None and self._tray.holds(event.window):
                window.is_icon = True
                self._send(gui.Dock(window.number))

    def _add(self, window: int) -> None:
        display = self._display
        if window in self._windows or window in self._own or len(self._windows) >= MAX_WINDOWS:
            return
        try:
            attributes = display.core.GetWindowAttributes(window).reply()
            geometry = display.core.GetGeometry(window).reply()
        except BadRequest:
            return
        if attributes._class != xcffib.xproto.WindowClass.InputOutput:
            return
        made = Window(self._next, window, geometry, bool(attributes.override_redirect))
        self._next += 1
        made.gc, made.damage = int(display.connection.generate_id()), int(display.connection.generate_id())
        display.core.CreateGC(made.gc, window, _CREATE_GC, [_INCLUDE_INFERIORS, 0])
        display.damage.Create(made.damage, window, xcffib.damage.ReportLevel.BoundingBox)
        display.core.ChangeWindowAttributes(window, x11.CW.EventMask, [x11.EventMask.PropertyChange])
        display.core.ConfigureWindow(window, _CONFIG.BorderWidth, [0])
        self._windows[window] = made
        self._numbers[made.number] = made
        self._send(gui.Create(made.number, made.x, made.y, made.width, made.height, 0, made.override))
        self._properties.announce(made.number, window, is_placed=made.is_placed)

    def _destroyed(self, event: Any) -> None:
        self._tray.gone(event.window)
        self._drop(event.window)

    def _reparented(self, event: Any) -> None:
        self._tray.reparented(event.window, event.parent)

    def _drop(self, number: int) -> None:
        """It is no window of the screen any more."""
        window = self._windows.pop(number, None)
        if window is None:
            return
        pictures = [picture for picture in (window.picture, *window.old) if picture is not None]
        self._gone[window.number] = pictures
        self._forget_use(window)
        self._display.core.FreeGC(window.gc)
        self._display.damage.Destroy(window.damage)
        del self._numbers[window.number]
        self._send(gui.Destroy(window.number))

    def _map_requested(self, event: Any) -> None:
        self._display.set_numbers(event.window, "WM_STATE", "WM_STATE", [_NORMAL, 0])
        self._display.core.MapWindow(event.window)

    def _mapped(self, event: Any) -> None:
        window = self._windows.get(event.window)
        if window is not None and not window.is_mapped:
            window.override = bool(event.override_redirect)
            self._show(window)

    def _show(self, window: Window) -> None:
        window.is_mapped = True
        number = window.number
        if not window.override:
            self._properties.tell_kind(number, window.window)
            self._display.set_numbers(window.window, "_NET_FRAME_EXTENTS", "CARDINAL", [0, 0, 0, 0])
        owner = self._properties.owner(window.window, [other.window for other in self._owners()])
        parent = self._windows.get(owner)
        self._send(gui.Map(number, parent.number if parent is not None else gui.NO_WINDOW, window.override))
        self._properties.tell(number, window.window, "WM_NAME", is_placed=window.is_placed)
        self._new_picture(window)
        if not window.override:
            self._last_used.insert(0, window)

    def _owners(self) -> list[Window]:
        """Windows that others may belong to: those that are shown and were used last first."""
        return [*self._last_used, *(window for window in self._windows.values() if window not in self._last_used)]

    def _forget_use(self, window: Window) -> None:
        if window in self._last_used:
            self._last_used.remove(window)

    def _unmapped(self, event: Any) -> None:
        window = self._windows.get(event.window)
        if window is None or not window.is_mapped:
            return
        window.is_mapped = False
        window.dirty = None
        self._forget_use(window)
        if window.picture is not None:
            self._free(window.picture)  # (the host looks no longer when it reads this; until then at ours, whatever)
            window.picture = None
        for name in ("WM_STATE", "_NET_WM_STATE"):
            self._display.core.DeleteProperty(window.window, self._display.atom(name))
        self._send(gui.Unmap(window.number))

    def _configure_requested(self, event: Any) -> None:
        """Granted; where it is shown is the host's matter."""
        wanted = (
            (_CONFIG.X, event.x & 0xFFFFFFFF),
            (_CONFIG.Y, event.y & 0xFFFFFFFF),
            (_CONFIG.Width, event.width),
            (_CONFIG.Height, event.height),
            (_CONFIG.Sibling, event.sibling),
            (_CONFIG.StackMode, event.stack_mode),
        )
        values = [value for bit, value in wanted if event.value_mask & bit]
        mask = event.value_mask & ~_CONFIG.BorderWidth
        self._display.core.ConfigureWindow(event.window, mask, values)

    def _configured(self, event: Any) -> None:
        window = self._windows.get(event.window)
        if window is None:
            return
        before = (window.x, window.y, window.width, window.height)
        window.x, window.y, window.width, window.height = event.x, event.y, event.width, event.height
        if window.must_answer or before != (event.x, event.y, event.width, event.height):
            window.must_answer = False
            self._tell_place(window)
        if window.is_mapped and before[2:] != (event.width, event.height):
            self._new_picture(window)
        if window.is_icon:
            self._tray.resized(event.window, event.width, event.height)

    def _tell_place(self, window: Window) -> None:
        self._send(
            gui.Configure(window.number, window.x, window.y, window.width, window.height, window.override)
        )  # fmt: skip

    def _property_changed(self, event: Any) -> None:
        window = self._windows.get(event.window)
        if window is None:
            self._tray.changed(event.window)
            return
        name = self._properties.name_of(event.atom)
        if name is not None:
            self._properties.tell(window.number, window.window, name, is_placed=window.is_placed)

    def _client_message(self, event: Any) -> None:
        if event.window == self._tray.window:
            self._tray.asked(event)
            return
        window = self._windows.get(event.window)
        if window is None or event.format != 32:
            return
        display = self._display
        data = list(event.data.data32)
        if event.type == display.atom("_NET_ACTIVE_WINDOW"):
            # No window takes the focus by itself: it may ask for attention.
            self._properties.tell_attention(window.number, is_wanted=True)
        elif event.type == display.atom("WM_CHANGE_STATE"):
            if data[0] == _ICONIC:
                self._send(gui.WindowFlags(window.number, gui.FLAG_MINIMISE, 0))
        elif event.type == display.atom("_NET_REQUEST_FRAME_EXTENTS"):
            display.set_numbers(window.window, "_NET_FRAME_EXTENTS", "CARDINAL", [0, 0, 0, 0])
        elif event.type == display.atom(properties.STATE):
            for state in (properties.FULLSCREEN, properties.ATTENTION, properties.MODAL):
                if display.atom(state) in data[1:3]:
                    self._state_wanted(window, state, data[0])

    def _state_wanted(self, window: Window, state: str, action: int) -> None:
        is_on = self._properties.has_state(window.window, state)
        wanted = action == _STATE_ADD or (action != _STATE_REMOVE and not is_on)
        if state == properties.FULLSCREEN:
            # (Noted when the host says that it is so.)
            added, removed = (gui.FLAG_FULLSCREEN, 0) if wanted else (0, gui.FLAG_FULLSCREEN)
            self._send(gui.WindowFlags(window.number, added, removed))
            return
        self._properties.set_state(window.window, state, is_on=wanted)
        if state == properties.ATTENTION:
            self._properties.tell_attention(window.number, is_wanted=wanted)

    def _damaged(self, event: Any) -> None:
        window = self._windows.get(event.drawable)
        if window is not None:
            area = event.area
            window.dirty = united(window.dirty, (area.x, area.y, area.width, area.height))

    def _cursor_changed(self, event: Any) -> None:
        if self._pointer_in not in self._numbers:
            return
        reply = self._display.fixes.GetCursorImageAndName().reply()
        name = bytes(reply.name.buf()).decode("ascii", "replace")
        glyph = _CURSORS.get(name)
        self._send(gui.Cursor(self._pointer_in, gui.CURSOR_DEFAULT if glyph is None else gui.CURSOR_FONT + glyph))

    # --- pictures ------------------------------------------------------------------------------------------------

    def _new_picture(self, window: Window) -> None:
        """The window has a new size, or appears: its pixels go to a new place, which the host hears of with them."""
        if window.picture is not None:
            if window.is_announced:
                window.old.append(window.picture)
            else:
                self._free(window.picture)
            window.picture = None
        window.dirty = (0, 0, window.width, window.height)
        window.is_announced = False
        width, height = window.width, window.height
        if width > limits.GUI_MAX_WIDTH or height > limits.GUI_MAX_HEIGHT:
            return
        place = self._memory.take(width, height)
        if place is None:
            log(f"no room in the frame memory for a window of {width} x {height}")
            return
        pixmap = int(self._display.connection.generate_id())
        self._display.shm.CreatePixmap(
            pixmap, window.window, width, height, window.depth, self._display.segment, place.start
        )
        window.picture = Picture(place, pixmap)

    def _free(self, picture: Picture) -> None:
        self._display.core.FreePixmap(picture.pixmap)
        self._memory.give_back(picture.place)

    def copy(self) -> bool:
        """Have what has changed copied, and tell the host; return whether there was something."""
        copied: list[tuple[Window, tuple[int, int, int, int]]] = []
        for window in self._windows.values():
            rect = window.dirty
            if rect is None or window.is_reported or window.picture is None or not window.is_mapped:
                continue
            window.dirty = None
            x, y = max(0, rect[0]), max(0, rect[1])
            width, height = min(rect[0] + rect[2], window.width) - x, min(rect[1] + rect[3], window.height) - y
            if width <= 0 or height <= 0:
                continue
            # Reset before it is copied: what is drawn from here on is reported again.
            self._display.damage.Subtract(window.damage, 0, 0)
            self._display.core.CopyArea(window.window, window.picture.pixmap, window.gc, x, y, x, y, width, height)
            copied.append((window, (x, y, width, height)))
        if not copied:
            return False
        self._display.sync()
        for window, rect in copied:
            if window.picture is None:
                continue
            if not window.is_announced:
                window.is_announced = True
                if not window.old:
                    window.old.append(None)
                self._send(gui.FramePicture(window.number, window.width, window.height, window.picture.place.start))
            window.is_reported = True
            self._send(gui.Damage(window.number, *rect))
        return True

    # --- the host ------------------------------------------------------------------------------------------------

    def take_message(self, message: Message) -> None:
        handler = self._messages.get(type(message))
        if handler is None:
            return
        try:
            handler(message)
        except BadRequest:
            return  # the window went meanwhile

    def _host_destroyed(self, message: Message) -> None:
        for picture in self._gone.pop(message.window, ()):
            self._free(picture)

    def _host_looks(self, message: Message) -> None:
        window = self._numbers.get(message.window)
        if window is not None and window.old:
            old = window.old.pop(0)
            if old is not None:
                self._free(old)

    def _host_painted(self, message: Message) -> None:
        window = self._numbers.get(message.window)
        if window is not None:
            window.is_reported = False

    def _host_mapped(self, message: Message) -> None:
        window = self._numbers.get(message.window)
        if window is not None:
            self._display.set_numbers(window.window, "WM_STATE", "WM_STATE", [_NORMAL, 0])
            self._properties.set_state(window.window, properties.HIDDEN, is_on=False)

    def _host_configured(self, message: gui.Configure) -> None:
        window = self._numbers.get(message.window)
        if window is None:
            return
        if (message.x, message.y, message.width, message.height) == (window.x, window.y, window.width, window.height):
            self._tell_place(window)
            return
        window.must_answer = True
        place = [message.x & 0xFFFFFFFF, message.y & 0xFFFFFFFF, message.width, message.height]
        mask = _CONFIG.X | _CONFIG.Y | _CONFIG.Width | _CONFIG.Height
        self._display.core.ConfigureWindow(window.window, mask, place)

    def _host_flags(self, message: gui.WindowFlags) -> None:
        window = self._numbers.get(message.window)
        if window is None:
            return
        if (message.added | message.removed) & gui.FLAG_FULLSCREEN:
            is_on = bool(message.added & gui.FLAG_FULLSCREEN)
            self._properties.set_state(window.window, properties.FULLSCREEN, is_on=is_on)
        if message.added & gui.FLAG_MINIMISE:
            self._display.set_numbers(window.window, "WM_STATE", "WM_STATE", [_ICONIC, 0])
            self._properties.set_state(window.window, properties.HIDDEN, is_on=True)

    def _host_closes(self, message: Message) -> None:
        window = self._numbers.get(message.window)
        if window is None:
            return
        display = self._display
        if display.atom("WM_DELETE_WINDOW") in display.numbers(window.window, "WM_PROTOCOLS"):
            display.send_protocol(window.window, "WM_DELETE_WINDOW")
        else:
            display.core.KillClient(window.window)

    # --- input ---------------------------------------------------------------------------------------------------

    def _move_pointer(self, number: int, x: int, y: int) -> None:
        window = self._numbers.get(number)
        if window is not None:
            self._pointer_in = number
            if window.is_icon:
                # The user points at it, whatever lies there on this screen.
                self._display.core.ConfigureWindow(window.window, _CONFIG.StackMode, [xcffib.xproto.StackMode.Above])
            self._display.fake(x11.MOTION, 0, window.x + x, window.y + y)

    def _host_key(self, message: gui.Key) -> None:
        self._display.set_modifiers(message.state & 0xFF)
        self._display.fake(x11.KEY_PRESS if message.is_press else x11.KEY_RELEASE, message.code & 0xFF)
        self._display.flush()  # The program takes it while we look at what came with it.

    def _host_button(self, message: gui.Button) -> None:
        self._move_pointer(message.window, message.x, message.y)
        self._display.set_modifiers(message.state & 0xFF)
        self._display.fake(x11.BUTTON_PRESS if message.is_press else x11.BUTTON_RELEASE, message.button & 0xFF)

    def _host_motion(self, message: gui.Motion) -> None:
        self._move_pointer(message.window, message.x, message.y)

    def _host_crossing(self, message: gui.Crossing) -> None:
        if message.is_enter:
            self._move_pointer(message.window, message.x, message.y)
        elif self._pointer_in == message.window:
            self._pointer_in = 0
            screen = self._display.screen
            self._display.fake(x11.MOTION, 0, screen.width_in_pixels - 1, screen.height_in_pixels - 1)

    def _host_focus(self, message: gui.Focus) -> None:
        display = self._display
        window = self._numbers.get(message.window)
        if not message.is_in:
            display.core.SetInputFocus(xcffib.xproto.InputFocus.PointerRoot, display.root, 0)
            display.set_numbers(display.root, "_NET_ACTIVE_WINDOW", "WINDOW", [0])
            return
        if window is None or not window.is_mapped:
            return
        display.core.ConfigureWindow(window.window, _CONFIG.StackMode, [xcffib.xproto.StackMode.Above])
        if window in self._last_used:
            self._last_used.remove(window)
            self._last_used.insert(0, window)
        self._properties.set_state(window.window, properties.ATTENTION, is_on=False)
        if self._properties.takes_input(window.window):
            display.core.SetInputFocus(xcffib.xproto.InputFocus.PointerRoot, window.window, 0)
        if display.atom("WM_TAKE_FOCUS") in display.numbers(window.window, "WM_PROTOCOLS"):
            display.send_protocol(window.window, "WM_TAKE_FOCUS")
        display.set_numbers(display.root, "_NET_ACTIVE_WINDOW", "WINDOW", [window.window])

    def _host_keymap(self, message: gui.KeymapNotify) -> None:
        for code in self._display.keys_down():
            if not message.keys[code // 8] >> code % 8 & 1:
                self._display.fake(x11.KEY_RELEASE, code)
