"""Messages of the GUI protocol as bytes: :func:`encode`, and an incremental :class:`Decoder`.

The decoder is told which messages, with which lengths, may come on its channel, and refuses all else when a header is
complete. What it returns is well formed and *possible*: no negative or empty window, no picture larger than a picture
may be, no flag set and cleared at once, no cursor that does not exist. What is *allowed* (which window, where on the
screen) is for the host's window machine.
"""

from __future__ import annotations

import struct

from insula_proto import gui, limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.gui import (
    ClipboardData,
    ClipboardImage,
    Configure,
    Create,
    Cursor,
    Fixed,
    FramePicture,
    GrantPicture,
    Icon,
    Keyboard,
    KeymapNotify,
    Message,
    Screens,
    Title,
    Unknown,
    WindowClass,
    WindowFlags,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

HEADER = struct.Struct("<III")
_DUMP = struct.Struct("<IIII")
_FRAME = struct.Struct("<QI")
_ICON = struct.Struct("<II")
_DPI = struct.Struct("<I")
_MONITOR = struct.Struct("<iiIIII")
_OPTIONS_SIZE = 4 * limits.GUI_KEYBOARD_SIZE
_BITS_PER_PIXEL = 24
_REFERENCE_SIZE = 4
_KEYMAP_SIZE = 32
MAX_SIGNED = 0x7FFFFFFF
MAX_SKIPPED = limits.GUI_MAX_CLIPBOARD
"""Bytes of a message of unknown type that are skipped."""

_MESSAGES: tuple[type[Message], ...] = (*gui.FROM_AGENT, *gui.FROM_HOST)
_FIXED: dict[int, type[Fixed]] = {cls.kind: cls for cls in _MESSAGES if issubclass(cls, Fixed)}


def picture_size(width: int, height: int) -> int:
    """Bytes of a picture."""
    return width * height * limits.GUI_BYTES_PER_PIXEL


# --- encoding ------------------------------------------------------------------------------------------------------


def _encode_fixed(message: Fixed) -> bytes:
    values: list[int] = [getattr(message, name) for name in message.layout.names]
    if message.choices is not None:
        values[0] = message.choices[0] if values[0] else message.choices[1]
    return message.layout.struct.pack(*values)


def _text(value: bytes, size: int) -> bytes:
    if len(value) >= size or b"\0" in value:
        raise LocalProtocolError(f"text of {len(value)} bytes in a field of {size}, or a NUL in it")
    return value.ljust(size, b"\0")


def encode_body(message: Message) -> bytes:
    """A message without its header. :raise LocalProtocolError, struct.error: values that no field holds."""
    if isinstance(message, Fixed):
        return _encode_fixed(message)
    if isinstance(message, ClipboardData):
        return message.data
    if isinstance(message, Title):
        return _text(message.text, limits.GUI_TITLE_SIZE)
    if isinstance(message, WindowClass):
        return _text(message.class_name, limits.GUI_CLASS_SIZE) + _text(message.instance, limits.GUI_CLASS_SIZE)
    if isinstance(message, KeymapNotify):
        return message.keys
    if isinstance(message, GrantPicture):
        dump = _DUMP.pack(gui.DUMP_GRANTS, message.width, message.height, _BITS_PER_PIXEL)
        return dump + struct.pack(f"<{len(message.references)}I", *message.references)
    if isinstance(message, FramePicture):
        dump = _DUMP.pack(gui.DUMP_FRAME, message.width, message.height, _BITS_PER_PIXEL)
        return dump + _FRAME.pack(message.offset, message.width * limits.GUI_BYTES_PER_PIXEL)
    if isinstance(message, (Icon, ClipboardImage)):
        return _ICON.pack(message.width, message.height) + message.pixels
    if isinstance(message, Keyboard):
        size = limits.GUI_KEYBOARD_SIZE
        return _text(message.layout, size) + _text(message.variant, size) + _text(message.options, _OPTIONS_SIZE)
    if isinstance(message, Screens):
        return _DPI.pack(message.dpi) + b"".join([_MONITOR.pack(*monitor) for monitor in message.monitors])
    raise LocalProtocolError(f"{type(message).__name__} is not sent")


def encode(message: Message) -> bytes:
    """Return header and body. :raise LocalProtocolError: the other side would refuse it."""
    try:
        body = encode_body(message)
        header = HEADER.pack(message.kind, message.window, len(body))
    except struct.error as error:
        raise LocalProtocolError(f"{message!r}: {error}") from error
    try:
        if isinstance(message, Fixed):
            # (Its numbers were packed, so what is left to be wrong is what they mean.)
            _check_fixed(message)
        else:
            decode_body(message.kind, message.window, body)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    return header + body


# --- decoding ------------------------------------------------------------------------------------------------------


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIGNED and 0 < height <= MAX_SIGNED):
        raise RemoteProtocolError(f"window of {width} x {height}")


