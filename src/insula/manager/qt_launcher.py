"""The launcher as a window: a line to type in, and applications of all qubes in the colours of these.

Everything goes by keys: letters filter, the arrows and page keys select, Enter starts, Escape gives up. Leaving the
window gives up, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QAbstractListModel, QEvent, QModelIndex, QObject, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QCloseEvent, QColor, QFont, QFontMetrics, QKeyEvent, QPainter
from PySide6.QtWidgets import (
    QApplication,
    QLabel,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from insula.manager.colours import text_on
from insula.manager.launcher import PAGE, Launcher, View
from insula.manager.menu import Entry
from insula.manager.qt_paint import colour

TITLE = "Insula: start an application"
MAX_TYPED = 80
WIDTH, ROW_HEIGHT, ROWS = 560, 44, 10
_QUBE_WIDTH = 150
_GAP = 12

_Index = QModelIndex | QPersistentModelIndex


def choose(entries: Sequence[Entry]) -> Entry | None:
    """The application that the user starts; None: none."""
    application = QApplication(["insula-menu"])
    application.setDesktopFileName("insula-menu")
    window = _Window(Launcher(entries))
    window.show()
    window.activateWindow()
    application.exec()
    return window.chosen


class _Rows(QAbstractListModel):
    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[Entry, ...] = ()

    def show_rows(self, rows: tuple[Entry, ...]) -> None:
        if rows != self.rows:
            self.beginResetModel()
            self.rows = rows
            self.endResetModel()

    def rowCount(self, _parent: _Index | None = None) -> int:  # noqa: N802 - Qt's name
        return len(self.rows)

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> str | None:
        """What a screen reader says; :class:`_Painter` draws the row."""
        entry = self.rows[index.row()]
        return f"{entry.name}, in {entry.qube}" if role == Qt.ItemDataRole.DisplayRole else None


class _Painter(QStyledItemDelegate):
    """A row: the qube on its label's colour, the application, what it says of itself."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self._rows = rows

    def sizeHint(self, _option: QStyleOptionViewItem, _index: _Index) -> QSize:  # noqa: N802 - Qt's name
        return QSize(WIDTH, ROW_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: _Index) -> None:
        entry = self._rows.rows[index.row()]
        is_selected = bool(option.state & QStyle.StateFlag.State_Selected)
        area: QRect = option.rect
        palette = option.palette
        painter.save()
        painter.fillRect(area, palette.highlight() if is_selected else palette.base())
        badge = QRect(area.left(), area.top() + 1, _QUBE_WIDTH, area.height() - 2)
        painter.fillRect(badge, colour(entry.colour))
        bold = QFont(option.font)
        bold.setBold(True)
        self._text(painter, badge.adjusted(_GAP, 0, -_GAP, 0), entry.qube, bold, colour(text_on(entry.colour)))
        ink = palette.highlightedText().color() if is_selected else palette.text().color()
        words = area.adjusted(_QUBE_WIDTH + _GAP, 0, -_GAP, 0)
        upper = words.adjusted(0, 3, 0, -words.height() // 2) if entry.comment else words
        self._text(painter, upper, entry.name, bold, ink)
        if entry.comment:
            plain = QFont(option.font)
            self._text(painter, words.adjusted(0, words.height() // 2, 0, -3), entry.comment, plain, ink)
        painter.restore()

    @staticmethod
    def _text(painter: QPainter, area: QRect, text: str, font: QFont, ink: QColor) -> None:
        painter.setFont(font)
        painter.setPen(ink)
        shown = QFontMetrics(font).elidedText(text, Qt.TextElideMode.ElideRight, area.width())
        # (drawText takes text as it is: no markup.)
        painter.drawText(area, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, shown)


class _Window(QWidget):
    def __init__(self, launcher: Launcher) -> None:
        super().__init__(None, Qt.WindowType.Dialog | Qt.WindowType.WindowStaysOnTopHint)
        self._launcher = launcher
        self.chosen: Entry | None = None
        self._is_over = False
        self.setWindowTitle(TITLE)
        self.setFixedWidth(WIDTH)
        self._line = QLineEdit()
        self._line.setMaxLength(MAX_TYPED)
        self._line.setPlaceholderText("An application, a qube")
        self._line.setAccessibleName("Parts of the names of an application and of a qube")
        self._rows = _Rows()
        self._list = QListView()
        self._list.setModel(self._rows)
        self._list.setItemDelegate(_Painter(self._rows))
        self._list.setUniformItemSizes(True)
        self._list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._list.setFixedHeight(ROWS * ROW_HEIGHT + 2)
        self._list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._note = QLabel()
        column = QVBoxLayout(self)
        for widget in (self._line, self._list, self._note):
            column.addWidget(widget)
        self._line.textEdited.connect(lambda text: self._render(launcher.typed(text)))
        self._line.installEventFilter(self)
        self._list.clicked.connect(self._clicked)
        self._render(launcher.view)
        self._line.setFocus()

    def _render(self, view: View) -> None:
        self._rows.show_rows(view.rows)
        if view.rows:
            self._list.setCurrentIndex(self._rows.index(view.selected))
        more = f"{view.left_out} more: type another letter" if view.left_out else ""
        self._note.setText("" if view.rows else "Nothing is called so")
        if more:
            self._note.setText(more)

    def _end(self, chosen: Entry | None) -> None:
        """Once: closing it takes its focus away, too."""
        if self._is_over:
            return
        self._is_over = True
        self.chosen = chosen
        self.close()
        QApplication.exit(0)

    def _clicked(self, index: QModelIndex) -> None:
        self._end(self._launcher.select(index.row()).chosen)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        """Keys of the line that are not letters."""
        return (isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress and self._key(event.key())) or (
            super().eventFilter(watched, event)
        )

    def _key(self, key: int) -> bool:
        steps = {
            Qt.Key.Key_Down: 1,
            Qt.Key.Key_Tab: 1,
            Qt.Key.Key_Up: -1,
            Qt.Key.Key_Backtab: -1,
            Qt.Key.Key_PageDown: PAGE,
            Qt.Key.Key_PageUp: -PAGE,
        }
        if key in steps:
            self._render(self._launcher.move(steps[Qt.Key(key)]))
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            if self._launcher.view.chosen is not None:
                self._end(self._launcher.view.chosen)
        elif key == Qt.Key.Key_Escape:
            self._end(None)
        else:
            return False
        return True

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        self._end(None)
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        if event.type() == QEvent.Type.ActivationChange and self.isVisible() and not self.isActiveWindow():
            self._end(None)
        super().changeEvent(event)
