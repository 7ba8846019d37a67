"""The protocol by which QEMU shows the screen of a machine without agent: RFB 3.8 (RFC 6143), the client's end.

Sans I/O: :class:`Client` takes bytes in any split and returns events; what is to be said is fetched with
:meth:`Client.pending`. The server is a machine monitor that works on what a guest did, so nothing it says is believed:
rectangles lie inside the screen, the screen inside the limits of a window, and of a rectangle no more than a row is
kept here. Of the encodings only raw pixels are spoken; they come through a pair of sockets on the same machine.

Beside RFC 6143: the pseudo-encodings DesktopSize, ExtendedDesktopSize (with SetDesktopSize) and QEMU's extended key
event, which names keys by their place and not by what is on them ("rfbproto", community edition).
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass

from insula_proto import limits
from insula_proto.errors import RemoteProtocolError

VERSION = b"RFB 003.008\n"
RAW, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, EXTENDED_KEYS = 0, -223, -308, -258
_SECURITY_NONE = 1
_BYTES_PER_PIXEL = 4
MAX_NAME = 1024
"""Bytes of a screen's name; QEMU's has some dozen."""
MAX_REASON = 1024
MAX_CUT_TEXT = 65536
"""Bytes of a clipboard the server may send; it is skipped."""
MAX_LAYOUTS = 16

_PIXEL_FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""32 bits, of which 24 count, the lowest first: blue, green, red."""
_SERVER_INIT = struct.Struct(">HH16xI")
_RECTANGLE = struct.Struct(">HHHHi")
_KEY = struct.Struct(">BBHII")
_POINTER = struct.Struct(">BBHH")
_UPDATE_REQUEST = struct.Struct(">BBHHHH")
_SET_SIZE = struct.Struct(">BxHHBxIHHHHI")


_Parser = Generator[int, bytes, None]
"""Yields how many bytes it wants (at least one), and is sent exactly that many."""


class Event:
    """Base of all."""


@dataclass(frozen=True)
class Ready(Event):
    """The handshake is over."""

    width: int
    height: int


@dataclass(frozen=True)
class Rows(Event):
    """Whole rows of pixels."""

    x: int
    y: int
    width: int
    pixels: bytes


@dataclass(frozen=True)
class Resized(Event):
    width: int
    height: int


@dataclass(frozen=True)
class Updated(Event):
    """All that was asked for has come."""


def update_request(width: int, height: int, *, is_incremental: bool) -> bytes:
    """Ask for what has changed, or for everything; answered when something has."""
    return _UPDATE_REQUEST.pack(3, is_incremental, 0, 0, width, height)


def key_event(scan_code: int, *, is_press: bool) -> bytes:
    """A key by its place; ``scan_code`` as of a PC's keyboard, set 1, with bit 7 for those behind 0xE0."""
    return _KEY.pack(255, 0, is_press, 0, scan_code)


def pointer_event(buttons: int, x: int, y: int) -> bytes:
    """``buttons``: a bit each, X's number 1 first."""
    return _POINTER.pack(5, buttons, x, y)


def set_size(width: int, height: int) -> bytes:
    """Ask for another size of the screen; a guest without the driver for that stays as it is."""
    return _SET_SIZE.pack(251, width, height, 1, 0, 0, 0, width, height, 0)


