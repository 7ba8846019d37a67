"""Who may say what when on a GUI channel: the agent's end and the host's, over :mod:`insula_proto.gui_wire`.

::

    AgentEnd ── version ─────────────────────────────────────────────► HostEnd
             ◄─ version both speak, size of the screen ───────────────
             ── messages of gui.FROM_AGENT ─────────────────────────►
             ◄─ messages of gui.FROM_HOST ────────────────────────────

The handshake has no headers (§2). ``receive`` takes bytes in any split and returns messages; anything that may not come
is a RemoteProtocolError, and the end of that connection: an agent that connects again begins with the handshake and
announces every window anew. The methods that send return bytes and raise LocalProtocolError when they may not be used.
"""

from __future__ import annotations

import struct

from insula_proto import gui, gui_wire, limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.gui import (
    ClipboardData,
    ClipboardImage,
    Destroy,
    DumpAcknowledged,
    FramePicture,
    GrantPicture,
    Icon,
    Keyboard,
    Message,
    Painted,
    Screens,
)
from insula_proto.gui_wire import Decoder, encode
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAJOR = 1
MINOR = 8
"""Newest version; what both ends announce."""
MIN_MINOR = 4
"""Oldest: before it nobody answered with a version."""
DESTROY_IS_ACKNOWLEDGED = 5
DUMPS_ARE_ACKNOWLEDGED = 7
LARGE_CLIPBOARD = 8
"""Minor versions that began these."""

_VERSION = struct.Struct("<I")
_SCREEN = struct.Struct("<IIII")
_DEPTH = 24
_WIDTH_MULTIPLE = 8


class Hello(Value):
    """The other end's first words, after which messages may be sent. ``minor`` is what both speak."""

    __slots__ = ("minor", "screen")
    minor: int
    screen: Screen | None
    """What the host told the agent; None at the host's end."""

    def __init__(self, minor: int, screen: Screen | None = None) -> None:
        self._fill(minor=minor, screen=screen)


class Screen(Value):
    """Size of the host's screen in pixels, all monitors together."""

    __slots__ = ("height", "width")
    width: int
    height: int

    def __init__(self, width: int, height: int) -> None:
        self._fill(width=width, height=height)


def max_clipboard(minor: int) -> int:
    """Bytes of a clipboard in that version."""
    return limits.GUI_MAX_CLIPBOARD if minor >= LARGE_CLIPBOARD else limits.GUI_MAX_CLIPBOARD_BEFORE_8


def _version(minor: int) -> bytes:
    return _VERSION.pack(MAJOR << 16 | minor)


def _without(classes: tuple[type[Message], ...], *unwanted: type[Message]) -> tuple[type[Message], ...]:
    return tuple([cls for cls in classes if cls not in unwanted])


def _not_from_agent(uses_frames: bool) -> tuple[type[Message], ...]:
    """What an agent does not say: the other kind of picture, and without frame memory nothing that is ours."""
    return (GrantPicture,) if uses_frames else (FramePicture, Icon, ClipboardImage)


class _End:
    """What both have in common."""

    _hello_size: int

    def __init__(self, own_minor: int) -> None:
        self._own_minor = own_minor
        self._head = bytearray()
        self._decoder: Decoder | None = None
        self._may_send: tuple[type[Message], ...] = ()
        self.minor: int | None = None
        """Of the version both speak; None before the other end's first words."""

    @property
    def is_between_messages(self) -> bool:
        """Whether the peer owes us nothing (MC-13)."""
        return self._decoder is not None and self._decoder.is_between_messages

    def _open(self, untrusted_head: bytes) -> Hello:
        raise NotImplementedError

    def receive(self, untrusted_data: bytes) -> list[Hello | Message]:
        """Return what is complete: :class:`Hello` first, then messages. :raise RemoteProtocolError:"""
        if self._decoder is not None:
            return self._messages(untrusted_data)
        missing = self._hello_size - len(self._head)
        self._head += untrusted_data[:missing]
        if len(self._head) < self._hello_size:
            return []
        hello = self._open(bytes(self._head))
        return [hello, *self._messages(untrusted_data[missing:])]

    def _messages(self, untrusted_data: bytes) -> list[Hello | Message]:
        assert self._decoder is not None
        return [*self._decoder.receive(untrusted_data)]

    def send(self, message: Message) -> bytes:
        """:raise LocalProtocolError: it may not be said here, or not in this version."""
        if type(message) not in self._may_send:
            raise LocalProtocolError(f"{type(message).__name__} may not be sent now")
        if isinstance(message, ClipboardData):
            self._check_clipboard(message)
        return encode(message)

    def _check_clipboard(self, message: ClipboardData) -> None:
        assert self.minor is not None
        if len(message.data) > max_clipboard(self.minor):
            raise LocalProtocolError(f"clipboard of {len(message.data)} bytes")


