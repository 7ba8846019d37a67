"""What is drawn by hand: the band with the mark of the host, the band in a label's colour, the squares before names."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QIcon, QPainter, QPaintEvent, QPen, QPixmap
from PySide6.QtWidgets import QSizePolicy, QWidget

from insula.manager.colours import text_on
from insula.manager.host_mark import SIDE, HostMark

HOST = QColor(0x16, 0x1A, 0x22)
"""Ground of all that is the host's: no label is like it."""
STRIPE = QColor(0x2A, 0x31, 0x3E)
LIGHT = QColor(0xF2, 0xF4, 0xF8)
DIM = QColor(0xA9, 0xB4, 0xC6)
BORDER = 6
"""Width of the frame in the label's colour, in logical pixels."""
CHIP = 14
_STRIPE_STEP = 14
_MARGIN = 16


def colour(rgb: int) -> QColor:
    return QColor.fromRgb(0xFF000000 | rgb)


def chip(rgb: int, *, is_disposable: bool, scale: float) -> QIcon:
    """A square in a label's colour; that of a disposable is dotted and hollow. ``scale``: of the screen."""
    pixmap = QPixmap(QSize(CHIP, CHIP) * scale)
    pixmap.setDevicePixelRatio(scale)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    square = QRectF(1.5, 1.5, CHIP - 3, CHIP - 3)
    if is_disposable:
        painter.setPen(QPen(colour(rgb), 2.5, Qt.PenStyle.DotLine))
        painter.drawRoundedRect(square, 2, 2)
    else:
        painter.setPen(QPen(QColor(0x80, 0x80, 0x80), 1))
        painter.setBrush(colour(rgb))
        painter.drawRoundedRect(square, 2, 2)
    painter.end()
    icon = QIcon()
    # In every mode the same: a label's colour is never tinted by a selection or made grey.
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Selected, QIcon.Mode.Disabled):
        icon.addPixmap(pixmap, mode)
    return icon


class MarkBand(QWidget):
    """The picture and the words that no qube knows, on stripes."""

    def __init__(self, mark: HostMark, title: str, *, height: int = 58) -> None:
        super().__init__()
        self._mark = mark
        self._title = title
        self.setFixedHeight(height)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(f"{title}. The mark of this computer: {mark.words}")

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(self.rect())
        painter.fillRect(area, HOST)
        painter.setPen(QPen(STRIPE, 3))
        for x in range(-self.height(), self.width(), _STRIPE_STEP):
            painter.drawLine(QPointF(x, self.height()), QPointF(x + self.height(), 0))
        side = self.height() - 2 * 10
        self._paint_picture(painter, QRectF(_MARGIN, 10, side, side))
        self._paint_texts(painter, area.adjusted(_MARGIN + side + 14, 0, -_MARGIN, 0))
        painter.end()

    def _paint_picture(self, painter: QPainter, square: QRectF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(HOST)
        painter.drawRoundedRect(square.adjusted(-4, -4, 4, 4), 4, 4)
        painter.setBrush(LIGHT)
        cell = square.width() / SIDE
        # Cells that touch must not show a seam between them.
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        for row, filled in enumerate(self._mark.cells):
            for column, is_filled in enumerate(filled):
                if is_filled:
                    left, top = square.left() + column * cell, square.top() + row * cell
                    painter.drawRect(QRectF(left, top, cell, cell).toAlignedRect())
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)

    def _paint_texts(self, painter: QPainter, area: QRectF) -> None:
        font = QFont(self.font())
        font.setBold(True)
        font.setPointSizeF(font.pointSizeF() * 1.15)
        _paint_text(painter, font, LIGHT, area, self._title, Qt.AlignmentFlag.AlignLeft)
        words = QFont(self.font())
        words.setItalic(True)
        _paint_text(painter, words, DIM, area, self._mark.words, Qt.AlignmentFlag.AlignRight)


def _paint_text(
    painter: QPainter, font: QFont, ink: QColor, area: QRectF, text: str, alignment: Qt.AlignmentFlag
) -> None:
    """On a ground of its own, so that stripes do not run through letters."""
    metrics = QFontMetricsF(font)
    width = metrics.horizontalAdvance(text) + 14
    left = area.left() - 7 if alignment is Qt.AlignmentFlag.AlignLeft else area.right() - width + 7
    height = metrics.height() + 6
    ground = QRectF(left, area.center().y() - height / 2, width, height)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(HOST)
    painter.drawRoundedRect(ground, 4, 4)
    painter.setFont(font)
    painter.setPen(ink)
    painter.drawText(ground, Qt.AlignmentFlag.AlignCenter, text)


class SourceBand(QWidget):
    """The name of the qube that asks, on its label's colour."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._note = ""
        self._rgb = 0
        self.setFixedHeight(52)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set_source(self, name: str, note: str, rgb: int) -> None:
        self._name, self._note, self._rgb = name, note, rgb
        self.setAccessibleName(f"{name}, {note}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        painter = QPainter(self)
        painter.fillRect(self.rect(), colour(self._rgb))
        ink = colour(text_on(self._rgb))
        area = QRectF(self.rect()).adjusted(_MARGIN - BORDER, 0, -_MARGIN + BORDER, 0)
        font = QFont(self.font())
        font.setBold(True)
        font.setPointSizeF(font.pointSizeF() * 1.5)
        note = QFont(self.font())
        note_width = QFontMetricsF(note).horizontalAdvance(self._note) + 12
        painter.setPen(ink)
        painter.setFont(font)
        name_area = area.adjusted(0, 0, -note_width, 0)
        name = QFontMetricsF(font).elidedText(self._name, Qt.TextElideMode.ElideMiddle, name_area.width())
        painter.drawText(name_area, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, name)
        painter.setFont(note)
        painter.drawText(area, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, self._note)
        painter.end()