def _flag(number: int) -> bool:
    if number > 1:
        raise RemoteProtocolError(f"flag {number}, neither 0 nor 1")
    return bool(number)


def _decode_fixed(cls: type[Fixed], window: int, untrusted_body: bytes) -> Message:
    values = list(cls.layout.struct.unpack(untrusted_body))
    if cls.choices is not None:
        if values[0] not in cls.choices:
            raise RemoteProtocolError(f"{cls.__name__} with event number {values[0]}")
        values[0] = values[0] == cls.choices[0]
    if cls.has_flag:
        values[-1] = _flag(values[-1])
    message: Message = cls(window, *values)  # type: ignore[call-arg] # each takes the fields of its layout
    check = _CHECKS.get(cls)
    if check is not None:
        check(message)
    return message


def _check_fixed(message: Fixed) -> None:
    """As decoding it would. :raise RemoteProtocolError:"""
    if message.has_flag:
        _flag(getattr(message, message.layout.names[-1]))
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message)


def _check_create(message: Create) -> None:
    if message.window == gui.NO_WINDOW:
        raise RemoteProtocolError("window 0 is no window")
    _check_size(message.width, message.height)


def _check_configure(message: Configure) -> None:
    _check_size(message.width, message.height)


def _check_flags(message: WindowFlags) -> None:
    if message.added & message.removed:
        raise RemoteProtocolError(f"flags {message.added & message.removed:#x} both set and cleared")


def _check_cursor(message: Cursor) -> None:
    number = message.cursor
    is_font = gui.CURSOR_FONT <= number < gui.CURSOR_FONT_END and number % 2 == 0
    if number != gui.CURSOR_DEFAULT and not is_font:
        raise RemoteProtocolError(f"cursor {number:#x}")


_CHECKS: dict[type[Message], Callable[[Any], None]] = {
    Create: _check_create,
    Configure: _check_configure,
    WindowFlags: _check_flags,
    Cursor: _check_cursor,
}
"""What may be wrong with a message by itself (§12); others' numbers may be any."""


def _decode_dump(window: int, untrusted_body: bytes) -> Message:
    # (The number of bits is not looked at, as in the published daemon: pixels have 32 of which 24 count.)
    kind, width, height, _ = _DUMP.unpack_from(untrusted_body)
    if not (0 < width <= limits.GUI_MAX_WIDTH and 0 < height <= limits.GUI_MAX_HEIGHT):
        raise RemoteProtocolError(f"picture of {width} x {height}")
    rest = untrusted_body[_DUMP.size :]
    if kind == gui.DUMP_FRAME:
        if len(rest) != _FRAME.size:
            raise RemoteProtocolError(f"frame picture in {len(rest)} bytes")
        offset, row = _FRAME.unpack(rest)
        if row != width * limits.GUI_BYTES_PER_PIXEL or offset % limits.GUI_PAGE:
            raise RemoteProtocolError(f"picture at {offset} with rows of {row} bytes for {width} pixels")
        return FramePicture(window, width, height, offset)
    if kind != gui.DUMP_GRANTS or len(rest) % _REFERENCE_SIZE:
        raise RemoteProtocolError(f"picture of type {kind:#x} in {len(rest)} bytes")
    count = len(rest) // _REFERENCE_SIZE
    if count > limits.GUI_MAX_GRANTS or count * limits.GUI_PAGE < picture_size(width, height):
        raise RemoteProtocolError(f"{count} pages for a picture of {width} x {height}")
    return GrantPicture(window, width, height, struct.unpack(f"<{count}I", rest))


