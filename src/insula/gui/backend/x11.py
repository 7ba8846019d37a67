"""What only an X11 desktop needs, over Qt's own connection to it: which keys are down.

X repeats a key that is held to whoever has the focus, as presses, and Qt takes the first of them for a new one. So the
server is asked when a window gets the focus, and when a key is said to be released. (On Wayland keys are repeated by
the program that saw them pressed.)
"""

from __future__ import annotations

import ctypes

from PySide6.QtGui import QGuiApplication, QNativeInterface

_KEYS_AT = 8
_KEYS = 32
"""``xcb_query_keymap_reply_t`` of ``xcb/xproto.h``: a bit for each of 256 key codes behind eight bytes."""


class Keys:
    """Of the desktop the application is connected to."""

    def __init__(self, app: QGuiApplication) -> None:
        native = app.nativeInterface()
        self._connection: int | None = None
        if isinstance(native, QNativeInterface.QX11Application):
            self._connection = native.connection()
            self._xcb = ctypes.CDLL("libxcb.so.1")
            self._xcb.xcb_query_keymap.argtypes = (ctypes.c_void_p,)
            self._xcb.xcb_query_keymap.restype = ctypes.c_uint  # a structure of one field
            self._xcb.xcb_query_keymap_reply.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)
            self._xcb.xcb_query_keymap_reply.restype = ctypes.c_void_p
            self._libc = ctypes.CDLL(None)
            self._libc.free.argtypes = (ctypes.c_void_p,)

    def held(self) -> frozenset[int]:
        """X key codes that are down now, whoever saw them pressed; empty where that does not matter."""
        if self._connection is None:
            return frozenset()
        cookie = self._xcb.xcb_query_keymap(self._connection)
        reply = self._xcb.xcb_query_keymap_reply(self._connection, cookie, None)
        if not reply:
            return frozenset()  # the connection broke, which ends the program
        try:
            bits = ctypes.string_at(reply + _KEYS_AT, _KEYS)
        finally:
            self._libc.free(reply)
        return frozenset(code for code in range(8 * _KEYS) if bits[code // 8] >> code % 8 & 1)
