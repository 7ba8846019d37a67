"""Takes pictures of an X11 desktop with Qt, and has the user point at what they want.

To choose, the whole screen is covered by a picture of itself, so nothing changes meanwhile: a click takes a window,
dragging a region; Tab and the arrows go from window to window, Enter takes it; Escape gives up.
"""

from __future__ import annotations

import os
from enum import Enum

from PySide6.QtCore import QPoint, QRect, QStandardPaths, Qt
from PySide6.QtGui import (
    QColor,
    QGuiApplication,
    QImage,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
)
from PySide6.QtWidgets import QApplication, QWidget

from insula.gui.backend.x11 import PROMPT_CLASS, Neighbours
from insula.gui.backend.xcb import Xcb
from insula.gui.geometry import Rect
from insula.manager import screenshot
from insula.manager.qt_paint import HOST
from insula.manager.screenshot import NothingToShow, Shot, ShotWindow

TITLE = "Insula: choose what is in the picture"
_SHADE = QColor(0, 0, 0, 90)
_EDGE = QColor(0xF2, 0xF4, 0xF8)


class Choice(Enum):
    WINDOW = "window"
    REGION = "region"


class GaveUp(Exception):
    """The user did not want a picture."""


class Screen:
    """The desktop as it is now. :raise NothingToShow: it cannot be looked at from here."""

    def __init__(self) -> None:
        os.environ["QT_ENABLE_HIGHDPI_SCALING"] = "0"  # one pixel of its is one of ours
        self._application = QApplication(["insula-screenshot"])
        if QGuiApplication.platformName() != "xcb":
            raise NothingToShow("on Wayland no program sees the screen; take the picture with the desktop's own one")
        neighbours = Neighbours(Xcb(self._application))
        primary = QGuiApplication.primaryScreen()
        whole, own = primary.virtualGeometry(), primary.geometry()
        self.area = Rect(whole.x(), whole.y(), whole.width(), whole.height())
        # What lies where is asked first: what appears between the two is not blank, and so not of a window either.
        self.windows = [
            _window(seen.instance, seen.class_name, seen.place, seen.is_managed) for seen in neighbours.windows()
        ]
        self._pixmap = primary.grabWindow(0, whole.x() - own.x(), whole.y() - own.y(), whole.width(), whole.height())

    def choose(self, choice: Choice) -> Shot:
        """What the user points at. :raise GaveUp: :raise NothingToShow: it is nothing."""
        chooser = _Chooser(self._pixmap, self.area, self.windows, choice)
        chooser.show()
        self._application.exec()
        if chooser.chosen is None:
            raise GaveUp
        if isinstance(chooser.chosen, ShotWindow):
            return screenshot.of_window(chooser.chosen, self.area, self.windows)
        return screenshot.of_region(chooser.chosen, self.area, self.windows)

    def picture(self, shot: Shot) -> QImage:
        image = self._pixmap.copy(_qrect(shot.area, self.area)).toImage()
        image = image.convertToFormat(QImage.Format.Format_RGB32)
        painter = QPainter(image)
        for rect in shot.blank:
            painter.fillRect(_qrect(rect, shot.area), HOST)
        painter.end()
        return image


def pictures_folder() -> str:
    """Where the user keeps pictures, as their desktop has it; the home folder if it says nothing."""
    return QStandardPaths.writableLocation(QStandardPaths.StandardLocation.PicturesLocation)


def _window(instance: bytes, class_name: bytes, place: Rect, is_managed: bool) -> ShotWindow:
    """Only classes of windows that show a qube have a colon: it ends the qube's name."""
    qube, colon, _ = class_name.decode("ascii", "replace").partition(":")
    return ShotWindow(place, qube if colon else "", is_managed, has_mark=PROMPT_CLASS in (instance, class_name))


def _qrect(rect: Rect, origin: Rect) -> QRect:
    return QRect(rect.x - origin.x, rect.y - origin.y, rect.width, rect.height)


class _Chooser(QWidget):
    def __init__(self, pixmap: QPixmap, area: Rect, windows: list[ShotWindow], choice: Choice) -> None:
        super().__init__(
            None,
            Qt.WindowType.Window
            | Qt.WindowType.FramelessWindowHint
            | Qt.WindowType.WindowStaysOnTopHint
            # Over panels and all screens, and without a window manager that would have other ideas.
            | Qt.WindowType.X11BypassWindowManagerHint,
        )
        self.setGeometry(area.x, area.y, area.width, area.height)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self.setMouseTracking(True)
        self._pixmap = pixmap
        self._area = area
        self._windows = windows
        self._reachable = [window for window in windows if window.is_managed]
        self._choice = choice
        self._has_keyboard = False
        self._start: tuple[int, int] | None = None
        self._pointed: ShotWindow | Rect | None = None
        self.chosen: ShotWindow | Rect | None = None

    def _take_keyboard(self) -> None:
        """No window manager gives it the focus. (The server refuses it to a window that cannot be seen yet.)"""
        if not self._has_keyboard:
            self._has_keyboard = True
            self.grabKeyboard()
            self.setWindowTitle(TITLE)

    def _end(self, chosen: ShotWindow | Rect | None) -> None:
        self.chosen = chosen
        self.releaseKeyboard()
        self.close()
        QApplication.exit(0)

    def _at(self, event: QMouseEvent) -> tuple[int, int]:
        position: QPoint = event.position().toPoint()
        return position.x() + self._area.x, position.y() + self._area.y

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        if event.button() != Qt.MouseButton.LeftButton:
            self._end(None)
        elif self._choice is Choice.REGION:
            self._start = self._at(event)
        else:
            window = screenshot.window_at(*self._at(event), self._windows)
            if window is not None:
                self._end(window)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        if self._choice is Choice.WINDOW:
            self._pointed = screenshot.window_at(*self._at(event), self._windows)
        elif self._start is not None:
            self._pointed = screenshot.region(self._start, self._at(event))
        self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        if self._start is not None:
            self._end(screenshot.region(self._start, self._at(event)))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 - Qt's name
        key = event.key()
        if key == Qt.Key.Key_Escape:
            self._end(None)
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and isinstance(self._pointed, ShotWindow):
            self._end(self._pointed)
        elif self._choice is Choice.WINDOW and key in (Qt.Key.Key_Tab, Qt.Key.Key_Down, Qt.Key.Key_Right):
            self._step(1)
        elif self._choice is Choice.WINDOW and key in (Qt.Key.Key_Backtab, Qt.Key.Key_Up, Qt.Key.Key_Left):
            self._step(-1)

    def focusNextPrevChild(self, _next: bool) -> bool:  # noqa: N802 - Qt's
        """Tab is a key like others here."""
        return False

    def _step(self, by: int) -> None:
        if self._reachable:
            now = self._pointed
            at = self._reachable.index(now) if isinstance(now, ShotWindow) else -1 if by > 0 else 0
            self._pointed = self._reachable[(at + by) % len(self._reachable)]
            self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        self._take_keyboard()
        painter = QPainter(self)
        painter.drawPixmap(0, 0, self._pixmap)
        painter.fillRect(self.rect(), _SHADE)
        pointed = self._pointed.place if isinstance(self._pointed, ShotWindow) else self._pointed
        if pointed is not None:
            rect = _qrect(pointed.intersection(self._area), self._area)
            painter.drawPixmap(rect, self._pixmap, rect)
            painter.setPen(QPen(_EDGE, 2))
            painter.drawRect(rect.adjusted(1, 1, -1, -1))
        painter.end()
