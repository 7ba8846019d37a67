"""The windows of one qube: what each is, what may be shown, and what the guest is told of it. Pure.

Messages of the guest and events of the desktop change what *is to be*; :meth:`Windows.settle` compares it with what
the desktop was last told and returns the difference as commands. So a thousand messages that are read at once become
at most one command of a kind for each window, and none for what was undone meanwhile (MC-43). Only taking windows
*away* is never left out: what is hidden is hidden before the guest hears of it.

Rules that hold whatever a guest says:

- It cannot ask for focus, raise a window, or move or hide an icon that lies in the tray; a window gets focus when it
  appears only if the user is working in this qube at that moment (MC-44).
- A *popup* (override-redirect) is above all others, so it is shown only while the qube has focus, wholly on one
  screen, over nothing protected, and not nearly as large as a screen; else it is a window like others (MC-37, MC-38).
- While the user works elsewhere, a window does not move over frames, panels or prompts that it does not cover already.
- What a window is can change while it is unmapped only. There is one truth about it: the style the desktop was told.
- The whole screen is the user's to give; a guest that asks for it gets a maximised window (MC-37).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from insula.gui import titles
from insula.gui.desktop import (
    CloseRequested,
    Command,
    DeskChanged,
    Event,
    Exposed,
    FocusGained,
    Hide,
    Icon,
    Move,
    Moved,
    Obscured,
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
    StateChanged,
    Style,
    Tell,
    Undocked,
)
from insula.gui.geometry import WINDOW_FRAME, Desk, Rect, clamp_content, is_off_screen, place_popup, place_window
from insula.gui.settings import Settings
from insula.gui.window import NEVER, Window, size_hints
from insula.rpc.pacing import RateLimit
from insula_proto import gui, gui_channel, gui_wire
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui import Message

MAX_WINDOWS = 1024
"""Windows a qube may have, shown or not. Programs use a few dozen; the published limit of old was 500."""
MAX_SHOWN = 128
"""Windows of a qube on the desktop; those above it appear when others are gone."""
MAX_PIXELS = 1 << 27
"""Of all windows of a qube on the desktop together, frames included: half a gigabyte of buffers. The largest window
there can be fits."""
SHOWS_PER_SECOND = 30
"""Windows that may appear, after as many as may be shown at once: each is work for the desktop that all qubes share."""
EXPECTED_S = 60.0
"""Seconds a program that the user started has for its first window: a browser in an emulated machine."""
ICONS_BURST, ICONS_PER_SECOND = 32, 4.0
"""Icons of a qube that are shown: each takes two milliseconds, and the desktop draws it in several places."""
MAX_ICONS = 8
"""Of a qube in the tray, which all qubes share."""
DOCKS_BURST, DOCKS_PER_SECOND = MAX_ICONS, 0.2
"""Icons of a qube that may appear there: each moves those of others."""
DOCK_AGAIN_S = 30.0
"""After which a tray is looked for again where there was none."""
EARLY = 0.5
"""Part of the time between two pictures of the screen by which a paint may come early: programs are not punctual. One
that had to wait for its picture would make the next one wait too, and be a picture behind now and then. On average it
is one for each picture all the same."""
MAX_DEPTH = 16
"""Windows that belong to one another in a row; a relation that would make more is dropped (MC-42)."""

FLAGS_SPOKEN = gui.FLAG_FULLSCREEN | gui.FLAG_ATTENTION | gui.FLAG_MINIMISE
FLAGS_OF_KIND = gui.FLAG_MODAL | gui.FLAG_DIALOG | gui.FLAG_UTILITY


class Windows:
    def __init__(self, settings: Settings, desk: Desk, *, memory_size: int, minor: int = gui_channel.MINOR) -> None:
        """``memory_size``: bytes of frame memory that are mapped; ``minor``: version spoken with the guest."""
        self._settings = settings
        self._desk = desk
        self._memory_size = memory_size
        self._acknowledges_destroy = minor >= gui_channel.DESTROY_IS_ACKNOWLEDGED
        self._acknowledges_dumps = minor >= gui_channel.DUMPS_ARE_ACKNOWLEDGED
        self._windows: dict[int, Window] = {}
        self._focused: int | None = None
        self._out: list[Command] = []
        self._told: set[str] = set()
        self._expected_until = NEVER
        self._shows = RateLimit(MAX_SHOWN, SHOWS_PER_SECOND)
        self._icons = RateLimit(ICONS_BURST, ICONS_PER_SECOND)
        self._docks = RateLimit(DOCKS_BURST, DOCKS_PER_SECOND)
        self._undocked: set[int] = set()
        """Icons that have just lost their tray."""
        self._is_settled = False
        """Nothing but pixels has changed since the last settling, which left nothing but what ``wake_at`` is for."""
        self.wake_at: float | None = None
        """When to settle again though nothing happens: something waits for the screen's next picture."""
        self._messages: dict[type[Message], Callable[..., None]] = {
            gui.Destroy: self._destroy,
            gui.Map: self._map,
            gui.Unmap: self._unmap,
            gui.Configure: self._configure,
            gui.Damage: self._damage,
            gui.Title: self._title,
            gui.Dock: self._dock,
            gui.WindowHints: self._hints,
            gui.WindowFlags: self._flags,
            gui.WindowClass: self._class,
            gui.FramePicture: self._picture,
            gui.Cursor: self._cursor,
            gui.Icon: self._icon,
        }
        self._events: dict[type[Event], Callable[..., None]] = {
            Moved: self._moved,
            StateChanged: self._state_changed,
            Exposed: self._exposed,
            Obscured: self._obscured,
            CloseRequested: self._close_requested,
            Undocked: self._was_undocked,
        }

    # --- what others may know ------------------------------------------------------------------------------------

    @property
    def has_focus(self) -> bool:
        """Whether the user works in this qube."""
        return self._focused is not None

    @property
    def has_popups(self) -> bool:
        """Whether something is shown above all other windows."""
        return any(window.shown is not None and window.shown.style is Style.POPUP for window in self._windows.values())

    def depends_on_others(self, message: Message | Event) -> bool:
        """Whether it places popups, or moves a window while the user works elsewhere."""
        if isinstance(message, FocusGained):  # popups come back with it
            return any(window.is_mapped and window.style is Style.POPUP for window in self._windows.values())
        if isinstance(message, Event):
            return False
        if isinstance(message, gui.Map):
            return message.override_redirect and self.has_focus
        window = self._windows.get(message.window)
        if window is None or not isinstance(message, gui.Configure) or not window.is_mapped:
            return False
        return window.style is Style.POPUP or not self.has_focus

    def is_shown(self, number: int) -> bool:
        window = self._windows.get(number)
        return window is not None and window.shown is not None

    def is_icon(self, number: int) -> bool:
        """Whether it lies in the tray: there a click goes into it, whatever the user works in."""
        window = self._windows.get(number)
        return window is not None and window.is_docked

    # --- input ---------------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message of the guest. :raise RemoteProtocolError: it may not say that; its windows are to go."""
        self._is_settled = self._is_settled and isinstance(message, gui.Damage)
        if isinstance(message, gui.Create):
            self._create(message)
            return
        handler = self._messages.get(type(message))
        if handler is None:
            raise RemoteProtocolError(f"{type(message).__name__} is not used here")
        window = self._windows.get(message.window)
        if window is None:
            raise RemoteProtocolError(f"{type(message).__name__} for window {message.window}, which does not exist")
        handler(window, message)

    def happened(self, event: Event) -> None:
        """Take an event of the desktop; about a window that is not shown any more it is late, and means nothing."""
        self._is_settled = False
        if isinstance(event, DeskChanged):
            self._desk_changed(event.desk)
            return
        handler = self._events.get(type(event))
        window = self._windows.get(getattr(event, "window", gui.NO_WINDOW))
        if handler is not None and window is not None and window.shown is not None:
            handler(window, event)

    def focus_changed(self, number: int | None) -> None:
        """The window that has the keyboard now; None: none of this qube."""
        self._is_settled = False
        self._focused = number
        window = self._windows.get(number) if number is not None else None
        if window is not None and window.state.wants_attention:
            window.state = replace(window.state, wants_attention=False)

    def expect(self, now: float) -> None:
        """The user has started a program in this qube: the next window is the one they look for."""
        self._is_settled = False
        self._expected_until = now + EXPECTED_S

    def clear(self) -> list[Command]:
        """The guest is gone, or not to be heard any more: hide everything, forget everything."""
        self._is_settled = False
        for window in self._windows.values():
            self._hide(window)
        self._windows.clear()
        self._focused = None
        self.wake_at = None
        return self._taken()

    def _taken(self) -> list[Command]:
        out, self._out = self._out, []
        return out

    # --- messages of the guest -----------------------------------------------------------------------------------

    def _create(self, message: gui.Create) -> None:
        if message.window in self._windows:
            raise RemoteProtocolError(f"window {message.window} exists already")
        if len(self._windows) >= MAX_WINDOWS:
            raise RemoteProtocolError(f"more than {MAX_WINDOWS} windows")
        place = clamp_content(message.x, message.y, message.width, message.height)
        self._windows[message.window] = Window(
            message.window, place, message.override_redirect, titles.class_name(self._settings.qube, b"")
        )

    def _destroy(self, window: Window, message: Message) -> None:
        del message
        self._hide(window)
        del self._windows[window.number]
        for other in self._windows.values():
            if other.transient_for == window.number:
                other.transient_for = gui.NO_WINDOW
        if self._acknowledges_destroy:
            self._out.append(Send(gui.Destroy(window.number)))

    def _map(self, window: Window, message: gui.Map) -> None:
        if window.is_mapped or window.is_docked:
            return  # what a window is cannot change while it is shown
        window.is_mapped = True
        window.wants_popup = message.override_redirect
        window.transient_for = self._checked_parent(window, message.transient_for)
        window.style = Style.WINDOW
        if window.wants_popup and self._settings.allows_popups and self.has_focus:
            window.style = Style.POPUP
        self._arrange(window)

    def _checked_parent(self, window: Window, untrusted_parent: int) -> int:
        """The relation, if it leads to windows that exist, not in a circle, and not endlessly (MC-42)."""
        number = untrusted_parent
        for _ in range(MAX_DEPTH):
            if number == window.number:
                return gui.NO_WINDOW
            parent = self._windows.get(number)
            if parent is None:
                # (At the first step: a parent that does not exist.)
                return untrusted_parent if untrusted_parent in self._windows else gui.NO_WINDOW
            number = parent.transient_for
        return gui.NO_WINDOW

    def _unmap(self, window: Window, message: Message) -> None:
        del message
        if window.is_docked:
            return
        self._hide(window)
        window.is_mapped = False
        window.picture = None
        window.damage.clear()
        # Agents delete what the window manager noted of it.
        window.kind = 0
        window.state, window.asked_fullscreen, window.told_flags = State(), False, 0

    def _configure(self, window: Window, message: gui.Configure) -> None:
        # (Its override_redirect is ignored: §6.)
        asked = clamp_content(message.x, message.y, message.width, message.height)
        if window.is_docked:
            window.must_configure = asked != window.place
        elif window.is_queued:
            if asked == window.place:
                window.is_queued = False
            else:
                window.must_configure = True
        elif asked != window.place and self._would_cover(window, asked):
            window.must_configure = True
        elif asked != window.place:
            window.place = asked
            if window.is_mapped:
                self._arrange(window)
                window.must_configure |= (asked.width, asked.height) != (message.width, message.height)

    def _would_cover(self, window: Window, asked: Rect) -> bool:
        """Whether the guest would move a window over what is not its own while the user works elsewhere (MC-38)."""
        if window.shown is None or window.shown.style is Style.POPUP or self.has_focus:
            return False
        outer = WINDOW_FRAME.around(asked)
        return any(outer.overlaps(rect) for rect in self._desk.protected)

    def _damage(self, window: Window, message: gui.Damage) -> None:
        window.owes_paint = True
        picture = window.picture
        if picture is None or not (window.is_mapped or window.is_docked) or message.x < 0 or message.y < 0:
            return
        rect = Rect(message.x, message.y, message.width, message.height)
        window.damage.add(rect.intersection(Rect(0, 0, picture.width, picture.height)))

    def _title(self, window: Window, message: gui.Title) -> None:
        window.title = titles.title(message.text, allows_utf8=self._settings.allows_utf8)

    def _dock(self, window: Window, message: Message) -> None:
        """From now on it is an icon: nothing it says of itself changes that."""
        del message
        if not window.is_mapped:
            window.is_docked = True
            window.wants_popup = False
            window.style = Style.ICON

    def _hints(self, window: Window, message: gui.WindowHints) -> None:
        window.hints = size_hints(message)
        window.is_positioned = bool(message.flags & (gui.HINT_USER_POSITION | gui.HINT_PROGRAM_POSITION))

    def _flags(self, window: Window, message: gui.WindowFlags) -> None:
        if window.is_docked:
            return
        if not window.is_mapped:
            window.kind = (window.kind & ~message.removed | message.added) & FLAGS_OF_KIND
        state, added, removed = window.state, message.added & FLAGS_SPOKEN, message.removed & FLAGS_SPOKEN
        if added & gui.FLAG_MINIMISE:
            added &= ~gui.FLAG_FULLSCREEN
            state = replace(state, is_minimised=True)  # (It comes back when the user wants, or by being mapped.)
        if added & gui.FLAG_FULLSCREEN and not window.asked_fullscreen:
            window.asked_fullscreen = True
            allowed = self._settings.allows_fullscreen
            state = replace(state, is_fullscreen=allowed, is_maximised=state.is_maximised or not allowed)
        if removed & gui.FLAG_FULLSCREEN:
            window.asked_fullscreen = False
            state = replace(state, is_fullscreen=False, is_maximised=False)
        if added & gui.FLAG_ATTENTION:
            state = replace(state, wants_attention=True)
        if removed & gui.FLAG_ATTENTION:
            state = replace(state, wants_attention=False)
        window.state = state

    def _class(self, window: Window, message: gui.WindowClass) -> None:
        if not window.is_mapped:
            window.class_name = titles.class_name(self._settings.qube, message.class_name)
            window.instance = titles.class_name(self._settings.qube, message.instance)

    def _picture(self, window: Window, message: gui.FramePicture) -> None:
        """Look at another place in the frame memory: its numbers are checked here, once, and never read again."""
        if message.offset + gui_wire.picture_size(message.width, message.height) > self._memory_size:
            raise RemoteProtocolError(
                f"picture of {message.width} x {message.height} at {message.offset} in {self._memory_size} bytes"
            )
        window.unacknowledged += 1
        window.damage.clear()
        window.picture = Picture(message.offset, message.width, message.height)

    def _cursor(self, window: Window, message: gui.Cursor) -> None:
        window.cursor = message.cursor

    def _icon(self, window: Window, message: gui.Icon) -> None:
        window.icon = Icon(message.width, message.height, message.pixels) if message.pixels else None

    # --- events of the desktop -----------------------------------------------------------------------------------

    def _moved(self, window: Window, event: Moved) -> None:
        if event.place.is_empty or event.place == window.place:
            return
        assert window.shown is not None
        window.shown = replace(window.shown, place=event.place)
        window.place = event.place
        window.changed_at = NEVER  # what the desktop did is not put right a picture later
        if window.style is Style.POPUP:
            self._arrange(window)  # nobody may put it where it must not be
        if not window.is_queued:
            window.must_configure = True

    def _state_changed(self, window: Window, event: StateChanged) -> None:
        assert window.shown is not None
        was_minimised = window.state.is_minimised
        window.state = replace(event.state, wants_attention=window.state.wants_attention)
        window.shown = replace(window.shown, state=window.state)
        if was_minimised and not window.state.is_minimised:
            self._out.append(Send(gui.Map(window.number)))

    def _exposed(self, window: Window, event: Event) -> None:
        del event
        window.is_exposed = True
        window.paint_due = NEVER
        window.damage.add(window.content)

    def _obscured(self, window: Window, event: Event) -> None:
        del event
        window.is_exposed = False

    def _was_undocked(self, window: Window, event: Event) -> None:
        """It is hidden, and tried again later."""
        del event
        if window.style is Style.ICON:
            self._undocked.add(window.number)
            self._tell("it has an icon for the tray, and the desktop has no tray")

    def _close_requested(self, window: Window, event: Event) -> None:
        del event
        self._out.append(Send(gui.Close(window.number)))

    def _desk_changed(self, desk: Desk) -> None:
        """Screens came or went (MC-46), or what popups may not cover has moved (MC-38)."""
        is_other = desk.areas != self._desk.areas
        if desk == self._desk:
            return
        self._desk = desk
        for window in self._windows.values():
            if window.is_mapped and not window.is_docked and (is_other or window.style is Style.POPUP):
                self._arrange(window)
                window.changed_at = NEVER

    # --- where it goes -------------------------------------------------------------------------------------------

    def _arrange(self, window: Window) -> None:
        """Bring a mapped window to where one of its style may be; a popup that may be nowhere becomes a window."""
        asked = window.place
        if window.style is Style.POPUP and is_off_screen(asked, self._desk):
            return  # not to be seen yet
        if window.style is Style.POPUP:
            placed = place_popup(asked, self._desk)
            if placed is None:
                window.style = Style.WINDOW
                self._tell("a menu or tooltip was too large or in the way; it is shown as a window")
            else:
                window.place = placed
        if window.style is Style.WINDOW and (window.is_positioned or window.shown is not None):
            window.place = place_window(asked, self._desk)
        if window.place != asked:
            window.must_configure = True

    def _tell(self, text: str) -> None:
        """Once for each text: a guest can cause this as often as it likes."""
        if text not in self._told:
            self._told.add(text)
            self._out.append(Tell(text))

    # --- what the desktop and the guest are told -----------------------------------------------------------------

    def settle(self, now: float) -> list[Command]:
        """Return what there is to do. ``now``: seconds of a clock that does not jump."""
        if self._is_settled and self.wake_at is None:
            for window in self._windows.values():
                self._paint(window, now)
            return self._taken()
        self._is_settled = True
        self.wake_at = None
        for number in self._undocked & self._windows.keys():
            self._windows[number].docks_at = now + DOCK_AGAIN_S
        self._undocked.clear()
        pixels = 0
        for window in self._windows.values():
            if window.shown is None:
                continue
            area = self._area(window)
            is_wrong = not self._is_to_be_seen(window, now) or window.shown.style is not window.style
            if is_wrong or pixels + area > MAX_PIXELS:
                self._hide(window)
            else:
                pixels += area
        self._show_missing(now)
        for window in self._windows.values():
            if window.shown is not None:
                self._update(window, window.shown, now)
            self._answer(window, now)
        return self._taken()

    def _show_missing(self, now: float) -> None:
        shown = [window for window in self._windows.values() if window.shown is not None]
        if len(shown) == len(self._windows):
            return
        room, pixels = MAX_SHOWN - len(shown), MAX_PIXELS - sum(map(self._area, shown))
        for window in self._windows.values():
            if window.shown is not None or not self._is_to_be_seen(window, now):
                if window.is_docked and window.docks_at > now:
                    self._wake(window.docks_at)
                continue
            if window.style is Style.ICON and not self._may_dock(now):
                continue
            row = self._with_hidden_ancestors(window, now)
            area = sum(map(self._area, row))
            if len(row) > room or area > pixels:
                self._tell("it has too many or too large windows; the others are not shown")
                continue
            if not all(self._shows.take(now) for _ in row):
                self._wake(now + 1 / SHOWS_PER_SECOND)
                return
            room, pixels = room - len(row), pixels - area
            for each in row:
                self._show(each, now)

    def _may_dock(self, now: float) -> bool:
        icons = [each for each in self._windows.values() if each.shown is not None and each.style is Style.ICON]
        if len(icons) >= MAX_ICONS:
            self._tell("it has too many icons for the tray; the others are not shown")
            return False
        if not self._docks.take(now):
            self._wake(now + 1 / DOCKS_PER_SECOND)
            return False
        return True

    @staticmethod
    def _area(window: Window) -> int:
        """Pixels it takes on the desktop."""
        return window.style.frame.around(window.place).area

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    def _is_to_be_seen(self, window: Window, now: float) -> bool:
        if window.is_docked:
            return now >= window.docks_at
        if not window.is_mapped:
            return False
        if window.style is Style.POPUP:
            return self.has_focus and not is_off_screen(window.place, self._desk)
        return True

    def _with_hidden_ancestors(self, window: Window, now: float) -> list[Window]:
        """Those it belongs to first: a window cannot belong to one that is not there."""
        row = [window]
        for ancestor in self._ancestors(window):
            if ancestor.shown is None and not ancestor.is_docked and self._is_to_be_seen(ancestor, now):
                row.append(ancestor)
        return row[::-1]

    def _ancestors(self, window: Window) -> Iterable[Window]:
        """(:meth:`_checked_parent` has seen to it that this ends.)"""
        parent = self._windows.get(window.transient_for)
        while parent is not None:
            yield parent
            parent = self._windows.get(parent.transient_for)

    def _parent(self, window: Window) -> int | None:
        for ancestor in self._ancestors(window):
            if ancestor.shown is not None and not ancestor.is_docked:
                return ancestor.number
        if window.style is Style.POPUP:
            # On some desktops it must belong to a window: to the one it lies in, or that the user works in.
            corner = Rect(window.place.x, window.place.y, 1, 1)
            for other in self._windows.values():
                if other.shown is not None and other.style is Style.WINDOW and other.place.contains(corner):
                    return other.number
            return self._focused
        return None

    def _show(self, window: Window, now: float) -> None:
        is_expected = window.style is Style.WINDOW and now < self._expected_until
        if is_expected:
            self._expected_until = NEVER
        parent = self._parent(window)
        window.shown = Show(
            window.number,
            window.style,
            window.place,
            window.title,
            window.class_name,
            window.instance,
            window.role,
            parent=parent,
            is_modal=parent is not None and window.style is Style.WINDOW and bool(window.kind & gui.FLAG_MODAL),
            may_focus=self.has_focus and window.style is Style.WINDOW,
            is_positioned=window.is_positioned or window.style is not Style.WINDOW,
            is_expected=is_expected,
            state=self._state(window),
            hints=window.hints,
        )
        window.shown_picture, window.shown_cursor, window.shown_icon = None, gui.CURSOR_DEFAULT, None
        window.is_exposed = False
        self._out.append(window.shown)

    def _hide(self, window: Window) -> None:
        """Take it away, and before it the popups that belong to it, and to those: on some desktops a popup cannot be
        without what it belongs to. They come back with the next settling."""
        if window.shown is None:
            return
        self._is_settled = False
        row = [window]
        for owner in row:  # (It grows meanwhile.)
            row += [other for other in self._windows.values() if self._is_popup_of(other, owner)]
        for each in reversed(row):
            each.shown = None
            each.is_exposed = False
            if each.number == self._focused:
                self._focused = None
            self._out.append(Hide(each.number))

    @staticmethod
    def _is_popup_of(window: Window, owner: Window) -> bool:
        shown = window.shown
        return shown is not None and shown.style is Style.POPUP and shown.parent == owner.number

    @staticmethod
    def _state(window: Window) -> State:
        """A popup has none: it cannot be maximised or minimised."""
        return window.state if window.style is Style.WINDOW else State()

    def _update(self, window: Window, shown: Show, now: float) -> None:
        number = window.number
        if window.picture != window.shown_picture:
            self._out.append(SetPicture(number, window.picture))
            window.shown_picture = window.picture
        if window.icon != window.shown_icon and window.style is Style.WINDOW:
            if self._icons.take(now):
                self._out.append(SetIcon(number, window.icon))
                window.shown_icon = window.icon
            else:
                self._wake(now + 1 / ICONS_PER_SECOND)
        state = self._state(window)
        is_as_shown = (
            window.place == shown.place
            and window.title == shown.title
            and window.hints == shown.hints
            and state == shown.state
            and window.cursor == window.shown_cursor
        )
        if is_as_shown:
            return
        # Each of these is work for the desktop: once for each picture of the screen is enough for a guest's wishes.
        if now < window.changed_at + self._desk.frame_s:
            self._wake(window.changed_at + self._desk.frame_s)
            return
        window.changed_at = now
        if window.place != shown.place and window.style is not Style.ICON:
            self._out.append(Move(number, window.place))
        if window.title != shown.title:
            self._out.append(SetTitle(number, window.title))
        if window.hints != shown.hints:
            self._out.append(SetHints(number, window.hints))
        if state != shown.state:
            self._out.append(SetState(number, state))
        if window.cursor != window.shown_cursor:
            self._out.append(SetCursor(number, window.cursor))
        window.shown = replace(shown, place=window.place, title=window.title, hints=window.hints, state=state)
        window.shown_cursor = window.cursor

    def _answer(self, window: Window, now: float) -> None:
        """What the guest waits for: acknowledgements come after the commands they speak of."""
        number = window.number
        if self._acknowledges_dumps:
            self._out += [Send(gui.DumpAcknowledged(number)) for _ in range(window.unacknowledged)]
        window.unacknowledged = 0
        if window.must_configure:
            window.must_configure = False
            window.is_queued = not window.is_docked
            place = window.place
            is_popup = window.style is Style.POPUP
            self._out.append(Send(gui.Configure(number, place.x, place.y, place.width, place.height, is_popup)))
        if window.shown is not None:
            changed = window.flags ^ window.told_flags
            if changed:
                self._out.append(Send(gui.WindowFlags(number, changed & window.flags, changed & ~window.flags)))
                window.told_flags = window.flags
        self._paint(window, now)

    def _paint(self, window: Window, now: float) -> None:
        if window.shown is None:
            # Nothing to look at: it may go on. (A popup that is only hidden for now is painted when it is back.)
            is_over = not self._is_to_be_seen(window, now) and not (window.is_mapped and window.style is Style.POPUP)
            if window.owes_paint and is_over:
                self._painted(window)
            return
        if not window.is_exposed or not (window.damage or window.owes_paint):
            return
        frame_s = self._desk.frame_s
        ready_at = window.paint_due - EARLY * frame_s
        if now < ready_at:
            self._wake(ready_at)
            return
        rects = window.damage.take(window.content)
        window.paint_due = max(window.paint_due, now) + frame_s
        if rects:
            self._out.append(Paint(window.number, rects))
        if window.owes_paint:
            self._painted(window)

    def _painted(self, window: Window) -> None:
        window.owes_paint = False
        self._out.append(Send(gui.Painted(window.number)))
