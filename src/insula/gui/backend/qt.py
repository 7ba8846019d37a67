"""The back end for desktops that Qt knows: windows of one qube on X11 or Wayland."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QRect
from PySide6.QtGui import QGuiApplication, QScreen

from insula.gui.backend.qt_window import QtWindow, Surroundings, rect_of
from insula.gui.backend.x11 import Keys
from insula.gui.desktop import (
    Activate,
    Command,
    DeskChanged,
    Event,
    Hide,
    Move,
    Paint,
    SetCursor,
    SetHints,
    SetPicture,
    SetState,
    SetTitle,
    Show,
)
from insula.gui.frame_memory import FrameMemory
from insula.gui.geometry import Desk
from insula.gui.settings import Settings

SLOWEST = 30.0
FASTEST = 240.0
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


class QtBackend:
    def __init__(self, app: QGuiApplication, settings: Settings, memory: FrameMemory) -> None:
        self._app = app
        self._windows: dict[int, QtWindow] = {}
        self._listener: Callable[[Event], None] = lambda _: None
        self._surroundings = Surroundings(settings, memory, self._tell, Keys(app).held)
        app.screenAdded.connect(self._screens_changed)
        app.screenRemoved.connect(self._screens_changed)
        for screen in app.screens():
            screen.availableGeometryChanged.connect(self._area_changed)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Tell events to ``listener`` (:meth:`insula.gui.session.Session.happened`)."""
        self._listener = listener

    def _tell(self, event: Event) -> None:
        self._listener(event)

    @property
    def desk(self) -> Desk:
        screens = self._app.screens()
        rates = [screen.refreshRate() for screen in screens]
        rate = min(max(min(rates, default=60.0), SLOWEST), FASTEST)
        return Desk(tuple(rect_of(screen.availableGeometry()) for screen in screens), frame_s=1 / rate)

    def _screens_changed(self, screen: QScreen) -> None:
        if screen in self._app.screens():
            screen.availableGeometryChanged.connect(self._area_changed)
        self._tell(DeskChanged(self.desk))

    def _area_changed(self, _: QRect) -> None:
        self._tell(DeskChanged(self.desk))

    def obey(self, command: Command) -> None:
        """Carry out a command about a window."""
        if isinstance(command, Show):
            parent = self._windows.get(command.parent) if command.parent is not None else None
            self._windows[command.window] = QtWindow(command, self._surroundings, parent)
        elif isinstance(command, Hide):
            self._windows.pop(command.window).vanish()
        else:
            self._change(command)

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
        elif isinstance(command, Activate):
            self._windows[command.window].requestActivate()
