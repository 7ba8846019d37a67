"""What the host draws around a guest's pixels: the qube's colour and name, from what the host knows alone (MC-37)."""

from __future__ import annotations

from PySide6.QtCore import QRect, Qt
from PySide6.QtGui import QColor, QFont, QIcon, QImage, QPaintDevice, QPainter, QPixmap

from insula.gui import tint
from insula.gui.desktop import Icon, Style
from insula.gui.geometry import Rect
from insula.gui.settings import Settings

_TITLE_PIXELS = 13
_NAME_PIXELS = 10
_TEXT_MARGIN = 6


def rect_of(rect: QRect) -> Rect:
    return Rect(rect.x(), rect.y(), rect.width(), rect.height())


def qrect(rect: Rect) -> QRect:
    return QRect(rect.x, rect.y, rect.width, rect.height)


def text_colour(colour: int) -> QColor:
    """Black or white, whichever can be read on it (BT.601 luma)."""
    red, green, blue = colour >> 16, colour >> 8 & 0xFF, colour & 0xFF
    return QColor(Qt.GlobalColor.black if 299 * red + 587 * green + 114 * blue > 140_000 else Qt.GlobalColor.white)


def _font(pixels: int, *, is_bold: bool = False) -> QFont:
    font = QFont("DejaVu Sans")
    font.setPixelSize(pixels)
    font.setBold(is_bold)
    return font


def coloured(icon: Icon, colour: int) -> QImage:
    pixels = tint.tinted(icon, colour)
    return QImage(pixels, icon.width, icon.height, 4 * icon.width, QImage.Format.Format_RGB32).copy()


def qicon(icon: Icon, colour: int) -> QIcon:
    return QIcon(QPixmap.fromImage(coloured(icon, colour)))


_FONTS = ((_NAME_PIXELS, False), (_TITLE_PIXELS, True), (_TITLE_PIXELS, False))


def rehearse() -> None:
    """Use once what is loaded when it is first used: later there is nothing to load it from."""
    image = QImage(64, 32, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    for pixels, is_bold in _FONTS:
        painter.setFont(_font(pixels, is_bold=is_bold))
        painter.drawText(0, 20, "".join(map(chr, range(0x20, 0x7F))))
    painter.end()
    qicon(tint.PLAIN, 0)


def paint_frame(device: QPaintDevice, whole: QRect, inner: QRect, settings: Settings, style: Style, title: str) -> None:
    """The qube's colour around the content, its name on it, and for windows what the guest calls them."""
    above = QRect(0, 0, whole.width(), inner.top())
    below = QRect(0, inner.bottom() + 1, whole.width(), whole.bottom() - inner.bottom())
    left = QRect(0, inner.top(), inner.left(), inner.height())
    right = QRect(inner.right() + 1, inner.top(), whole.right() - inner.right(), inner.height())
    painter = QPainter(device)
    for side in (above, below, left, right):
        painter.fillRect(side, QColor(settings.colour))
    painter.setPen(text_colour(settings.colour))
    alignment = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft
    strip = below if style is Style.POPUP else above
    painter.setClipRect(strip)
    strip = strip.adjusted(_TEXT_MARGIN, 0, -_TEXT_MARGIN, 0)
    if style is Style.ICON:
        pass  # There is no room for a name.
    elif style is Style.POPUP:
        painter.setFont(_font(_NAME_PIXELS))
        painter.drawText(strip, alignment, settings.qube)
    else:
        name = f"[{settings.qube}] "
        painter.setFont(_font(_TITLE_PIXELS, is_bold=True))
        painter.drawText(strip, alignment, name)
        strip = strip.adjusted(painter.fontMetrics().horizontalAdvance(name), 0, 0, 0)
        painter.setFont(_font(_TITLE_PIXELS))
        painter.drawText(strip, alignment, title)
    painter.end()