def _decode_icon(window: int, untrusted_body: bytes) -> Message:
    width, height = _ICON.unpack_from(untrusted_body)
    pixels = untrusted_body[_ICON.size :]
    largest = limits.GUI_MAX_ICON
    is_none = (width, height) == (0, 0)
    if not is_none and not (0 < width <= largest and 0 < height <= largest):
        raise RemoteProtocolError(f"icon of {width} x {height}")
    if len(pixels) != picture_size(width, height):
        raise RemoteProtocolError(f"icon of {width} x {height} in {len(pixels)} bytes")
    return Icon(window, width, height, pixels)


def decode_image(window: int, untrusted_body: bytes) -> ClipboardImage:
    """Of any bytes. :raise RemoteProtocolError: and nothing else."""
    if len(untrusted_body) < _ICON.size:
        raise RemoteProtocolError(f"image in {len(untrusted_body)} bytes")
    width, height = _ICON.unpack_from(untrusted_body)
    size = len(untrusted_body) - _ICON.size
    if not (width and height) or width * height > limits.GUI_MAX_IMAGE_PIXELS or size != picture_size(width, height):
        raise RemoteProtocolError(f"image of {width} x {height} in {size} bytes")
    return ClipboardImage(window, width, height, untrusted_body[_ICON.size :])


def _decode_keyboard(window: int, untrusted_body: bytes) -> Message:
    size = limits.GUI_KEYBOARD_SIZE
    fields = untrusted_body[:size], untrusted_body[size : 2 * size], untrusted_body[2 * size :]
    layout, variant, options = [_untrusted_text(field) for field in fields]
    if not (layout + variant + options).isascii():
        raise RemoteProtocolError("a keyboard whose names are not ASCII")
    return Keyboard(window, layout, variant, options)


def _decode_screens(window: int, untrusted_body: bytes) -> Message:
    (dpi,) = _DPI.unpack_from(untrusted_body)
    rest = untrusted_body[_DPI.size :]
    if not limits.GUI_MIN_DPI <= dpi <= limits.GUI_MAX_DPI:
        raise RemoteProtocolError(f"{dpi} dots to the inch")
    if not rest or len(rest) % _MONITOR.size:
        raise RemoteProtocolError(f"screens in {len(untrusted_body)} bytes")
    monitors = tuple(_MONITOR.iter_unpack(rest))
    for x, y, width, height, *_ in monitors:
        fits = 0 < width <= limits.GUI_MAX_WIDTH and 0 < height <= limits.GUI_MAX_HEIGHT
        if not fits or not (0 <= x <= limits.GUI_MAX_WIDTH and 0 <= y <= limits.GUI_MAX_HEIGHT):
            raise RemoteProtocolError(f"screen of {width} x {height} at {x},{y}")
    return Screens(window, dpi, monitors)


def _untrusted_text(untrusted_field: bytes) -> bytes:
    """What stands before the first NUL; the last byte is none of the text, as in the published daemon."""
    return untrusted_field[:-1].partition(b"\0")[0]


def decode_body(kind: int, window: int, untrusted_body: bytes) -> Message:
    """Return the message of a body whose length was checked. :raise RemoteProtocolError: and nothing else."""
    cls = _FIXED.get(kind)
    if cls is not None:
        return _decode_fixed(cls, window, untrusted_body)
    if kind == FramePicture.kind:
        return _decode_dump(window, untrusted_body)
    if kind == ClipboardData.kind:
        return ClipboardData(window, untrusted_body)
    if kind == ClipboardImage.kind:
        return decode_image(window, untrusted_body)
    if kind == Title.kind:
        return Title(window, _untrusted_text(untrusted_body))
    if kind == WindowClass.kind:
        size = limits.GUI_CLASS_SIZE
        return WindowClass(window, _untrusted_text(untrusted_body[:size]), _untrusted_text(untrusted_body[size:]))
    if kind == KeymapNotify.kind:
        return KeymapNotify(window, untrusted_body)
    if kind == Keyboard.kind:
        return _decode_keyboard(window, untrusted_body)
    if kind == Screens.kind:
        return _decode_screens(window, untrusted_body)
    if kind == Icon.kind:
        return _decode_icon(window, untrusted_body)
    raise RemoteProtocolError(f"message type {kind} is not read here")


