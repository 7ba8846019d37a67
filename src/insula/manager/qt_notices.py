"""Notices as small windows in a corner: they take no focus, have nothing to press, and go by themselves.

They carry the mark of the host. The desktop's own notifications do not, and qubes may come to use those. On Wayland a
notice comes where the compositor puts it, and may be given the focus by it.
"""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QGuiApplication, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from insula.manager.host_mark import HostMark
from insula.manager.notices import ShownNotice
from insula.manager.qt_paint import HOST, MarkBand

TITLE = "Insula"
SHOWN_S = 8.0
MAX_SHOWN = 4
"""At a time; the oldest goes first."""
WIDTH = 360
_GAP = 10
_MARGIN = 16


class NoticeStack:
    def __init__(self, mark: HostMark) -> None:
        self._mark = mark
        self._notices: list[_NoticeWindow] = []

    def add(self, notice: ShownNotice) -> None:
        while len(self._notices) >= MAX_SHOWN:
            self._remove(self._notices[0])
        window = _NoticeWindow(notice, self._mark, self._remove)
        self._notices.append(window)
        self._arrange()
        window.show()

    def _remove(self, window: _NoticeWindow) -> None:
        if window in self._notices:
            self._notices.remove(window)
            window.close()
            window.deleteLater()
            self._arrange()

    def _arrange(self) -> None:
        """From the lower right corner upwards. Where a compositor places windows itself, it does."""
        area = QGuiApplication.primaryScreen().availableGeometry()
        bottom = area.bottom() - _MARGIN
        for window in reversed(self._notices):
            window.adjustSize()
            window.move(area.right() - _MARGIN - window.width(), bottom - window.height())
            bottom -= window.height() + _GAP


class _NoticeWindow(QWidget):
    def __init__(self, notice: ShownNotice, mark: HostMark, remove: Callable[[_NoticeWindow], None]) -> None:
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
        self._remove = remove
        title, text = QLabel(), QLabel()
        for label, content in ((title, notice.title), (text, notice.text)):
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setWordWrap(True)
            label.setText(content)
        font = title.font()
        font.setBold(True)
        title.setFont(font)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(2, 2, 2, 2)
        outer.setSpacing(0)
        heading = "To know" if notice.is_remark else "Denied" if notice.is_refusal else "Allowed"
        outer.addWidget(MarkBand(mark, heading, height=40))
        body = QWidget()
        body.setAutoFillBackground(True)
        column = QVBoxLayout(body)
        column.setContentsMargins(16, 10, 16, 12)
        column.setSpacing(4)
        column.addWidget(title)
        column.addWidget(text)
        outer.addWidget(body)
        self.setAccessibleName(f"{notice.title}: {notice.text}")
        QTimer.singleShot(int(SHOWN_S * 1000), self, lambda: remove(self))

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        painter = QPainter(self)
        painter.fillRect(self.rect(), HOST)
        painter.end()

    def mousePressEvent(self, _event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        """A click puts it away; it answers nothing."""
        self._remove(self)


def _window_type() -> Qt.WindowType:
    """X11: a window that no window manager touches. Wayland has such only beside another window of the same program, so
    there it is one like others."""
    is_wayland = QGuiApplication.platformName().startswith("wayland")
    return Qt.WindowType.Window if is_wayland else Qt.WindowType.ToolTip
