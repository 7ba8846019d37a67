"""The screen of a machine without agent, as one window under the rules of all windows (MC-49).

:class:`EmulatedEnd` stands where a guest's agent would be: what the machine monitor says of the screen (``rfb``)
becomes the messages of an agent with one window, which the same machine judges and the same back end frames; what the
host tells that agent becomes keys, the pointer and requests for the next picture. The pixels are copied into memory of
this process, so what is painted is what was received. The next picture is asked for when the last one was painted: a
guest that draws without end costs no more than the screen shows.

Closing the window does nothing: nobody in the machine could be told. It is shut down as any qube.
"""

from __future__ import annotations

import mmap

from insula.gui import rfb
from insula.gui.geometry import Rect
from insula_proto import gui, gui_channel, gui_wire
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui import Message
from insula_proto.gui_channel import Hello, Screen

WINDOW = 1
TITLE = b"screen"
MAX_RECTS = 16
"""Of one update that are painted apart; more become one around all."""
_XT = {
    **{code: code for code in range(1, 89)},  # the same numbers, as far as keyboards had them in 1981
    89: 0x73, 92: 0x79, 93: 0x70, 94: 0x7B, 96: 0x9C, 97: 0x9D, 98: 0xB5, 99: 0xB7, 100: 0xB8, 102: 0xC7, 103: 0xC8,
    104: 0xC9, 105: 0xCB, 106: 0xCD, 107: 0xCF, 108: 0xD0, 109: 0xD1, 110: 0xD2, 111: 0xD3, 113: 0xA0, 114: 0xAE,
    115: 0xB0, 117: 0x59, 119: 0xC6, 121: 0x7E, 124: 0x7D, 125: 0xDB, 126: 0xDC, 127: 0xDD,
}  # fmt: skip
"""Linux's number of a key (``input-event-codes.h``) → scan code, bit 7 for those behind 0xE0."""
_EVDEV = 8
"""X key codes are that much larger."""
MAX_BUTTON = 8


def scan_code(key_code: int) -> int | None:
    """Of an X key code; None: a PC's keyboard has no such key."""
    return _XT.get(key_code - _EVDEV)