_FRAME_LENGTHS = (_DUMP.size + _FRAME.size,) * 2
_GRANT_LENGTHS = (_DUMP.size, _DUMP.size + limits.GUI_MAX_GRANTS * _REFERENCE_SIZE)
_LENGTHS: dict[type[Message], tuple[int, int]] = {
    ClipboardData: (0, limits.GUI_MAX_CLIPBOARD),
    ClipboardImage: (_ICON.size + picture_size(1, 1), _ICON.size + picture_size(limits.GUI_MAX_IMAGE_PIXELS, 1)),
    Title: (limits.GUI_TITLE_SIZE,) * 2,
    WindowClass: (2 * limits.GUI_CLASS_SIZE,) * 2,
    KeymapNotify: (_KEYMAP_SIZE,) * 2,
    Keyboard: (2 * limits.GUI_KEYBOARD_SIZE + _OPTIONS_SIZE,) * 2,
    Screens: (_DPI.size + _MONITOR.size, _DPI.size + limits.GUI_MAX_MONITORS * _MONITOR.size),
    Icon: (_ICON.size, _ICON.size + picture_size(limits.GUI_MAX_ICON, limits.GUI_MAX_ICON)),
    GrantPicture: _GRANT_LENGTHS,
    FramePicture: _FRAME_LENGTHS,
}


def lengths(classes: Sequence[type[Message]]) -> dict[int, tuple[int, int]]:
    """Shortest and longest body of each type. Of the two kinds of picture, name one."""
    return {cls.kind: (cls.layout.struct.size,) * 2 if issubclass(cls, Fixed) else _LENGTHS[cls] for cls in classes}


class Decoder:
    """Splits bytes into messages; takes any split.

    A message that is none of ``classes`` is refused, or, with ``skips_unknown``, skipped and reported as
    :class:`insula_proto.gui.Unknown`. A wrong length is always refused, as from version 1.6 on it must be; in older
    versions the length field said nothing else.
    """

    def __init__(
        self,
        classes: Sequence[type[Message]],
        *,
        longest_clipboard: int = limits.GUI_MAX_CLIPBOARD,
        skips_unknown: bool = False,
    ) -> None:
        self._classes = frozenset(classes)
        self._allowed = lengths(classes)
        if ClipboardData.kind in self._allowed:
            self._allowed[ClipboardData.kind] = (0, longest_clipboard)
        self._skips_unknown = skips_unknown
        self._partial = bytearray()
        self._is_checked = False
        """Whether the header of what is partial was."""

    @property
    def is_between_messages(self) -> bool:
        return not self._partial

    def receive(self, untrusted_data: bytes) -> list[Message]:
        """Return what is complete. :raise RemoteProtocolError: and nothing else; the decoder is of no use then."""
        messages: list[Message] = []
        partial = self._partial
        partial += untrusted_data
        position = 0
        while len(partial) - position >= HEADER.size:
            kind, window, length = HEADER.unpack_from(partial, position)
            if not self._is_checked:
                self._check_header(kind, length)
            end = position + HEADER.size + length
            self._is_checked = len(partial) < end
            if self._is_checked:
                break
            if kind in self._allowed:
                message = decode_body(kind, window, bytes(partial[position + HEADER.size : end]))
                if type(message) not in self._classes:
                    raise RemoteProtocolError(f"{type(message).__name__} is not used here")
                messages.append(message)
            else:
                messages.append(Unknown(window, kind))
            position = end
        del partial[:position]
        return messages

    def _check_header(self, kind: int, length: int) -> None:
        bounds = self._allowed.get(kind)
        if bounds is None:
            if not self._skips_unknown:
                raise RemoteProtocolError(f"message type {kind}")
            bounds = (0, MAX_SKIPPED)
        if not bounds[0] <= length <= bounds[1]:
            raise RemoteProtocolError(f"message type {kind} with length {length}, allowed {bounds[0]} to {bounds[1]}")
