"""The X server of the qube, as far as the agent uses it: one connection, its extensions, and what xcffib cannot do.

xcffib sends no descriptors, so the frame memory is handed to the server by libxcb-shm itself, on the same connection.
The server maps it and copies there; no pixel passes through this process.
"""

from __future__ import annotations

import ctypes
import os
import struct

import xcffib
import xcffib.composite
import xcffib.damage
import xcffib.shm
import xcffib.xfixes
import xcffib.xproto
import xcffib.xtest

from insula_agent.gui.server import NoDisplay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

EventMask = xcffib.xproto.EventMask
CW = xcffib.xproto.CW

KEY_PRESS, KEY_RELEASE, BUTTON_PRESS, BUTTON_RELEASE, MOTION = 2, 3, 4, 5, 6
"""Event numbers, as XTEST wants them."""
MAX_PROPERTY = 4096
"""Bytes of a property that are read, the clipboard aside."""
_ANY_TYPE = 0
_FAKE_INPUT = (2, "=4xBB2xII8xhh7xB")
"""Number and layout of XTEST's request (xtest.xml): type, detail, time, root, x, y, device."""

BadRequest = xcffib.Error
"""A window that has gone meanwhile, mostly."""


class Prepared:
    """A request without an answer that is made again and again: what xcffib would make anew for each is kept."""

    def __init__(self, extension: Any, opcode: int, layout: str) -> None:
        self._extension = extension  # (In older versions its name's memory goes with it.)
        self._fields = struct.Struct(layout)
        self._body = xcffib.ffi.new("char[]", self._fields.size)
        self._buffer = xcffib.ffi.buffer(self._body)
        self._request = xcffib.ffi.new("xcb_protocol_request_t *")
        self._request.count, self._request.ext = 1, extension.c_key
        self._request.opcode, self._request.isvoid = opcode, True
        # (libxcb uses what lies before the part it is given.)
        self._parts = xcffib.ffi.new("struct iovec[3]")

    def send(self, *values: int) -> None:
        self._fields.pack_into(self._buffer, 0, *values)
        part = self._parts[2]
        part.iov_base, part.iov_len = self._body, self._fields.size
        self._extension.conn.send_request(0, self._parts + 2, self._request)


