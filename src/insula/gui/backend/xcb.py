"""Questions to the X server over Qt's own connection, by libxcb: what Qt has no words for.

A connection of our own would be a second client, and nothing can be opened any more when windows are shown. Replies are
read as ``xproto.h`` lays them out; the server is the host's, and what other programs told it (properties) is only
compared with what is looked for.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from PySide6.QtGui import QGuiApplication, QNativeInterface

_REPLY_HEAD = 32
_REPLY_HEAD_OF_EXTENSION = 8
"""Bytes before "present" in ``xcb_query_extension_reply_t``."""
_REPLACE = 0
_STRING = 31
_BITS_OF_TEXT = 8
_U8, _U16, _U32, _I16 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_int16
_REQUESTS: dict[str, tuple[type, ...]] = {
    "query_keymap": (),
    "query_tree": (_U32,),
    "get_geometry": (_U32,),
    "get_window_attributes": (_U32,),
    "get_property": (_U8, _U32, _U32, _U32, _U32, _U32),
    "translate_coordinates": (_U32, _U32, _I16, _I16),
    "intern_atom": (_U8, _U16, ctypes.c_char_p),
    "get_selection_owner": (_U32,),
    "get_input_focus": (),
}
"""Those with a reply, and their arguments after the connection."""
_CLIENT_MESSAGE = 33
_SETUP_SIZE = 40
_SETUP_VENDOR, _SETUP_FORMATS = 24, 29
_FORMAT_SIZE = 8
MAX_PROPERTY_WORDS = 1024
"""32-bit words of a property that are read: a desktop with as many windows."""


class Asked(NamedTuple):
    """A question on its way."""

    name: str
    cookie: int


class Xcb:
    """Of the desktop the application is connected to. :raise NotX11:"""

    def __init__(self, app: QGuiApplication) -> None:
        native = app.nativeInterface()
        if not isinstance(native, QNativeInterface.QX11Application):
            raise NotX11
        self.connection = native.connection()
        self._xcb = ctypes.CDLL("libxcb.so.1")
        self._functions: dict[str, tuple[Any, Any]] = {}
        for name, arguments in _REQUESTS.items():
            self.learn(self._xcb, name, *arguments)
        self._xcb.xcb_get_setup.argtypes = (ctypes.c_void_p,)
        self._xcb.xcb_get_setup.restype = ctypes.c_void_p
        self._xcb.xcb_change_property.argtypes = (
            *(ctypes.c_void_p, _U8, _U32, _U32, _U32, _U8, _U32, ctypes.c_char_p),
        )
        self._xcb.xcb_create_gc.argtypes = (ctypes.c_void_p, _U32, _U32, _U32, ctypes.POINTER(_U32))
        self._xcb.xcb_generate_id.argtypes = (ctypes.c_void_p,)
        self._xcb.xcb_generate_id.restype = _U32
        self._xcb.xcb_get_extension_data.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._xcb.xcb_get_extension_data.restype = ctypes.c_void_p
        self._xcb.xcb_flush.argtypes = (ctypes.c_void_p,)
        self._xcb.xcb_send_event.argtypes = (ctypes.c_void_p, _U8, _U32, _U32, ctypes.c_char_p)
        self._libc = ctypes.CDLL(None)
        self._libc.free.argtypes = (ctypes.c_void_p,)
        self._atoms: dict[str, int] = {}
        self.root = self._root()

    def learn(self, library: ctypes.CDLL, name: str, *arguments: type) -> None:
        """Know one more question, by the library that has it, and its arguments after the connection."""
        request, reply = getattr(library, f"xcb_{name}"), getattr(library, f"xcb_{name}_reply")
        request.argtypes = (ctypes.c_void_p, *arguments)
        request.restype = ctypes.c_uint  # a structure of one field
        reply.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)
        reply.restype = ctypes.c_void_p
        self._functions[name] = request, reply

    def _root(self) -> int:
        """Of the first screen (``xcb_setup_t``: vendor and formats lie before it)."""
        setup = self._xcb.xcb_get_setup(self.connection)
        head = ctypes.string_at(setup, _SETUP_SIZE)
        vendor = struct.unpack_from("<H", head, _SETUP_VENDOR)[0]
        at = setup + _SETUP_SIZE + (vendor + 3) // 4 * 4 + _FORMAT_SIZE * head[_SETUP_FORMATS]
        return int.from_bytes(ctypes.string_at(at, 4), "little")

    def flush(self) -> None:
        """Have all that was asked of the server, by Qt too, go there now."""
        self._xcb.xcb_flush(self.connection)

    def set_text(self, window: int, name: str, value: bytes) -> None:
        """Set a property of the type STRING."""
        self._xcb.xcb_change_property(
            self.connection, _REPLACE, window, self.atom(name), _STRING, _BITS_OF_TEXT, len(value), value
        )

    def sync(self) -> None:
        """Return when the server has done all that was asked of it."""
        self.answer(self.ask("get_input_focus"))

    def generate_id(self) -> int:
        """A number for something of the server's."""
        return int(self._xcb.xcb_generate_id(self.connection))

    def create_context(self, window: int, mask: int, *values: int) -> int:
        """A graphics context for windows like that one; ``mask`` says which values these are."""
        context = self.generate_id()
        self._xcb.xcb_create_gc(self.connection, context, window, mask, (_U32 * len(values))(*values))
        return context

    def depth_of(self, window: int) -> int:
        """Bits of a pixel; 0: the window has gone."""
        reply = self.answer(self.ask("get_geometry", window))
        return reply[1] if reply is not None else 0

    def has_extension(self, extension: ctypes.c_char) -> bool:
        """Whether the server has it; asked for what it lacks, libxcb would end the connection."""
        data = self._xcb.xcb_get_extension_data(self.connection, ctypes.byref(extension))
        return bool(data) and ctypes.string_at(data + _REPLY_HEAD_OF_EXTENSION, 1) != b"\0"

    def ask(self, name: str, *arguments: int | bytes) -> Asked:
        """Ask; many questions may be on their way at a time."""
        return Asked(name, self._functions[name][0](self.connection, *arguments))

    def answer(self, asked: Asked) -> bytes | None:
        """The whole reply; None: there is none, mostly because the window has gone."""
        reply = self._functions[asked.name][1](self.connection, asked.cookie, None)
        if not reply:
            return None
        try:
            words = int.from_bytes(ctypes.string_at(reply + 4, 4), "little")
            return ctypes.string_at(reply, _REPLY_HEAD + 4 * words)
        finally:
            self._libc.free(reply)

    def answers(self, asked: Iterable[Asked]) -> list[bytes | None]:
        return [self.answer(each) for each in asked]

    def atom(self, name: str) -> int:
        if name not in self._atoms:
            reply = self.answer(self.ask("intern_atom", 0, len(name), name.encode()))
            self._atoms[name] = int.from_bytes(reply[8:12], "little") if reply else 0
        return self._atoms[name]

    def say(self, window: int, kind: str, numbers: Sequence[int]) -> None:
        """Send a client message of five numbers to whoever made the window."""
        head = struct.pack("<BBHII", _CLIENT_MESSAGE, 32, 0, window, self.atom(kind))
        self._xcb.xcb_send_event(self.connection, 0, window, 0, head + struct.pack("<5I", *numbers))

    def ask_property(self, window: int, name: str) -> Asked:
        return self.ask("get_property", 0, window, self.atom(name), 0, 0, MAX_PROPERTY_WORDS)


class NotX11(Exception):
    """The desktop is another one."""


def property_bytes(reply: bytes | None) -> bytes:
    """The value in a reply to GetProperty; empty if there is none."""
    if reply is None:
        return b""
    size = reply[1] // 8 * int.from_bytes(reply[16:20], "little")
    return reply[_REPLY_HEAD : _REPLY_HEAD + size]


def numbers(value: bytes) -> tuple[int, ...]:
    """32-bit numbers of a property or of a list of windows."""
    return struct.unpack(f"<{len(value) // 4}I", value[: len(value) // 4 * 4])


def children(reply: bytes | None) -> tuple[int, ...]:
    """Of a reply to QueryTree: bottom first."""
    if reply is None:
        return ()
    return numbers(reply[_REPLY_HEAD : _REPLY_HEAD + 4 * int.from_bytes(reply[16:18], "little")])
