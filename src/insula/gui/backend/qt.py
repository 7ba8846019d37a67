"""The back end for desktops that Qt knows: windows of one qube on X11 or Wayland."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PySide6.QtCore import QRect
from PySide6.QtGui import QGuiApplication, QScreen

from insula.gui.backend.qt_frame import rect_of
from insula.gui.backend.qt_window import QtWindow, Surroundings
from insula.gui.backend.tray import Tray
from insula.gui.backend.x11 import Neighbours, held_keys, layout
from insula.gui.backend.x_pictures import NoSharedPictures, XPictures
from insula.gui.backend.xcb import NotX11, Xcb
from insula.gui.cover import protected, without_docks
from insula.gui.desktop import (
    Activate,
    Command,
    DeskChanged,
    Event,
    FocusGained,
    Hide,
    Layout,
    LayoutChanged,
    Move,
    Paint,
    SetCursor,
    SetHints,
    SetIcon,
    SetPicture,
    SetState,
    SetTitle,
    Show,
    Style,
)
from insula.gui.frame_memory import FrameMemory
from insula.gui.geometry import Desk, Monitor
from insula.gui.settings import Settings

SLOWEST = 30.0
FASTEST = 240.0
DEFAULT_DPI = 96
"""Pictures a second a screen is believed to show."""


def application() -> QGuiApplication:
    """Connect to the desktop of the environment; whose windows it shows is not known yet."""
    QGuiApplication.setDesktopSettingsAware(False)
    made = QGuiApplication(["insula-gui"])
    made.setQuitOnLastWindowClosed(False)
    return made


def name(app: QGuiApplication, qube: str) -> None:
    """Be the program of that qube: what windows that are made later have as their class."""
    app.setApplicationName(f"{qube}:")


def environment() -> dict[str, str]:
    """What Qt reads from the environment and must find there before :func:`application`: one pixel of its is one pixel,
    as guests count them."""
    return {
        "LC_ALL": "C.UTF-8",
        "QT_ENABLE_HIGHDPI_SCALING": "0",
        "QT_IM_MODULE": "",
        "QT_XCB_GL_INTEGRATION": "none",
        "QT_STYLE_OVERRIDE": "",
    }


def _monitor(screen: QScreen) -> Monitor:
    size = screen.physicalSize()
    return Monitor(rect_of(screen.geometry()), round(size.width()), round(size.height()))


def set_class_on_x11(xcb: Xcb, window: QtWindow, class_name: str, instance: str) -> None:
    """(It must stand there when the window manager first sees the window.)"""
    xcb.set_text(
        int(window.winId()), "WM_CLASS", f"{instance or class_name}\0{class_name}\0".encode("ascii", "replace")
    )


class QtBackend:
    def __init__(self, app: QGuiApplication, settings: Settings, memory: FrameMemory) -> None:
        self._app = app
        self._windows: dict[int, QtWindow] = {}
        self._listener: Callable[[Event], None] = lambda _: None
        self._neighbours: Neighbours | None = None
        self._flush: Callable[[], None] = lambda: None
        self._layout: Callable[[], Layout | None] = lambda: None
        held: Callable[[], frozenset[int]] = frozenset
        tray: Tray | None = None
        set_class = self._set_class_on_wayland
        pictures: XPictures | None = None
        try:
            xcb = Xcb(app)
            set_class = partial(set_class_on_x11, xcb)
            self._neighbours, held, self._flush = Neighbours(xcb), partial(held_keys, xcb), xcb.flush
            self._layout = partial(layout, xcb)
            tray = Tray(xcb)
            pictures = XPictures(xcb, memory.descriptor)
        except (NotX11, NoSharedPictures):
            pass
        self._surroundings = Surroundings(settings, memory, self._tell, held, set_class, pictures, tray)
        app.screenAdded.connect(self._screens_changed)
        app.screenRemoved.connect(self._screens_changed)
        for screen in app.screens():
            screen.availableGeometryChanged.connect(self._area_changed)
            screen.logicalDotsPerInchChanged.connect(self._area_changed)

    def _set_class_on_wayland(self, window: QtWindow, class_name: str, instance: str) -> None:
        """(Qt tells it when the window gets its surface.)"""
        del window, instance
        self._app.setDesktopFileName(class_name)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Tell events to ``listener`` (:meth:`insula.gui.session.Session.happened`)."""
        self._listener = listener

    def _tell(self, event: Event) -> None:
        if isinstance(event, FocusGained):
            # (Nobody tells of another layout; before the first key is soon enough.)
            self.tell_layout()
        self._listener(event)

    def tell_layout(self) -> None:
        """Tell how the keyboard is laid out, where the desktop says so."""
        found = self._layout()
        if found is not None:
            self._listener(LayoutChanged(found))

    @property
    def desk(self) -> Desk:
        screens = self._app.screens()
        rates = [screen.refreshRate() for screen in screens]
        rate = min(max(min(rates, default=60.0), SLOWEST), FASTEST)
        return Desk(
            tuple(rect_of(screen.availableGeometry()) for screen in screens),
            frame_s=1 / rate,
            monitors=tuple(_monitor(screen) for screen in screens),
            dpi=round(screens[0].logicalDotsPerInch()) if screens else DEFAULT_DPI,
        )

    def look(self) -> Desk:
        """The screens, and what popups may not cover on them now."""
        desk = self.desk
        if self._neighbours is None:
            return desk
        seen = self._neighbours.look({int(window.winId()) for window in self._windows.values()})
        areas = tuple(without_docks(area, seen.docks) for area in desk.areas)
        return replace(desk, areas=areas, protected=protected(seen.panes))

    def _screens_changed(self, screen: QScreen) -> None:
        if screen in self._app.screens():
            screen.availableGeometryChanged.connect(self._area_changed)
        self._tell(DeskChanged(self.look()))

    def _area_changed(self, _: QRect | float) -> None:
        self._tell(DeskChanged(self.look()))

    def obey(self, command: Command) -> None:
        """Carry out a command about a window."""
        if isinstance(command, Show):
            parent = self._windows.get(command.parent) if command.parent is not None else None
            shown = self._windows[command.window] = QtWindow(command, self._surroundings, parent)
            if not command.is_expected and self._would_cover_active(command):
                # (Not below that one by name: a window manager may fall over one that goes just then.)
                shown.lower()
        elif isinstance(command, Hide):
            self._windows.pop(command.window).vanish()
        else:
            self._change(command)
            if not isinstance(command, Paint):
                self._flush()  # (Qt leaves much of it until it says something else.)

    def _would_cover_active(self, command: Show) -> bool:
        """Whether a window that appears would come over the one the user works in, of another qube."""
        if self._neighbours is None or command.style is not Style.WINDOW or command.may_focus:
            return False
        active = self._neighbours.active()
        if active is None or active[0] in {int(window.winId()) for window in self._windows.values()}:
            return False
        return not command.is_positioned or command.style.frame.around(command.place).overlaps(active[1])

    def _change(self, command: Command) -> None:
        if isinstance(command, Paint):
            self._windows[command.window].paint(command.rects)
        elif isinstance(command, Move):
            self._windows[command.window].move(command.place)
        elif isinstance(command, SetTitle):
            self._windows[command.window].set_title(command.title)
        elif isinstance(command, SetState):
            self._windows[command.window].set_state(command.state)
        elif isinstance(command, SetHints):
            self._windows[command.window].set_hints(command.hints)
        elif isinstance(command, SetPicture):
            self._windows[command.window].set_picture(command.picture)
        elif isinstance(command, SetCursor):
            self._windows[command.window].set_cursor(command.cursor)
        elif isinstance(command, SetIcon):
            self._windows[command.window].set_icon(command.icon)
        elif isinstance(command, Activate):
            self._windows[command.window].requestActivate()