class Client:
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._out = bytearray()
        self._parser = self._run()
        self._wanted = next(self._parser)
        self._events: list[Event] = []
        self._width = self._height = 0
        self.can_resize = False
        """Whether the server knows :func:`set_size`."""
        self.has_keys = False
        """Whether it knows :func:`key_event`."""

    def pending(self) -> bytes:
        """What is to be said now."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def receive(self, untrusted_data: bytes) -> list[Event]:
        """Return what is complete. :raise RemoteProtocolError: and nothing else; the client is of no use then."""
        self._buffer += untrusted_data
        position = 0
        while len(self._buffer) - position >= self._wanted:
            part = bytes(self._buffer[position : position + self._wanted])
            position += self._wanted
            self._wanted = self._parser.send(part)
        del self._buffer[:position]
        events, self._events = self._events, []
        return events

    @property
    def held(self) -> int:
        """Bytes kept for later."""
        return len(self._buffer)

    # --- the parser --------------------------------------------------------------------------------------------------

    def _run(self) -> _Parser:
        yield from self._handshake()
        while True:
            kind = (yield 1)[0]
            if kind == 0:
                yield from self._update()
            elif kind == 3:
                yield from self._cut_text()
            elif kind != 2:  # (The bell has no body, and no sound here.)
                raise RemoteProtocolError(f"RFB message of type {kind}")

    def _handshake(self) -> _Parser:
        version = yield len(VERSION)
        if version != VERSION:
            raise RemoteProtocolError(f"RFB version {version!a}")
        self._out += VERSION
        count = (yield 1)[0]
        if not count:
            raise RemoteProtocolError("the server of the screen refused")
        if _SECURITY_NONE not in (yield count):
            raise RemoteProtocolError("the server of the screen wants a password")
        self._out.append(_SECURITY_NONE)
        if any((yield 4)):
            raise RemoteProtocolError("the server of the screen refused")
        self._out.append(0)  # others may not look at the same time
        width, height, name = _SERVER_INIT.unpack((yield _SERVER_INIT.size))
        if name > MAX_NAME:
            raise RemoteProtocolError(f"a screen's name of {name} bytes")
        if name:
            yield name
        self._set_size(width, height)
        self._out += struct.pack(">B3x", 0) + _PIXEL_FORMAT
        encodings = (RAW, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, EXTENDED_KEYS)
        self._out += struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings)
        self._events.append(Ready(width, height))

    def _set_size(self, width: int, height: int) -> None:
        if not (0 < width <= limits.GUI_MAX_WIDTH and 0 < height <= limits.GUI_MAX_HEIGHT):
            raise RemoteProtocolError(f"screen of {width} x {height}")
        self._width, self._height = width, height

    def _update(self) -> _Parser:
        (count,) = struct.unpack(">xH", (yield 3))
        for _ in range(count):
            x, y, width, height, encoding = _RECTANGLE.unpack((yield _RECTANGLE.size))
            if encoding == RAW:
                yield from self._raw(x, y, width, height)
            elif encoding == DESKTOP_SIZE:
                self._resize(width, height)
            elif encoding == EXTENDED_DESKTOP_SIZE:
                self.can_resize = True
                screens = (yield 4)[0]
                if screens > MAX_LAYOUTS:
                    raise RemoteProtocolError(f"{screens} screens")
                if screens:
                    yield 16 * screens
                # (y is the status: what was not done changes nothing.)
                if not y:
                    self._resize(width, height)
            elif encoding == EXTENDED_KEYS:
                self.has_keys = True
            else:
                raise RemoteProtocolError(f"RFB encoding {encoding}")
        self._events.append(Updated())

    def _resize(self, width: int, height: int) -> None:
        if (width, height) != (self._width, self._height):
            self._set_size(width, height)
            self._events.append(Resized(width, height))

    def _raw(self, x: int, y: int, width: int, height: int) -> _Parser:
        if x + width > self._width or y + height > self._height:
            raise RemoteProtocolError(f"rectangle of {width} x {height} at {x},{y} on {self._width} x {self._height}")
        if width:
            for row in range(y, y + height):
                pixels = yield width * _BYTES_PER_PIXEL
                self._events.append(Rows(x, row, width, pixels))

    def _cut_text(self) -> _Parser:
        (size,) = struct.unpack(">3xI", (yield 7))
        if size > MAX_CUT_TEXT:
            raise RemoteProtocolError(f"a clipboard of {size} bytes")
        if size:
            yield size