class Display:
    def __init__(self, name: str) -> None:
        """Connect to ``name``. :raise NoDisplay:"""
        try:
            self.connection: Any = xcffib.connect(name)
        except xcffib.ConnectionException as error:
            raise NoDisplay(f"{name}: {error}") from error
        self.core = self.connection.core
        self.screen = self.connection.get_setup().roots[0]
        self.root = self.screen.root
        try:
            self._composite = self.connection(xcffib.composite.key)
            self.damage = self.connection(xcffib.damage.key)
            self.fixes = self.connection(xcffib.xfixes.key)
            self.shm = self.connection(xcffib.shm.key)
            test = self.connection(xcffib.xtest.key)
            self._composite.QueryVersion(0, 4).reply()
            self.damage.QueryVersion(1, 1).reply()
            self.fixes.QueryVersion(5, 0).reply()
            test.GetVersion(2, 2).reply()
            self._fake = Prepared(test, *_FAKE_INPUT)
            if not self.shm.QueryVersion().reply().shared_pixmaps:
                raise NoDisplay(f"{name}: no pixmaps in shared memory")
        except (xcffib.ExtensionException, BadRequest) as error:
            raise NoDisplay(f"{name}: {error}") from error
        self._atoms: dict[str, int] = {}
        self.segment = 0
        """The frame memory, for the server."""
        self._modifier_keys: frozenset[int] = frozenset()
        self._modifiers = self._read_modifiers()
        self._state: int | None = None
        """Of the modifiers, if it is known: asking takes a way to the server and back for each key."""

    @property
    def fd(self) -> int:
        return int(self.connection.get_file_descriptor())

    def attach(self, frames: int) -> None:
        """Give the server the frame memory, whose descriptor stays the caller's."""
        library = ctypes.CDLL("libxcb-shm.so.0")
        library.xcb_shm_attach_fd.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint8]
        library.xcb_shm_attach_fd.restype = ctypes.c_uint  # a structure of one field
        segment = int(self.connection.generate_id())
        pointer = int(xcffib.ffi.cast("uintptr_t", self.connection._conn))
        library.xcb_shm_attach_fd(pointer, segment, os.dup(frames), 0)  # (It closes the descriptor.)
        self.sync()
        self.segment = segment

    def close(self) -> None:
        """Let go of the server; what was made here is gone with it."""
        self.connection.disconnect()

    def redirect(self) -> None:
        """Give each window a pixmap of its own, and be the window manager. :raise NoDisplay: there is another one."""
        self._composite.RedirectSubwindows(self.root, xcffib.composite.Redirect.Automatic)
        mask = EventMask.SubstructureRedirect | EventMask.SubstructureNotify | EventMask.PropertyChange
        try:
            self.core.ChangeWindowAttributesChecked(self.root, CW.EventMask, [mask]).check()
        except BadRequest as error:
            raise NoDisplay("another window manager runs on this X server") from error
        self.fixes.SelectCursorInput(self.root, xcffib.xfixes.CursorNotifyMask.DisplayCursor)

    def events(self) -> Iterator[Any]:
        """What has come; errors of requests nobody waits for are of windows that have gone."""
        while True:
            try:
                event = self.connection.poll_for_event()
            except BadRequest:
                continue
            except xcffib.ConnectionException as error:
                raise NoDisplay(str(error)) from error
            if event is None:
                return
            yield event

    def sync(self) -> None:
        """Return when the server has done all that was asked of it."""
        self.connection.wait_for_reply(self.core.GetInputFocus().sequence)

    def flush(self) -> None:
        self.connection.flush()

    # --- atoms and properties ------------------------------------------------------------------------------------

    def know(self, names: Iterable[str]) -> None:
        """Ask for many atoms at once: each takes a way to the server and back."""
        asked = [(name, self.core.InternAtom(False, len(name), name)) for name in names if name not in self._atoms]
        self._atoms.update([(name, int(cookie.reply().atom)) for name, cookie in asked])

    def atom(self, name: str) -> int:
        if name not in self._atoms:
            self._atoms[name] = int(self.core.InternAtom(False, len(name), name).reply().atom)
        return self._atoms[name]

    def property(self, window: int, name: str) -> bytes:
        """Its value, cut; empty if there is none. :raise BadRequest: the window is gone."""
        reply = self.core.GetProperty(False, window, self.atom(name), _ANY_TYPE, 0, MAX_PROPERTY // 4).reply()
        return bytes(reply.value.buf())

    def words(self, window: int, name: str, first: int, count: int) -> bytes:
        """Part of a property of 32-bit numbers: from that word on, that many or as many as there are.

        :raise BadRequest: the window is gone.
        """
        reply = self.core.GetProperty(False, window, self.atom(name), _ANY_TYPE, first, count).reply()
        return bytes(reply.value.buf()) if reply.format == 32 else b""

    def numbers(self, window: int, name: str) -> list[int]:
        """A property of 32-bit numbers."""
        value = self.property(window, name)
        return [int.from_bytes(value[at : at + 4], "little") for at in range(0, len(value) - 3, 4)]

    def set_numbers(self, window: int, name: str, kind: str, numbers: list[int]) -> None:
        self.set_numbers_of(window, self.atom(name), kind, numbers)

    def set_numbers_of(self, window: int, atom: int, kind: str, numbers: list[int]) -> None:
        """As :meth:`set_numbers`, of a property that somebody else has named."""
        data = b"".join([number.to_bytes(4, "little") for number in numbers])
        self.core.ChangeProperty(0, window, atom, self.atom(kind), 32, len(numbers), data)

    def set_resources(self, text: str) -> None:
        """Say what programs look like that were not told otherwise (RESOURCE_MANAGER), if nobody has."""
        if not self.property(self.root, "RESOURCE_MANAGER"):
            data = text.encode("ascii")
            self.core.ChangeProperty(
                0, self.root, self.atom("RESOURCE_MANAGER"), self.atom("STRING"), 8, len(data), data
            )

    def add_resource(self, name: str, value: str) -> None:
        """Set one of them; the others stay."""
        lines = self.property(self.root, "RESOURCE_MANAGER").split(b"\n")
        kept = [line for line in lines if line and not line.startswith(name.encode("ascii") + b":")]
        data = b"\n".join([*kept, f"{name}:\t{value}".encode("ascii"), b""])
        self.core.ChangeProperty(0, self.root, self.atom("RESOURCE_MANAGER"), self.atom("STRING"), 8, len(data), data)

    def send_protocol(self, window: int, protocol: str) -> None:
        """A client message WM_PROTOCOLS (ICCCM)."""
        data = xcffib.xproto.ClientMessageData.synthetic([self.atom(protocol), 0, 0, 0, 0], "IIIII")
        event = xcffib.xproto.ClientMessageEvent.synthetic(32, window, self.atom("WM_PROTOCOLS"), data)
        self.core.SendEvent(False, window, 0, event.pack())

    # --- input ---------------------------------------------------------------------------------------------------

    def read_modifiers(self) -> None:
        """The keyboard is laid out differently."""
        self._modifiers = self._read_modifiers()
        self._state = None

    def _read_modifiers(self) -> list[int]:
        """The first key code of each of the eight modifiers; 0: none."""
        reply = self.core.GetModifierMapping().reply()
        per = reply.keycodes_per_modifier
        codes = list(reply.keycodes)
        self._modifier_keys = frozenset(codes)
        return [next((code for code in codes[bit * per : (bit + 1) * per] if code), 0) for bit in range(8)]

    def fake(self, kind: int, detail: int, x: int = 0, y: int = 0) -> None:
        """XTEST: a key, a button, or (absolutely) the pointer."""
        if kind in (KEY_PRESS, KEY_RELEASE) and detail in self._modifier_keys:
            self._state = None
        self._fake.send(kind, detail, 0, self.root if kind == MOTION else 0, x, y, 0)

    def set_modifiers(self, state: int) -> None:
        """Make them those of the host: locks are pressed once, others held or let go."""
        if state == self._state:
            return
        mask = self.core.QueryPointer(self.root).reply().mask
        for bit, code in enumerate(self._modifiers):
            if not code or not (mask ^ state) >> bit & 1:
                continue
            is_lock = bit in (1, 4)  # Lock, and Mod2, which is Num Lock everywhere
            if is_lock:
                self.fake(KEY_PRESS, code)
                self.fake(KEY_RELEASE, code)
            else:
                self.fake(KEY_PRESS if state >> bit & 1 else KEY_RELEASE, code)
        self._state = state

    def keys_down(self) -> list[int]:
        keys = bytes(self.core.QueryKeymap().reply().keys)
        return [code for code in range(256) if keys[code // 8] >> code % 8 & 1]