class EmulatedEnd:
    """Implements :class:`insula.gui.session.End`."""

    minor = gui_channel.MINOR

    def __init__(self, memory: int, size: int) -> None:
        """``memory``: descriptor of a file of ``size`` bytes, from which the back end paints; it stays the caller's."""
        self._pixels = mmap.mmap(memory, size)
        self._size = size
        self._client = rfb.Client()
        self._out = bytearray()
        self._echo: list[Message] = []
        self._width = self._height = 0
        self._place = (0, 0)
        """Where the host has the window."""
        self._asked = (0, 0)
        """Size that was last asked for."""
        self._changed: list[Rect] = []
        self._keys: set[int] = set()
        self._buttons = 0

    # --- from the machine ----------------------------------------------------------------------------------------

    def receive(self, untrusted_data: bytes) -> list[Hello | Message]:
        """:raise RemoteProtocolError:"""
        said: list[Hello | Message] = []
        for event in self._client.receive(untrusted_data):
            if isinstance(event, rfb.Rows):
                self._take_rows(event)
            elif isinstance(event, rfb.Ready):
                said += [Hello(self.minor), *self._appear(event.width, event.height)]
            elif isinstance(event, rfb.Resized):
                said += self._resized(event.width, event.height)
            elif isinstance(event, rfb.Updated):
                said += self._updated()
        self._out += self._client.pending()
        if said and isinstance(said[0], Hello):
            self._request(is_incremental=False)
        return said

    def _picture(self, width: int, height: int) -> Message:
        """The screen has that size from now on, and is black until it comes. :raise RemoteProtocolError:"""
        size = gui_wire.picture_size(width, height)
        if size > self._size:
            raise RemoteProtocolError(f"a screen of {width} x {height} in {self._size} bytes")
        self._width, self._height = width, height
        self._pixels[:size] = bytes(size)
        self._changed = [Rect(0, 0, width, height)]
        return gui.FramePicture(WINDOW, width, height, 0)

    def _appear(self, width: int, height: int) -> list[Message]:
        picture = self._picture(width, height)
        return [gui.Create(WINDOW, 0, 0, width, height), gui.Title(WINDOW, TITLE), gui.Map(WINDOW), picture]

    def _resized(self, width: int, height: int) -> list[Message]:
        return [gui.Configure(WINDOW, *self._place, width, height), self._picture(width, height)]

    def _take_rows(self, rows: rfb.Rows) -> None:
        start = (rows.y * self._width + rows.x) * 4
        self._pixels[start : start + len(rows.pixels)] = rows.pixels
        row = Rect(rows.x, rows.y, rows.width, 1)
        last = self._changed[-1] if self._changed else None
        if last is not None and (last.x, last.width, last.bottom) == (row.x, row.width, row.y):
            self._changed[-1] = last.union(row)
            return
        self._changed.append(row)
        if len(self._changed) > MAX_RECTS:
            around = self._changed[0]
            for rect in self._changed[1:]:
                around = around.union(rect)
            self._changed = [around]

    def _updated(self) -> list[Message]:
        changed, self._changed = self._changed, []
        if not changed:
            self._request(is_incremental=True)
        return [gui.Damage(WINDOW, rect.x, rect.y, rect.width, rect.height) for rect in changed]

    def _request(self, *, is_incremental: bool) -> None:
        self._out += rfb.update_request(self._width, self._height, is_incremental=is_incremental)

    # --- from the host -------------------------------------------------------------------------------------------

    def answer(self, screen: Screen) -> bytes:
        del screen
        return b""

    def may_send(self, cls: type[Message]) -> bool:
        del cls
        return True

    def pending(self) -> bytes:
        """What is to be said now, beside the answers."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def echo(self) -> list[Message]:
        """What an agent would have answered to what was sent."""
        echo, self._echo = self._echo, []
        return echo

    def send(self, message: Message) -> bytes:
        if isinstance(message, gui.Key):
            return self._key(message.code, is_press=message.is_press)
        if isinstance(message, gui.Button):
            return self._button(message)
        if isinstance(message, (gui.Motion, gui.Crossing)):
            return self._point(message.x, message.y)
        if isinstance(message, gui.KeymapNotify):
            down = [code for code in self._keys if not message.keys[code // 8] >> code % 8 & 1]
            return b"".join([self._key(code, is_press=False) for code in sorted(down)])
        if isinstance(message, gui.Configure):
            return self._configured(message)
        if isinstance(message, gui.Painted):
            self._request(is_incremental=True)
            return self.pending()
        if isinstance(message, gui.ClipboardRequest):
            self._echo.append(gui.ClipboardData(gui.NO_WINDOW, b""))
        return b""

    def _key(self, code: int, *, is_press: bool) -> bytes:
        scan = scan_code(code)
        if scan is None or not self._client.has_keys:
            return b""
        if is_press:
            self._keys.add(code)
        else:
            self._keys.discard(code)
        return rfb.key_event(scan, is_press=is_press)

    def _button(self, message: gui.Button) -> bytes:
        if not 1 <= message.button <= MAX_BUTTON:
            return b""
        bit = 1 << message.button - 1
        self._buttons = self._buttons | bit if message.is_press else self._buttons & ~bit
        return self._point(message.x, message.y)

    def _point(self, x: int, y: int) -> bytes:
        x, y = min(max(x, 0), self._width - 1), min(max(y, 0), self._height - 1)
        return rfb.pointer_event(self._buttons, x, y)

    def _configured(self, message: gui.Configure) -> bytes:
        """The user moved or resized the window: agreed; the machine is asked for a screen of that size."""
        self._place = (message.x, message.y)
        size = (message.width, message.height)
        self._echo.append(gui.Configure(WINDOW, message.x, message.y, *size))
        if not self._client.can_resize or size in (self._asked, (self._width, self._height)):
            return b""
        self._asked = size
        return rfb.set_size(*size)
