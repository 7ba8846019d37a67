"""One window of a guest on a Qt desktop: a frame the host draws, and within it the guest's pixels.

The pixels are painted straight from the frame memory, by the X server itself where it can
(:mod:`insula.gui.backend.x_pictures`), and within the inner rectangle only: whatever the guest sends, the frame is
painted by :meth:`QtWindow._paint` alone, from what the host knows (MC-37). Only damaged rectangles are painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QPoint, QRect, QSize, Qt
from PySide6.QtGui import (
    QBackingStore,
    QCloseEvent,
    QColor,
    QCursor,
    QExposeEvent,
    QFocusEvent,
    QImage,
    QKeyEvent,
    QMouseEvent,
    QMoveEvent,
    QPainter,
    QRegion,
    QResizeEvent,
    QSurface,
    QWheelEvent,
    QWindow,
)

from insula.gui import tint, titles
from insula.gui.backend.keys_down import KeysDown
from insula.gui.backend.qt_frame import coloured, paint_frame, qicon, qrect, rect_of
from insula.gui.backend.tray import Tray
from insula.gui.backend.x_pictures import XPictures
from insula.gui.desktop import (
    ButtonChanged,
    CloseRequested,
    Event,
    Exposed,
    FocusGained,
    FocusLost,
    Icon,
    KeyChanged,
    Moved,
    Obscured,
    Picture,
    PointerCrossed,
    PointerMoved,
    Role,
    Show,
    SizeHints,
    State,
    StateChanged,
    Style,
    Undocked,
)
from insula.gui.frame_memory import FrameMemory
from insula.gui.geometry import Rect
from insula.gui.settings import ALT, CONTROL, SHIFT, SUPER, Settings
from insula_proto import gui, limits

MIN_CONTENT = 1
_ICON_SIDE = 24
"""Of an icon in the tray with its frame: what a tray is asked for, whatever the guest would like."""
_WHEEL_STEP = 120
"""Eighths of a degree, times fifteen: one click of an ordinary wheel (QWheelEvent)."""
MAX_WHEEL_CLICKS = 20
"""Of one event; smooth wheels spin fast."""

_BUTTONS = {
    Qt.MouseButton.LeftButton: (1, 0x100),
    Qt.MouseButton.MiddleButton: (2, 0x200),
    Qt.MouseButton.RightButton: (3, 0x400),
    Qt.MouseButton.BackButton: (8, 0),
    Qt.MouseButton.ForwardButton: (9, 0),
}
"""X number and bit in the mask."""
_MODIFIERS = {
    Qt.KeyboardModifier.ShiftModifier: SHIFT,
    Qt.KeyboardModifier.ControlModifier: CONTROL,
    Qt.KeyboardModifier.AltModifier: ALT,
    Qt.KeyboardModifier.MetaModifier: SUPER,
}
_TYPES = {
    Role.NORMAL: Qt.WindowType.Window,
    Role.DIALOG: Qt.WindowType.Dialog,
    Role.UTILITY: Qt.WindowType.Tool,
}
_KEY_PRESS, _KEY_RELEASE, _LEAVE = QEvent.Type.KeyPress, QEvent.Type.KeyRelease, QEvent.Type.Leave
_SHAPES = {
    34: Qt.CursorShape.CrossCursor,
    52: Qt.CursorShape.SizeAllCursor,
    58: Qt.CursorShape.PointingHandCursor,
    60: Qt.CursorShape.PointingHandCursor,
    92: Qt.CursorShape.WhatsThisCursor,
    108: Qt.CursorShape.SizeHorCursor,
    116: Qt.CursorShape.SizeVerCursor,
    150: Qt.CursorShape.WaitCursor,
    152: Qt.CursorShape.IBeamCursor,
    12: Qt.CursorShape.SizeBDiagCursor,
    14: Qt.CursorShape.SizeFDiagCursor,
    134: Qt.CursorShape.SizeFDiagCursor,
    136: Qt.CursorShape.SizeBDiagCursor,
    70: Qt.CursorShape.SizeHorCursor,
    96: Qt.CursorShape.SizeHorCursor,
    138: Qt.CursorShape.SizeVerCursor,
    16: Qt.CursorShape.SizeVerCursor,
}
"""Of X's cursor font (cursorfont.h); others are shown as the arrow."""


