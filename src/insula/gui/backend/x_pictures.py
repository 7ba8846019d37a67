"""The frame memory as the host's X server sees it: attached to it, read-only, so that it copies from there itself.

No pixel of a guest passes through the process that shows it (MIT-SHM, version 1.2). What the server is told is where
from and where to, in numbers that were checked by the window machine and lie within the frame that is drawn around
them. The memory cannot shrink, so reading it is never the server's end; a guest that changes it meanwhile changes its
own pixels.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from insula.gui.backend.xcb import Xcb
from insula.gui.desktop import Picture
from insula.gui.geometry import Rect

_U8, _U16, _U32, _I16 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_int16
_LIBRARY = "libxcb-shm.so.0"
_VERSION = (1, 2)
"""From which on a server takes a descriptor."""
_ASK_VERSION = "shm_query_version"
_VERSION_AT = 8
"""Bytes before major and minor in ``xcb_shm_query_version_reply_t``."""
_DEPTH = 24
_Z_PIXMAP = 2
_GRAPHICS_EXPOSURES = 0x10000
"""Bit of the value in the values of a graphics context (``XCB_GC_GRAPHICS_EXPOSURES``)."""


class NoSharedPictures(Exception):
    """This X server cannot: then pixels are copied by whoever shows them."""


class XPictures:
    def __init__(self, xcb: Xcb, memory: int) -> None:
        """``memory`` is the frame memory's descriptor, which stays the caller's. :raise NoSharedPictures:"""
        self._xcb = xcb
        self._shm = ctypes.CDLL(_LIBRARY)
        self._shm.xcb_shm_attach_fd.argtypes = (ctypes.c_void_p, _U32, ctypes.c_int32, _U8)
        self._shm.xcb_shm_attach_fd.restype = ctypes.c_uint  # a structure of one field
        self._shm.xcb_shm_put_image.argtypes = (
            *(ctypes.c_void_p, _U32, _U32, _U16, _U16, _U16, _U16, _U16, _U16, _I16, _I16, _U8, _U8, _U8, _U32, _U32),
        )
        self._require_version()
        self._segment = xcb.generate_id()
        # (libxcb closes what it sends.)
        self._shm.xcb_shm_attach_fd(xcb.connection, self._segment, os.dup(memory), 1)
        self._context = 0

    def _require_version(self) -> None:
        xcb = self._xcb
        if not xcb.has_extension(ctypes.c_char.in_dll(self._shm, "xcb_shm_id")):
            raise NoSharedPictures("no shared memory")
        xcb.learn(self._shm, _ASK_VERSION)
        reply = xcb.answer(xcb.ask(_ASK_VERSION)) or bytes(_VERSION_AT + 4)
        version = struct.unpack_from("<HH", reply, _VERSION_AT)
        if version < _VERSION:
            raise NoSharedPictures(f"shared memory of version {version}")

    def fits(self, window: int) -> bool:
        """Whether a window's pixels are as the frame memory's."""
        return self._xcb.depth_of(window) == _DEPTH

    def put(self, window: int, picture: Picture, parts: Iterable[tuple[Rect, int, int]]) -> None:
        """Have parts of a picture copied to places in a window; returns when the server has done so.

        Each part lies in the picture, which lies in the memory.
        """
        xcb = self._xcb
        if not self._context:
            self._context = xcb.create_context(window, _GRAPHICS_EXPOSURES, 0)
        for rect, x, y in parts:
            self._shm.xcb_shm_put_image(
                *(xcb.connection, window, self._context, picture.width, picture.height),
                *(rect.x, rect.y, rect.width, rect.height, x, y),
                *(_DEPTH, _Z_PIXMAP, 0, self._segment, picture.offset),
            )
        xcb.sync()
