"""What is told in the lower right corner: notices of the host, and above them what programs in qubes tell.

Both are small windows that take no focus, have nothing to press, and go by themselves. Notices of the host carry its
mark; what a qube tells has the frame and the name of that qube instead, so neither can be taken for the other (MC-40,
MC-50), and there is room for each kind whatever comes of the other. On Wayland a window comes where the compositor puts
it, and may be given the focus by it.
"""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QColor, QGuiApplication, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from insula.manager.colours import Colours
from insula.manager.host_mark import HostMark
from insula.manager.notices import ShownNotice
from insula.manager.notifications import HideNotification, NotificationCommand, ShowNotification
from insula.manager.qt_paint import BORDER, HOST, MarkBand, SourceBand, colour
from insula.policy.agent import Notification

TITLE = "Insula"
SHOWN_S = 8.0
URGENT_SHOWN_S = 30.0
MAX_SHOWN = 4
"""Notices of the host at a time; the oldest goes first."""
MAX_NOTIFICATIONS = 3
"""Of all qubes together."""
MAX_TITLE = 120
MAX_TEXT = 400
"""Characters that are shown of what a qube tells."""
WIDTH = 360
_GAP = 10
_MARGIN = 16
_HOST_BORDER = 2
_BAND = 34
"""Height of the band with a qube's name, in logical pixels."""


class NoticeStack:
    def __init__(self, mark: HostMark, colours: Colours) -> None:
        self._mark = mark
        self._colours = colours
        self._notices: list[_CornerWindow] = []
        self._notifications: list[_NotificationWindow] = []

    def add(self, notice: ShownNotice) -> None:
        while len(self._notices) >= MAX_SHOWN:
            self._remove(self._notices[0])
        window = _NoticeWindow(notice, self._mark, self._remove)
        self._notices.append(window)
        self._arrange()
        window.show()

    def obey(self, command: NotificationCommand) -> None:
        """Show or take away what qubes tell."""
        if isinstance(command, ShowNotification):
            self._show(command)
            return
        for window in tuple(self._notifications):
            if not isinstance(command, HideNotification) or window.key == (command.source, command.number):
                self._remove(window)

    def _show(self, command: ShowNotification) -> None:
        window = _NotificationWindow(command, self._colours, self._remove)
        for earlier in tuple(self._notifications):
            if earlier.key == window.key:
                self._remove(earlier)
        while len(self._notifications) >= MAX_NOTIFICATIONS:
            self._remove(self._notifications[0])
        self._notifications.append(window)
        self._arrange()
        window.show()

    def recolour(self) -> None:
        for window in self._notifications:
            window.recolour()

    def _remove(self, window: _CornerWindow) -> None:
        for kind in (self._notices, self._notifications):
            if window in kind:
                kind.remove(window)  # type: ignore[arg-type] # it is one of that list
                window.close()
                window.deleteLater()
                self._arrange()

    def _arrange(self) -> None:
        """From the lower right corner upwards. Where a compositor places windows itself, it does."""
        area = QGuiApplication.primaryScreen().availableGeometry()
        bottom = area.bottom() - _MARGIN
        for window in (*reversed(self._notices), *reversed(self._notifications)):
            window.adjustSize()
            window.move(area.right() - _MARGIN - window.width(), bottom - window.height())
            bottom -= window.height() + _GAP


class _CornerWindow(QWidget):
    """A frame, a band that says whose word it is, a line and a text."""

    def __init__(
        self,
        band: QWidget,
        texts: tuple[str, ...],
        *,
        border: int,
        shown_s: float,
        remove: Callable[[_CornerWindow], None],
    ) -> None:
        super().__init__(
            None,
            _window_type()
            | Qt.WindowType.FramelessWindowHint
            | Qt.WindowType.WindowStaysOnTopHint
            | Qt.WindowType.WindowDoesNotAcceptFocus,
        )
        self.setAttribute(Qt.WidgetAttribute.WA_ShowWithoutActivating)
        self.setWindowTitle(TITLE)
        self.setFixedWidth(WIDTH)
        self.ground = HOST
        self._remove = remove
        outer = QVBoxLayout(self)
        outer.setContentsMargins(border, border, border, border)
        outer.setSpacing(0)
        outer.addWidget(band)
        body = QWidget()
        body.setAutoFillBackground(True)
        column = QVBoxLayout(body)
        column.setContentsMargins(16, 10, 16, 12)
        column.setSpacing(4)
        for number, content in enumerate(texts):
            if content:
                column.addWidget(_text(content, is_bold=not number))
        outer.addWidget(body)
        QTimer.singleShot(int(shown_s * 1000), self, lambda: remove(self))

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        painter = QPainter(self)
        painter.fillRect(self.rect(), self.ground)
        painter.end()

    def mousePressEvent(self, _event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        """A click puts it away; it answers nothing."""
        self._remove(self)


class _NoticeWindow(_CornerWindow):
    def __init__(self, notice: ShownNotice, mark: HostMark, remove: Callable[[_CornerWindow], None]) -> None:
        heading = "To know" if notice.is_remark else "Denied" if notice.is_refusal else "Allowed"
        super().__init__(
            MarkBand(mark, heading, height=40),
            (notice.title, notice.text),
            border=_HOST_BORDER,
            shown_s=SHOWN_S,
            remove=remove,
        )
        self.setAccessibleName(f"{notice.title}: {notice.text}")


class _NotificationWindow(_CornerWindow):
    def __init__(self, command: ShowNotification, colours: Colours, remove: Callable[[_CornerWindow], None]) -> None:
        told = self._told = command.notification
        self._band = SourceBand()
        self._band.setFixedHeight(_BAND)
        self._colours = colours
        more = f"{command.more} more of this qube" if command.more else ""
        super().__init__(
            self._band,
            (_shortened(told.title, MAX_TITLE), _shortened(told.text, MAX_TEXT), more),
            border=BORDER,
            shown_s=URGENT_SHOWN_S if told.is_urgent else SHOWN_S,
            remove=remove,
        )
        self.setWindowTitle(f"{TITLE}: {told.source}")
        self.setAccessibleName(f"The qube {told.source} says: {told.title}: {told.text}")
        self.recolour()

    @property
    def key(self) -> tuple[str, int]:
        """A later one with the same takes its place."""
        return self._told.source, self._told.number

    def recolour(self) -> None:
        rgb = self._colours.of_icon(self._told.icon)
        self._band.set_source(self._told.source, _note(self._told), rgb)
        self.ground: QColor = colour(rgb)
        self.update()


def _note(told: Notification) -> str:
    return "says, urgently" if told.is_urgent else "says"


def _text(content: str, *, is_bold: bool) -> QLabel:
    label = QLabel()
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setText(content)
    font = label.font()
    font.setBold(is_bold)
    label.setFont(font)
    return label


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _window_type() -> Qt.WindowType:
    """X11: a window that no window manager touches. Wayland has such only beside another window of the same program, so
    there it is one like others."""
    is_wayland = QGuiApplication.platformName().startswith("wayland")
    return Qt.WindowType.Window if is_wayland else Qt.WindowType.ToolTip