@dataclass(frozen=True)
class Surroundings:
    """What all windows of a qube have in common."""

    settings: Settings
    memory: FrameMemory
    happened: Callable[[Event], None]
    held_keys: Callable[[], frozenset[int]]
    """X key codes that are down, whoever saw them pressed."""
    set_class: Callable[[QtWindow, str, str], None]
    """Say of a window that is not shown yet which class and instance it is."""
    pictures: XPictures | None
    """Who copies pixels, if it is not to be done here."""
    tray: Tray | None
    """None: the desktop has none that could be used."""


class QtWindow(QWindow):
    _store_size = (0, 0)
    """Of the backing store; Qt would make an object of it for each picture."""

    def __init__(self, command: Show, surroundings: Surroundings, parent: QtWindow | None) -> None:
        super().__init__()
        self._number = command.window
        self._style = command.style
        self._frame = command.style.frame
        self._settings = surroundings.settings
        self._memory = surroundings.memory
        self._happened = surroundings.happened
        self._tray = surroundings.tray
        self._title = command.title
        self._pictures = surroundings.pictures
        self._picture: Picture | None = None
        self._is_servers = False
        """Whether the X server copies the pixels."""
        self._image: QImage | None = None
        self._pixels: memoryview | None = None
        self._is_exposed = False
        self._is_pointer_inside = False
        self._is_gone = False
        self._wheel = QPoint()
        self._pointer = QPoint()
        """Relative to the content, as far as events said."""
        self._keys = KeysDown(surroundings.held_keys)
        self.setSurfaceType(QSurface.SurfaceType.RasterSurface)
        self._relate(command, parent)
        self._store = QBackingStore(self)
        self.set_title(command.title)
        if command.style is Style.ICON:
            self.setMinimumSize(QSize(_ICON_SIDE, _ICON_SIDE))
        else:
            self.set_hints(command.hints)
        if command.style is Style.WINDOW:
            self.set_icon(None)
        outer = self._frame.around(command.place)
        if command.style is Style.ICON:
            self.resize(_ICON_SIDE, _ICON_SIDE)
        elif command.is_positioned:
            self.setGeometry(qrect(outer))
        else:
            self.resize(outer.width, outer.height)
        if not command.may_focus:
            # (As QWidget's attribute of that name: the platform plug-in asks for this property.)
            self.setProperty("_q_showWithoutActivating", True)
        self.windowStateChanged.connect(self._state_changed)
        if command.style is Style.ICON:
            self._dock()
            return
        self.set_state(command.state)
        surroundings.set_class(self, command.class_name, command.instance)
        self._is_servers = self._pictures is not None and self._pictures.fits(int(self.winId()))
        self.setVisible(True)

    def _relate(self, command: Show, parent: QtWindow | None) -> None:
        """Be what it is, and another window's."""
        if command.style is Style.POPUP:
            # Not Popup: that would grab pointer and keyboard on the host.
            self.setFlags(
                Qt.WindowType.ToolTip
                | Qt.WindowType.FramelessWindowHint
                | Qt.WindowType.WindowDoesNotAcceptFocus
                | Qt.WindowType.NoDropShadowWindowHint
            )
        elif command.style is Style.ICON:
            # The tray is its window manager.
            self.setFlags(
                Qt.WindowType.Window
                | Qt.WindowType.FramelessWindowHint
                | Qt.WindowType.X11BypassWindowManagerHint
                | Qt.WindowType.WindowDoesNotAcceptFocus
            )
        elif parent is not None:
            self.setFlags(_TYPES[command.role])
        if parent is not None:
            self.setTransientParent(parent)
            if command.is_modal:
                # (Qt keeps input from the window that waits, as the program in the guest does.)
                self.setModality(Qt.WindowModality.WindowModal)

    def _dock(self) -> None:
        """Ask the tray to show it."""
        self.create()
        if self._tray is None or not self._tray.dock(int(self.winId())):
            self._happened(Undocked(self._number))

    # --- commands ------------------------------------------------------------------------------------------------

    def vanish(self) -> None:
        """Go from the desktop, and let go of the frame memory."""
        self._is_gone = True
        self.windowStateChanged.disconnect(self._state_changed)
        self.set_picture(None)
        self.destroy()
        self.deleteLater()

    def move(self, place: Rect) -> None:
        self.setGeometry(qrect(self._frame.around(place)))

    def set_title(self, title: str) -> None:
        self._title = title
        self.setTitle(titles.with_qube(self._settings.qube, title))
        self._paint([], with_frame=True)

    def set_hints(self, hints: SizeHints) -> None:
        frame = self._frame.around(Rect(0, 0, 0, 0))
        width, height = hints.minimum or (MIN_CONTENT, MIN_CONTENT)
        self.setMinimumSize(QSize(max(1, width) + frame.width, max(1, height) + frame.height))
        width, height = hints.maximum or (limits.GUI_MAX_WIDTH, limits.GUI_MAX_HEIGHT)
        self.setMaximumSize(QSize(width + frame.width, height + frame.height))
        self.setSizeIncrement(QSize(*(hints.increment or (0, 0))))
        width, height = hints.base or (0, 0)
        self.setBaseSize(QSize(width + frame.width, height + frame.height) if hints.base else QSize())

    def set_state(self, state: State) -> None:
        states = Qt.WindowState.WindowNoState
        if state.is_fullscreen:
            states |= Qt.WindowState.WindowFullScreen
        if state.is_maximised:
            states |= Qt.WindowState.WindowMaximized
        if state.is_minimised:
            states |= Qt.WindowState.WindowMinimized
        if states != self.windowStates():
            self.setWindowStates(states)
        if state.wants_attention:
            self.alert(0)

    def set_picture(self, picture: Picture | None) -> None:
        """Look there from now on."""
        self._image = None
        if self._pixels is not None:
            self._pixels.release()
            self._pixels = None
        self._picture = picture
        if picture is not None and not self._is_servers:
            self._pixels = self._memory.view(picture)
            row = picture.width * limits.GUI_BYTES_PER_PIXEL
            self._image = QImage(self._pixels, picture.width, picture.height, row, QImage.Format.Format_RGB32)

    def set_icon(self, icon: Icon | None) -> None:
        self.setIcon(qicon(icon or tint.PLAIN, self._settings.colour))

    def set_cursor(self, cursor: int) -> None:
        self.setCursor(QCursor(_SHAPES.get(cursor - gui.CURSOR_FONT, Qt.CursorShape.ArrowCursor)))

    def paint(self, rects: Sequence[Rect]) -> None:
        """Paint these parts of the content."""
        inner = self._content
        moved = [Rect(rect.x + inner.x, rect.y + inner.y, rect.width, rect.height) for rect in rects]
        parts = [rect if inner.contains(rect) else rect.intersection(inner) for rect in moved]
        self._paint([part for part in parts if not part.is_empty])

    # --- painting ------------------------------------------------------------------------------------------------

    @property
    def _whole(self) -> QRect:
        return QRect(0, 0, self.width(), self.height())

    @property
    def _content(self) -> Rect:
        """Where the content is."""
        return self._frame.inside(Rect(0, 0, self.width(), self.height()))

    @property
    def _inner(self) -> QRect:
        """As :attr:`_content`, for Qt."""
        return qrect(self._content)

    def _paint_all(self) -> None:
        self._paint([self._content], with_frame=True)

    def _paint(self, parts: Sequence[Rect], *, with_frame: bool = False) -> None:
        """Paint parts of the content, in the window's coordinates; each by itself: for a clip that is no rectangle Qt
        would share the work between threads, and none can be made here."""
        if not self._is_exposed or self._is_gone or not (parts or with_frame):
            return
        size = (self.width(), self.height())
        if self._store_size != size:
            self._store.resize(self.size())
            self._store_size = size
            parts, with_frame = [self._content], True
        put, drawn = self._split(parts, self._content)
        if drawn or with_frame:
            self._draw([qrect(part) for part in drawn], with_frame=with_frame)
        if put and self._pictures is not None and self._picture is not None:
            self._pictures.put(int(self.winId()), self._picture, put)

    def _split(self, parts: Sequence[Rect], inner: Rect) -> tuple[list[tuple[Rect, int, int]], Sequence[Rect]]:
        """What the X server copies (which part of the picture, to where), and what is drawn here."""
        picture = self._picture
        if self._pictures is None or picture is None or not self._is_servers:
            return [], parts
        there = Rect(inner.x, inner.y, picture.width, picture.height).intersection(inner)
        put: list[tuple[Rect, int, int]] = []
        drawn: list[Rect] = []
        for part in parts:
            is_whole = there.contains(part)
            shown = part if is_whole else part.intersection(there)
            if not shown.is_empty:
                put.append((Rect(shown.x - inner.x, shown.y - inner.y, shown.width, shown.height), shown.x, shown.y))
            if not is_whole:
                drawn += part.without(shown)
        return put, drawn

    def _draw(self, parts: Sequence[QRect], *, with_frame: bool) -> None:
        region = QRegion(self._whole) - QRegion(self._inner) if with_frame else QRegion()
        for part in parts:
            region += part
        self._store.beginPaint(region)
        device = self._store.paintDevice()
        if with_frame:
            paint_frame(device, self._whole, self._inner, self._settings, self._style, self._title)
        painter = QPainter(device)
        painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_Source)
        for part in parts:
            painter.setClipRect(part)
            self._draw_content(painter, part)
        painter.end()
        self._store.endPaint()
        self._store.flush(region)

    def _draw_content(self, painter: QPainter, part: QRect) -> None:
        corner = self._inner.topLeft()
        shown = QRect(corner, self._image.size()) & part if self._image is not None else QRect()
        if shown != part:
            painter.fillRect(part, QColor(self._settings.background))
        if self._image is not None and not shown.isEmpty():
            image = self._tinted(self._image) if self._style is Style.ICON else self._image
            painter.drawImage(shown.topLeft(), image, shown.translated(-corner))

    def _tinted(self, image: QImage) -> QImage:
        """An icon has its qube's colour, in the tray as anywhere (MC-40)."""
        width, height = image.width(), image.height()
        if width > limits.GUI_MAX_ICON or height > limits.GUI_MAX_ICON or self._pixels is None:
            plain = QImage(image.size(), QImage.Format.Format_RGB32)
            plain.fill(QColor(self._settings.colour))
            return plain
        opaque = bytearray(self._pixels)
        opaque[3::4] = b"\xff" * (width * height)
        return coloured(Icon(width, height, bytes(opaque)), self._settings.colour)

    # --- events of the toolkit -----------------------------------------------------------------------------------

    def exposeEvent(self, event: QExposeEvent) -> None:
        if self._is_gone:
            return
        if not self.isExposed():
            if self._is_exposed:
                self._is_exposed = False
                is_icon = self._style is Style.ICON
                self._happened(Undocked(self._number) if is_icon else Obscured(self._number))
            return
        if not self._is_exposed:
            self._is_exposed = True
            self._paint_all()
            self._happened(Exposed(self._number))
            if self._style is Style.ICON:
                self._tell_place()
        else:
            self._paint_all()

    def _tell_place(self) -> None:
        if self._is_gone:
            return
        outer = rect_of(self.geometry())
        if self._style is Style.ICON:
            corner = self._tray.place(int(self.winId())) if self._tray is not None and self._is_exposed else None
            if corner is None:
                return
            outer = Rect(*corner, outer.width, outer.height)
        elif not self.isVisible():
            return
        self._happened(Moved(self._number, self._frame.inside(outer)))

    def moveEvent(self, event: QMoveEvent) -> None:
        self._tell_place()

    def resizeEvent(self, event: QResizeEvent) -> None:
        self._tell_place()

    def _state_changed(self, _: Qt.WindowState) -> None:
        states = self.windowStates()
        self._happened(
            StateChanged(
                self._number,
                State(
                    is_fullscreen=bool(states & Qt.WindowState.WindowFullScreen),
                    is_maximised=bool(states & Qt.WindowState.WindowMaximized),
                    is_minimised=bool(states & Qt.WindowState.WindowMinimized),
                ),
            )
        )

    def closeEvent(self, event: QCloseEvent) -> None:
        """The guest's program decides; it may ask whether to save."""
        event.ignore()
        self._happened(CloseRequested(self._number))

    def focusInEvent(self, event: QFocusEvent) -> None:
        if self._style is Style.ICON:
            return  # it may not have it, whatever the tray does
        self._happened(FocusGained(self._number, self._keys.gain()))

    def focusOutEvent(self, event: QFocusEvent) -> None:
        self._keys.lose()
        if not self._is_gone:
            self._happened(FocusLost(self._number))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        self._keys.press(event.nativeScanCode(), event.timestamp(), is_repeat=event.isAutoRepeat())
        self._key(event, is_press=True)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        if not event.isAutoRepeat() and self._keys.is_release(event.nativeScanCode(), event.timestamp()):
            self._key(event, is_press=False)

    def _key(self, event: QKeyEvent, *, is_press: bool) -> None:
        key = event.key()
        symbol = chr(key).lower() if 0x20 <= key < 0x7F else ""
        pointer = self._pointer
        self._happened(
            KeyChanged(
                self._number,
                is_press,
                event.nativeScanCode(),
                symbol,
                event.nativeModifiers(),
                pointer.x(),
                pointer.y(),
                event.isAutoRepeat(),
                event.timestamp() & 0xFFFFFFFF,
            )
        )

    @staticmethod
    def _mask(event: QMouseEvent | QWheelEvent, without: Qt.MouseButton = Qt.MouseButton.NoButton) -> int:
        """X's mask before the event."""
        mask = 0
        for modifier, bit in _MODIFIERS.items():
            mask |= bit if event.modifiers() & modifier else 0
        for button, (_, bit) in _BUTTONS.items():
            mask |= bit if event.buttons() & button and button != without else 0
        return mask

    def mousePressEvent(self, event: QMouseEvent) -> None:
        position = event.position().toPoint()
        if self._inner.contains(position):
            self._button(event, is_press=True)
        elif event.button() == Qt.MouseButton.LeftButton and self._style is Style.WINDOW:
            self.startSystemMove()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._button(event, is_press=False)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """(Its press; the guest counts clicks for itself.)"""
        self.mousePressEvent(event)

    def _button(self, event: QMouseEvent, *, is_press: bool) -> None:
        known = _BUTTONS.get(event.button())
        if known is None:
            return
        number, bit = known
        at = self._pointer = event.position().toPoint() - self._inner.topLeft()
        mask = self._mask(event, event.button()) | (0 if is_press else bit)
        self._happened(ButtonChanged(self._number, is_press, number, mask, at.x(), at.y()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        position = event.position().toPoint()
        at = self._pointer = position - self._inner.topLeft()
        mask = self._mask(event)
        self._cross(self._inner.contains(position), mask, at)
        if self._is_pointer_inside or event.buttons() != Qt.MouseButton.NoButton:
            self._happened(PointerMoved(self._number, mask, at.x(), at.y()))

    def _cross(self, is_inside: bool, mask: int, at: QPoint) -> None:
        if is_inside != self._is_pointer_inside:
            self._is_pointer_inside = is_inside
            self._happened(PointerCrossed(self._number, is_inside, mask, at.x(), at.y()))

    def wheelEvent(self, event: QWheelEvent) -> None:
        position = event.position().toPoint()
        if not self._inner.contains(position):
            return
        at = position - self._inner.topLeft()
        self._wheel += event.angleDelta()
        for delta, back, forth in ((self._wheel.y(), 5, 4), (self._wheel.x(), 7, 6)):
            button = forth if delta > 0 else back
            for _ in range(min(abs(delta) // _WHEEL_STEP, MAX_WHEEL_CLICKS)):
                for is_press in (True, False):
                    self._happened(ButtonChanged(self._number, is_press, button, self._mask(event), at.x(), at.y()))
        self._wheel = QPoint(
            int(self._wheel.x() - _WHEEL_STEP * int(self._wheel.x() / _WHEEL_STEP)),
            int(self._wheel.y() - _WHEEL_STEP * int(self._wheel.y() / _WHEEL_STEP)),
        )

    def event(self, event: QEvent) -> bool:
        # (Which kind it is, Qt says slowly. Keys go on from here: by Qt they would come back a second time.)
        if isinstance(event, QKeyEvent):
            kind = event.type()
            if kind is _KEY_PRESS:
                self.keyPressEvent(event)
            elif kind is _KEY_RELEASE:
                self.keyReleaseEvent(event)
            else:
                return False  # Qt asks whether its own shortcuts may have it; there are none.
            return True
        if type(event) is QEvent and event.type() is _LEAVE and not self._is_gone:
            self._cross(False, 0, QPoint(-1, -1))
        return super().event(event)