def _check_minor(untrusted_version: int, what: str) -> int:
    """Return the minor number. :raise RemoteProtocolError: a version nobody here can speak."""
    major, minor = untrusted_version >> 16, untrusted_version & 0xFFFF
    if major != MAJOR or minor < MIN_MINOR:
        age = "new" if major > MAJOR else "old"
        raise RemoteProtocolError(f"version {major}.{minor} of the {what} is too {age}, {MAJOR}.{MINOR} is spoken here")
    return minor


class HostEnd(_End):
    """The host's end: everything it receives was written by a qube. Send :meth:`answer` when :class:`Hello` has come.

    ``uses_frames``: pictures are in frame memory; else in granted pages.
    """

    _hello_size = _VERSION.size

    def __init__(self, *, uses_frames: bool, own_minor: int = MINOR) -> None:
        super().__init__(own_minor)
        self._uses_frames = uses_frames

    def _open(self, untrusted_head: bytes) -> Hello:
        (untrusted_version,) = _VERSION.unpack(untrusted_head)
        self.minor = min(_check_minor(untrusted_version, "qube's GUI agent"), self._own_minor)
        allowed = _without(gui.FROM_AGENT, *_not_from_agent(self._uses_frames))
        # One byte more than may be is how an agent says "too long" (§9).
        excess = 1 if self.minor >= LARGE_CLIPBOARD else 0
        self._decoder = Decoder(allowed, longest_clipboard=max_clipboard(self.minor) + excess)
        return Hello(self.minor)

    def answer(self, screen: Screen) -> bytes:
        """The host's half of the handshake; messages may be sent after it."""
        if self.minor is None:
            raise LocalProtocolError("the agent has not said its version yet")
        unwanted: list[type[Message]] = [] if self._uses_frames else [Painted, Keyboard, Screens, ClipboardImage]
        if self.minor < DESTROY_IS_ACKNOWLEDGED:
            unwanted.append(Destroy)
        if self.minor < DUMPS_ARE_ACKNOWLEDGED:
            unwanted.append(DumpAcknowledged)
        self._may_send = _without(gui.FROM_HOST, *unwanted)
        width = -(-screen.width // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        kib = gui_wire.picture_size(width, screen.height) // 1024 + 1
        return _version(self.minor) + _SCREEN.pack(width, screen.height, _DEPTH, kib)

    def may_send(self, cls: type[Message]) -> bool:
        """Whether the version both speak has that message."""
        return cls in self._may_send


class AgentEnd(_End):
    """The qube's end. Send :meth:`hello` first."""

    _hello_size = _VERSION.size + _SCREEN.size

    def __init__(self, *, uses_frames: bool, own_minor: int = MINOR) -> None:
        super().__init__(own_minor)
        self._uses_frames = uses_frames

    def hello(self) -> bytes:
        return _version(self._own_minor)

    def _open(self, untrusted_head: bytes) -> Hello:
        (untrusted_version,) = _VERSION.unpack_from(untrusted_head)
        minor = _check_minor(untrusted_version, "host")
        if minor > self._own_minor:
            raise RemoteProtocolError(f"the host chose version {MAJOR}.{minor}, we offered {MAJOR}.{self._own_minor}")
        self.minor = minor
        self._decoder = Decoder(gui.FROM_HOST, longest_clipboard=max_clipboard(minor), skips_unknown=True)
        self._may_send = _without(gui.FROM_AGENT, *_not_from_agent(self._uses_frames))
        width, height, _, _ = _SCREEN.unpack_from(untrusted_head, _VERSION.size)
        return Hello(minor, Screen(width, height))

    def send_all(self, messages: Sequence[Message]) -> bytes:
        """As :meth:`send`, of many."""
        return b"".join([self.send(message) for message in messages])

    def refuse_clipboard(self, window: int) -> bytes:
        """Answer a request for what is longer than a clipboard may be. In versions that cannot say so: nothing."""
        assert self.minor is not None
        if self.minor < LARGE_CLIPBOARD:
            return b""
        size = limits.GUI_MAX_CLIPBOARD + 1
        return gui_wire.HEADER.pack(ClipboardData.kind, window, size) + bytes(size)
