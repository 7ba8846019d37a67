"""The window that shows a :class:`~insula.manager.prompt.View` and sends what is done to it. It decides nothing.

All that reaches the window before its question is armed is taken away from Qt's own widgets, except presses of *Deny*,
and told to the machine as :class:`~insula.manager.prompt.InputSeen`; the widgets that could answer are disabled
besides, so that a press by way of the accessibility bus does nothing either. Enter never answers; Space does on the
button that has the focus, to which Tab has to be pressed on purpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, QPoint, QRect, QSize, Qt
from PySide6.QtGui import QCloseEvent, QColor, QCursor, QKeyEvent, QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from insula.manager import wording
from insula.manager.colours import Colours
from insula.manager.host_mark import HostMark
from insula.manager.prompt import (
    MAX_FILTER,
    AllowPressed,
    DenyAllPressed,
    DenyPressed,
    EscapePressed,
    Event,
    FilterTyped,
    FocusChanged,
    InputSeen,
    TargetChosen,
    View,
)
from insula.manager.qt_paint import BORDER, CHIP, MarkBand, SourceBand, chip, colour

TITLE = "Insula asks"
WIDTH = 560
ROWS_SHOWN = 7
_ROW_PADDING = 9
_PADDING = 16
_TITLE_WIDTH = 76
"""Of the column "Service", "Argument", "Command"."""
_TEXT_WIDTH = WIDTH - 2 * BORDER - 2 * _PADDING
_BUTTONS_HEIGHT = 110
"""Of the lower part of the window, where its buttons are."""
_DECORATION = 40
"""What a window manager may move the window by, to put a frame around it."""
_BREAK_EVERY = 8
"""Characters after which a word may be broken, so that a long one does not leave the window."""
FILTER_FROM = 6
"""Targets from which on there is a field to filter them."""
_TARGET = Qt.ItemDataRole.UserRole

_INPUT = frozenset(
    {
        QEvent.Type.KeyPress,
        QEvent.Type.ShortcutOverride,
        QEvent.Type.Shortcut,
        QEvent.Type.MouseButtonPress,
        QEvent.Type.MouseButtonDblClick,
        QEvent.Type.TouchBegin,
        QEvent.Type.TabletPress,
        QEvent.Type.InputMethod,
        QEvent.Type.Drop,
    }
)
_ENTER = frozenset({Qt.Key.Key_Return, Qt.Key.Key_Enter})


class PromptDialog(QWidget):
    def __init__(self, mark: HostMark, colours: Colours, send: Callable[[Event], None]) -> None:
        super().__init__(
            None,
            Qt.WindowType.Dialog
            | Qt.WindowType.WindowStaysOnTopHint
            | Qt.WindowType.CustomizeWindowHint
            | Qt.WindowType.WindowTitleHint
            | Qt.WindowType.WindowCloseButtonHint,
        )
        self._colours = colours
        self._send = send
        self._view: View | None = None
        self._is_rendering = False
        self._rows: tuple[str, ...] | None = None
        """Targets the list holds."""
        self.setWindowTitle(TITLE)

        self._rgb = 0
        """Of the frame: the label's colour of the qube that asks."""
        self._source = SourceBand()
        self._purpose = _text(bold=True, scale=1.1)
        self._details = QGridLayout()
        self._details.setHorizontalSpacing(12)
        self._details.setVerticalSpacing(4)
        self._details.setColumnStretch(1, 1)
        self._service = self._detail(0, "Service")
        self._argument = self._detail(1, "Argument")
        self._command = self._detail(2, "Command")
        self._risk = _warning()
        self._filter = self._make_filter()
        self._list = self._make_list()
        self._note = _text()
        self._status = _text()
        self._waiting = _text()
        self._waiting.setWordWrap(False)
        self._deny_all = self._make_button("Deny all of its questions", DenyAllPressed())
        self._deny = self._make_button("Deny", DenyPressed())
        self._allow = self._make_button("Allow", AllowPressed())
        self._arrange(mark)
        application = QApplication.instance()
        assert application is not None
        application.installEventFilter(self)

    # what is shown

    def render_view(self, view: View) -> None:
        self._is_rendering = True
        try:
            self._render(view)
        finally:
            self._is_rendering = False

    def _render(self, view: View) -> None:
        is_new = self._view is None or self._view.number != view.number
        is_armed_now = view.is_armed and not (self._view is not None and self._view.is_armed)
        self._view = view
        if is_new:
            self._render_question(view)
        if self._filter.text() != view.filter_text:
            self._filter.setText(view.filter_text)
        if view.targets != self._rows:
            self._render_targets(view)
        self._render_selection(view)
        self._render_state(view)
        if is_armed_now:
            # What was disabled lost the focus; never does it begin on a button.
            (self._filter if self._filter.isVisibleTo(self) else self._list).setFocus()
            if view.selected is None:
                # A list that gets the focus marks its first row, which looks as if it were chosen.
                self._list.selectionModel().clearCurrentIndex()

    def present(self) -> None:
        """In the middle of the screen, on top, with the focus if the desktop gives it."""
        for widget in (self._body, self):  # what is hidden computes its size late, from the inside out
            layout = widget.layout()
            assert layout is not None
            layout.invalidate()
            layout.activate()
        self.move(_place(self.screen().availableGeometry(), self.sizeHint(), QCursor.pos()))
        self.show()
        self.raise_()
        self.activateWindow()

    def recolour(self) -> None:
        """Colours were learnt."""
        if self._view is not None:
            self._rows = None
            self._render_question(self._view)
            self.render_view(self._view)

    def forget(self) -> None:
        """Nothing is shown any more."""
        self._view = None
        self._rows = None
        self.hide()

    def _render_question(self, view: View) -> None:
        question = view.question
        rgb = self._colours.of_icon(question.icons.get(question.source, ""))
        label = wording.label_of(question.icons.get(question.source, ""))
        self._source.set_source(question.source, "no label" if label is None else f"label: {label}", rgb)
        self._rgb = rgb
        self.update()
        purpose = wording.purpose_of(question.service)
        _set_text(self._purpose, f"asks to {purpose.text}", _TEXT_WIDTH)
        self._set_detail(self._service, wording.shortened(question.service))
        command = wording.command_of(question)
        self._set_detail(self._command, "" if command is None else wording.shortened(command))
        self._set_detail(self._argument, wording.shown_argument(question.argument) if command is None else "")
        _set_text(self._risk, purpose.risk, _TEXT_WIDTH)
        self._filter.setVisible(len(question.targets) >= FILTER_FROM)
        self._rows = None
        self.setAccessibleName(f"{TITLE}: {question.source} asks to {purpose.text}")

    def _render_targets(self, view: View) -> None:
        self._rows = view.targets
        self._list.clear()
        for target in view.targets:
            icon = view.question.icons.get(target, "")
            item = QListWidgetItem(
                chip(
                    self._colours.of_icon(icon),
                    is_disposable=target.startswith("@dispvm"),
                    scale=self.devicePixelRatioF(),
                ),
                wording.target_title(target),
            )
            item.setData(_TARGET, target)
            item.setSizeHint(QSize(0, self._row_height()))
            self._list.addItem(item)
        rows = min(len(view.question.targets), ROWS_SHOWN)
        row_height = self._row_height() + 2 * self._list.spacing()
        self._list.setFixedHeight(rows * row_height + 2 * self._list.frameWidth() + 2)

    def _row_height(self) -> int:
        return max(CHIP, self.fontMetrics().height()) + _ROW_PADDING

    def _render_selection(self, view: View) -> None:
        if view.selected is None:
            self._list.clearSelection()
            self._list.setCurrentRow(-1)
        else:
            self._list.setCurrentRow(view.targets.index(view.selected))
        note = "" if view.selected is None else wording.target_note(view.selected)
        _set_text(self._note, note, _TEXT_WIDTH)

    def _render_state(self, view: View) -> None:
        self._list.setEnabled(view.is_armed)
        self._filter.setEnabled(view.is_armed)
        self._allow.setEnabled(view.may_allow)
        self._status.setText(_status(view))
        self._waiting.setText(_waiting(view))
        self._deny_all.setVisible(view.waiting_of_source > 0)
        self._waiting.setVisible(view.waiting > 0)

    # what is done to it

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        kind = event.type()
        if kind not in _INPUT or self._view is None or not self._is_mine(watched):
            return False
        if isinstance(event, QKeyEvent) and kind is QEvent.Type.KeyPress:
            if event.key() == Qt.Key.Key_Escape:
                self._send(EscapePressed())
                return True
            if event.key() in _ENTER:
                self._send(InputSeen())
                return True
            if (
                event.key() == Qt.Key.Key_Down
                and watched is self._filter
                and self._view.is_armed
                and self._list.count()
            ):
                self._list.setFocus()
                self._list.setCurrentRow(0)
                return True
        is_deny = watched in (self._deny, self._deny_all) and not isinstance(event, QKeyEvent)
        if self._view.is_armed or is_deny:
            return False
        if kind is not QEvent.Type.ShortcutOverride:  # a key press follows it
            self._send(InputSeen())
        return True

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        """The frame; all else covers it."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), colour(self._rgb))
        painter.end()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        if event.type() is QEvent.Type.ActivationChange:
            self._send(FocusChanged(self.isActiveWindow()))
        super().changeEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        event.ignore()
        self._send(DenyPressed())

    def _filter_changed(self, text: str) -> None:
        if not self._is_rendering:
            self._send(FilterTyped(text))

    def _selected(self) -> None:
        if self._is_rendering or self._view is None:
            return
        items = self._list.selectedItems()
        if items:
            self._send(TargetChosen(str(items[0].data(_TARGET))))

    def _is_mine(self, watched: QObject) -> bool:
        return isinstance(watched, QWidget) and watched.window() is self

    # how it is built

    def _make_list(self) -> QListWidget:
        made = QListWidget()
        made.setAccessibleName("Targets")
        made.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        made.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        made.setUniformItemSizes(True)
        made.setSpacing(1)
        made.itemSelectionChanged.connect(self._selected)
        return made

    def _make_filter(self) -> QLineEdit:
        made = QLineEdit()
        made.setMaxLength(MAX_FILTER)
        made.setPlaceholderText("Type part of a name")
        made.setAccessibleName("Filter the targets")
        made.setClearButtonEnabled(True)
        made.textChanged.connect(self._filter_changed)
        return made

    def _make_button(self, text: str, event: Event) -> QPushButton:
        made = QPushButton(text)
        made.setAutoDefault(False)
        made.setMinimumSize(104, 34)
        made.clicked.connect(lambda _checked=False: self._send(event))
        return made

    def _arrange(self, mark: HostMark) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(MarkBand(mark, TITLE))
        framed = QVBoxLayout()
        framed.setContentsMargins(BORDER, 0, BORDER, BORDER)
        framed.setSpacing(0)
        framed.addWidget(self._source)
        self._body = body = QWidget()
        body.setAutoFillBackground(True)
        body.setFixedWidth(WIDTH - 2 * BORDER)
        framed.addWidget(body)
        outer.addLayout(framed)
        heading = _text("Which qube may it use?")
        heading.setBuddy(self._list)
        self._status.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        column = QVBoxLayout(body)
        column.setContentsMargins(_PADDING, 14, _PADDING, 14)
        column.setSpacing(10)
        column.addWidget(self._purpose)
        column.addLayout(self._details)
        column.addWidget(self._risk)
        column.addSpacing(2)
        column.addWidget(heading)
        column.addWidget(self._filter)
        column.addWidget(self._list)
        column.addWidget(self._note)
        buttons = QHBoxLayout()
        buttons.setSpacing(10)
        buttons.addWidget(self._status)
        buttons.addWidget(self._deny)
        buttons.addWidget(self._allow)
        # Their place stays while nothing waits: were the buttons to move when a question comes or is withdrawn, a guest
        # could put Allow under a click that was meant for another button.
        for widget in (self._waiting, self._deny_all):
            policy = widget.sizePolicy()
            policy.setRetainSizeWhenHidden(True)
            widget.setSizePolicy(policy)
        others = QHBoxLayout()
        others.addWidget(self._waiting)
        others.addStretch()
        others.addWidget(self._deny_all)
        column.addLayout(others)
        column.addLayout(buttons)
        outer.setSizeConstraint(QVBoxLayout.SizeConstraint.SetFixedSize)
        order: list[QWidget] = [self._filter, self._list, self._deny_all, self._deny, self._allow]
        for before, after in itertools.pairwise(order):
            QWidget.setTabOrder(before, after)

    def _detail(self, row: int, name: str) -> tuple[QLabel, QLabel]:
        title, value = _text(name), _text()
        title.setForegroundRole(QPalette.ColorRole.PlaceholderText)
        title.setFixedWidth(_TITLE_WIDTH)
        value.setAccessibleName(name)
        self._details.addWidget(title, row, 0, Qt.AlignmentFlag.AlignTop)
        self._details.addWidget(value, row, 1)
        return title, value

    def _set_detail(self, detail: tuple[QLabel, QLabel], text: str) -> None:
        title, value = detail
        title.setVisible(bool(text))
        _set_text(value, text, _TEXT_WIDTH - _TITLE_WIDTH - self._details.horizontalSpacing())


def _place(area: QRect, size: QSize, pointer: QPoint) -> QPoint:
    """The middle of the screen, but never with the buttons under the pointer: somebody who was told to click there in a
    moment would click on one of them (MC-32). Window managers follow it, compositors do what they want.
    """
    corner = area.center() - QPoint(size.width() // 2, size.height() // 2)
    buttons = QRect(corner + QPoint(0, size.height() - _BUTTONS_HEIGHT), QSize(size.width(), _BUTTONS_HEIGHT))
    if not buttons.adjusted(-_DECORATION, -_DECORATION, _DECORATION, _DECORATION).contains(pointer):
        return corner
    step = QPoint(0, _BUTTONS_HEIGHT + 2 * _DECORATION)
    has_room_above = corner.y() - step.y() >= area.top()
    return corner - step if has_room_above else corner + step


def _text(text: str = "", *, bold: bool = False, scale: float = 1.0) -> QLabel:
    """Plain text whatever is in it: nothing of a request is ever read as markup."""
    label = QLabel()
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setText(text)
    font = label.font()
    font.setBold(bold)
    font.setPointSizeF(font.pointSizeF() * scale)
    label.setFont(font)
    return label


def _set_text(label: QLabel, text: str, width: int) -> None:
    """Of a fixed width and the height that takes; hidden if there is none."""
    words = []
    for word in text.split(" "):
        parts = [word[at : at + _BREAK_EVERY] for at in range(0, len(word), _BREAK_EVERY)]
        words.append("\u200b".join(parts))  # which is seen as nothing
    label.setText(" ".join(words))
    label.setVisible(bool(text))
    if text:
        label.setFixedSize(width, label.heightForWidth(width))


def _warning() -> QLabel:
    label = _text()
    label.setContentsMargins(10, 8, 10, 8)
    label.setAutoFillBackground(True)
    palette = label.palette()
    palette.setColor(QPalette.ColorRole.Window, QColor(0xFF, 0xF3, 0xCD))
    palette.setColor(QPalette.ColorRole.WindowText, QColor(0x5C, 0x43, 0x00))
    label.setPalette(palette)
    return label


def _status(view: View) -> str:
    if not view.has_focus:
        return "Click into this window to answer."
    if not view.is_armed:
        return "One moment: read first."
    if view.selected is None:
        return "Choose a qube."
    return "Allows this one call."


def _waiting(view: View) -> str:
    return f"{view.waiting} more question{'' if view.waiting == 1 else 's'} wait{'s' if view.waiting == 1 else ''}."
