"""Messages of the GUI protocol, versions 1.4 to 1.8, as published (reference: gui-protocol, §3, §4).

A message is a header (type, window, length: u32 little-endian) and a body; most bodies have a fixed layout, which
stands with the class. This module says what messages there are; :mod:`insula_proto.gui_wire` turns them into bytes and
back; who may say what when is decided in :mod:`insula_proto.gui_channel`.

Coordinates are those of a window's content in the guest's root window. Key codes are X key codes (evdev + 8), ``state``
is X's modifier mask.

**Where pictures are.** The published protocol names grant references (:class:`GrantPicture`), which need Xen. Where a
qube has *frame memory*, one piece of memory that its host can read, a picture is an offset in it
(:class:`FramePicture`, a type of WINDOW_DUMP of our own). Nothing but pixels is ever in that memory. An agent that has
found the frame memory and the host that gave it one know of each other by that; only then the host says
:class:`Painted`, which paces the agent.

Not spoken: MFNDUMP (deprecated, maps any memory), RESIZE and EXECUTE (obsolete). Window 0, "the whole screen" to some
published programs, is no window here and cannot be created.
"""

from __future__ import annotations

import struct

from insula_proto.value import Value, put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

# --- numbers -------------------------------------------------------------------------------------------------------

DUMP_GRANTS = 0
"""Type of a WINDOW_DUMP whose body goes on with grant references."""
DUMP_FRAME = 0x100
"""Ours: the body goes on with u64 offset, u32 bytes a row."""

# Bits of WINDOW_HINTS (ICCCM, WM_NORMAL_HINTS).
HINT_USER_POSITION = 1
HINT_PROGRAM_POSITION = 4
HINT_MIN_SIZE = 16
HINT_MAX_SIZE = 32
HINT_INCREMENT = 64
HINT_BASE_SIZE = 256

# Bits of WINDOW_FLAGS.
FLAG_FULLSCREEN = 1
FLAG_ATTENTION = 2
FLAG_MINIMISE = 4
FLAG_MODAL = 0x100
FLAG_DIALOG = 0x200
FLAG_UTILITY = 0x400
"""Ours, from an agent that uses frame memory, before MAP: what the window is. (Published hosts pass over bits they do
not know.)"""

CURSOR_DEFAULT = 0
CURSOR_FONT = 0x100
"""Plus the (even) number of a glyph of X's cursor font."""
CURSOR_FONT_END = 0x19A

NO_WINDOW = 0
"""Window of messages that are about none (CLIPBOARD_DATA, KEYMAP_NOTIFY), and "no parent"."""


class Message(Value):
    """Base of all; ``window`` is the agent's number of the window it is about."""

    __slots__ = ("window",)
    window: int
    kind: ClassVar[int]
    """Type number on the wire."""


class Layout:
    """A body of fixed length: the numbers in it, and which fields they are."""

    __slots__ = ("names", "struct")

    def __init__(self, numbers: str, names: str) -> None:
        self.struct = struct.Struct(numbers)
        self.names = tuple(names.split())


class Fixed(Message):
    """A message with a body of fixed length.

    ``choices``: the first field is a bool that is written as one of two event numbers. ``has_flag``: the last one is a
    bool written as 1 or 0.
    """

    __slots__ = ()
    layout: ClassVar[Layout] = Layout("<", "")
    choices: ClassVar[tuple[int, int] | None] = None
    has_flag: ClassVar[bool] = False


# --- both directions -----------------------------------------------------------------------------------------------


class Destroy(Fixed):
    """The window is gone. The host answers with the same from 1.5 on; until then the number must not be used again."""

    __slots__ = ()
    kind = 131

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class Map(Fixed):
    """Agent: show it. Host: the user brought it back; both fields are 0 then."""

    __slots__ = ("override_redirect", "transient_for")
    kind = 132
    layout = Layout("<II", "transient_for override_redirect")
    has_flag = True
    transient_for: int
    override_redirect: bool

    def __init__(self, window: int, transient_for: int = NO_WINDOW, override_redirect: bool = False) -> None:
        self._fill(window=window, transient_for=transient_for, override_redirect=override_redirect)


class Configure(Fixed):
    """Agent: a request, or the answer to the host's. Host: where the window is now (§6)."""

    __slots__ = ("height", "override_redirect", "width", "x", "y")
    kind = 134
    layout = Layout("<iiIII", "x y width height override_redirect")
    has_flag = True
    x: int
    y: int
    width: int
    height: int
    override_redirect: bool

    def __init__(self, window: int, x: int, y: int, width: int, height: int, override_redirect: bool = False) -> None:
        self._fill(window=window, x=x, y=y, width=width, height=height, override_redirect=override_redirect)


class ClipboardData(Message):
    """Agent: the answer to CLIPBOARD_REQ. Host: a paste. Text as UTF-8; the host never looks into it."""

    __slots__ = ("data",)
    kind = 140
    data: bytes

    def __init__(self, window: int, data: bytes) -> None:
        self._fill(window=window, data=data)


class WindowFlags(Fixed):
    """Agent: a wish. Host: what became true or false. Bits: ``FLAG_…``."""

    __slots__ = ("added", "removed")
    kind = 145
    layout = Layout("<II", "added removed")
    added: int
    removed: int

    def __init__(self, window: int, added: int, removed: int) -> None:
        self._fill(window=window, added=added, removed=removed)


# --- agent to host -------------------------------------------------------------------------------------------------


class Create(Fixed):
    """A top-level window exists, not shown yet. ``parent`` is ignored: there have been no subwindows for long."""

    __slots__ = ("height", "override_redirect", "parent", "width", "x", "y")
    kind = 130
    layout = Layout("<iiIIII", "x y width height parent override_redirect")
    has_flag = True
    x: int
    y: int
    width: int
    height: int
    parent: int
    override_redirect: bool

    def __init__(
        self,
        window: int,
        x: int,
        y: int,
        width: int,
        height: int,
        parent: int = NO_WINDOW,
        override_redirect: bool = False,
    ) -> None:
        self._fill(
            window=window, x=x, y=y, width=width, height=height, parent=parent, override_redirect=override_redirect
        )


class Unmap(Fixed):
    """Hide it."""

    __slots__ = ()
    kind = 133

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class Damage(Fixed):
    """SHMIMAGE: this part of the picture has changed."""

    __slots__ = ("height", "width", "x", "y")
    kind = 136
    layout = Layout("<iiII", "x y width height")
    x: int
    y: int
    width: int
    height: int

    def __init__(self, window: int, x: int, y: int, width: int, height: int) -> None:
        put(self, "window", window)
        put(self, "x", x)
        put(self, "y", y)
        put(self, "width", width)
        put(self, "height", height)


class Title(Message):
    """WMNAME. The text is what stood before the first NUL: any bytes."""

    __slots__ = ("text",)
    kind = 141
    text: bytes

    def __init__(self, window: int, text: bytes) -> None:
        self._fill(window=window, text=text)


class Dock(Fixed):
    """The window is an icon for the tray."""

    __slots__ = ()
    kind = 143

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class WindowHints(Fixed):
    """Sizes the program would like; ``flags`` (``HINT_…``) says which of them mean something."""

    __slots__ = (
        "base_height",
        "base_width",
        "flags",
        "height_increment",
        "max_height",
        "max_width",
        "min_height",
        "min_width",
        "width_increment",
    )
    kind = 144
    layout = Layout(
        "<9I", "flags min_width min_height max_width max_height width_increment height_increment base_width base_height"
    )
    flags: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    width_increment: int
    height_increment: int
    base_width: int
    base_height: int

    def __init__(  # noqa: PLR0913, PLR0917 - the body's fields, in order
        self,
        window: int,
        flags: int,
        min_width: int = 0,
        min_height: int = 0,
        max_width: int = 0,
        max_height: int = 0,
        width_increment: int = 0,
        height_increment: int = 0,
        base_width: int = 0,
        base_height: int = 0,
    ) -> None:
        self._fill(
            window=window,
            flags=flags,
            min_width=min_width,
            min_height=min_height,
            max_width=max_width,
            max_height=max_height,
            width_increment=width_increment,
            height_increment=height_increment,
            base_width=base_width,
            base_height=base_height,
        )


class WindowClass(Message):
    """WMCLASS. Any bytes without NUL."""

    __slots__ = ("class_name", "instance")
    kind = 146
    class_name: bytes
    instance: bytes

    def __init__(self, window: int, class_name: bytes, instance: bytes) -> None:
        self._fill(window=window, class_name=class_name, instance=instance)


class GrantPicture(Message):
    """WINDOW_DUMP, type 0: the window's pixels, 32 bits each, row after row, are in these granted pages."""

    __slots__ = ("height", "references", "width")
    kind = 147
    width: int
    height: int
    references: tuple[int, ...]

    def __init__(self, window: int, width: int, height: int, references: tuple[int, ...]) -> None:
        self._fill(window=window, width=width, height=height, references=references)


class FramePicture(Message):
    """WINDOW_DUMP, type 0x100: the window's pixels begin at ``offset`` of the frame memory, 32 bits each, row by row.

    That it lies inside the memory there is, is for the host to check.
    """

    __slots__ = ("height", "offset", "width")
    kind = 147
    width: int
    height: int
    offset: int

    def __init__(self, window: int, width: int, height: int, offset: int) -> None:
        self._fill(window=window, width=width, height=height, offset=offset)


class Cursor(Fixed):
    """What the pointer looks like over the window: 0, or :data:`CURSOR_FONT` and a number. No pictures."""

    __slots__ = ("cursor",)
    kind = 148
    layout = Layout("<I", "cursor")
    cursor: int

    def __init__(self, window: int, cursor: int) -> None:
        self._fill(window=window, cursor=cursor)


class Icon(Message):
    """Ours, of an agent that uses frame memory: the window's icon, blue, green, red and alpha for each pixel. It comes
    in the message: what is interpreted must not change while it is looked at. Empty: it has none any more."""

    __slots__ = ("height", "pixels", "width")
    kind = 0x8002
    width: int
    height: int
    pixels: bytes

    def __init__(self, window: int, width: int, height: int, pixels: bytes) -> None:
        self._fill(window=window, width=width, height=height, pixels=pixels)


# --- host to agent -------------------------------------------------------------------------------------------------


class Key(Fixed):
    __slots__ = ("code", "is_press", "state", "x", "y")
    kind = 124
    layout = Layout("<IiiII", "is_press x y state code")
    choices = (2, 3)
    is_press: bool
    x: int
    y: int
    state: int
    code: int

    def __init__(self, window: int, is_press: bool, x: int, y: int, state: int, code: int) -> None:
        put(self, "window", window)
        put(self, "is_press", is_press)
        put(self, "x", x)
        put(self, "y", y)
        put(self, "state", state)
        put(self, "code", code)


class Button(Fixed):
    __slots__ = ("button", "is_press", "state", "x", "y")
    kind = 125
    layout = Layout("<IiiII", "is_press x y state button")
    choices = (4, 5)
    is_press: bool
    x: int
    y: int
    state: int
    button: int

    def __init__(self, window: int, is_press: bool, x: int, y: int, state: int, button: int) -> None:
        self._fill(window=window, is_press=is_press, x=x, y=y, state=state, button=button)


class Motion(Fixed):
    __slots__ = ("is_hint", "state", "x", "y")
    kind = 126
    layout = Layout("<iiII", "x y state is_hint")
    has_flag = True
    x: int
    y: int
    state: int
    is_hint: bool

    def __init__(self, window: int, x: int, y: int, state: int, is_hint: bool = False) -> None:
        self._fill(window=window, x=x, y=y, state=state, is_hint=is_hint)


class Crossing(Fixed):
    """The pointer came into the window, or left it."""

    __slots__ = ("detail", "has_focus", "is_enter", "mode", "state", "x", "y")
    kind = 127
    layout = Layout("<IiiIIII", "is_enter x y state mode detail has_focus")
    choices = (7, 8)
    has_flag = True
    is_enter: bool
    x: int
    y: int
    state: int
    mode: int
    detail: int
    has_focus: bool

    def __init__(  # noqa: PLR0913, PLR0917 - as above
        self,
        window: int,
        is_enter: bool,
        x: int,
        y: int,
        state: int,
        mode: int = 0,
        detail: int = 0,
        has_focus: bool = False,
    ) -> None:
        self._fill(
            window=window, is_enter=is_enter, x=x, y=y, state=state, mode=mode, detail=detail, has_focus=has_focus
        )


class Focus(Fixed):
    """Keys go to the window from now on, or no more."""

    __slots__ = ("detail", "is_in", "mode")
    kind = 128
    layout = Layout("<III", "is_in mode detail")
    choices = (9, 10)
    is_in: bool
    mode: int
    detail: int

    def __init__(self, window: int, is_in: bool, mode: int = 0, detail: int = 0) -> None:
        self._fill(window=window, is_in=is_in, mode=mode, detail=detail)


class Close(Fixed):
    """The user wants the window closed."""

    __slots__ = ()
    kind = 137

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class ClipboardRequest(Fixed):
    """The user copies: answer with CLIPBOARD_DATA."""

    __slots__ = ()
    kind = 139

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class ClipboardImage(Message):
    """Ours, where frame memory is used: a clipboard that holds an image, in place of CLIPBOARD_DATA, both ways. Red,
    green, blue, alpha for each pixel, row by row: what an image file is, no host looks at."""

    __slots__ = ("height", "pixels", "width")
    kind = 0x8005
    width: int
    height: int
    pixels: bytes

    def __init__(self, window: int, width: int, height: int, pixels: bytes) -> None:
        self._fill(window=window, width=width, height=height, pixels=pixels)


class KeymapNotify(Message):
    """Which keys are down now, a bit for each of 256 codes; the agent lets go of all others (§8)."""

    __slots__ = ("keys",)
    kind = 142
    keys: bytes

    def __init__(self, window: int, keys: bytes) -> None:
        self._fill(window=window, keys=keys)


class DumpAcknowledged(Fixed):
    """WINDOW_DUMP_ACK, from 1.7 on: the picture before the last one is not looked at any more."""

    __slots__ = ()
    kind = 149

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class Painted(Fixed):
    """Ours, to an agent that uses frame memory: what it last reported of the window's damage is on the screen.

    Such an agent writes to a picture and reports damage only when the last report was answered, and collects meanwhile.
    So a picture is not changed while it is read, and a window that nobody sees costs nothing.
    """

    __slots__ = ()
    kind = 0x8001

    def __init__(self, window: int) -> None:
        self._fill(window=window)


class Keyboard(Message):
    """Ours, to an agent that uses frame memory: how the host's keyboard is laid out, in XKB's names (ASCII). Which of
    several layouts is active comes with each key, in bits 13 and 14 of ``state``."""

    __slots__ = ("layout", "options", "variant")
    kind = 0x8003
    layout: bytes
    variant: bytes
    options: bytes

    def __init__(self, window: int, layout: bytes, variant: bytes, options: bytes) -> None:
        self._fill(window=window, layout=layout, variant=variant, options=options)


class Screens(Message):
    """Ours, to an agent that uses frame memory: the host's screens, whenever they change. Each is x, y, width, height
    in pixels, then width and height in millimetres (0: not known)."""

    __slots__ = ("dpi", "monitors")
    kind = 0x8004
    dpi: int
    """Dots to the inch, for text."""
    monitors: tuple[tuple[int, int, int, int, int, int], ...]

    def __init__(self, window: int, dpi: int, monitors: tuple[tuple[int, int, int, int, int, int], ...]) -> None:
        self._fill(window=window, dpi=dpi, monitors=monitors)


class Unknown(Message):
    """From the host: a type this side does not know; its body was skipped (§3). Never encoded."""

    __slots__ = ("type",)
    kind = -1
    type: int

    def __init__(self, window: int, type: int) -> None:
        self._fill(window=window, type=type)


FROM_AGENT = (
    Create, Destroy, Map, Unmap, Configure, Damage, ClipboardData, Title, Dock, WindowHints, WindowFlags, WindowClass,
    GrantPicture, FramePicture, Cursor, Icon, ClipboardImage,
)  # fmt: skip
FROM_HOST = (
    Key, Button, Motion, Crossing, Focus, Destroy, Map, Configure, Close, ClipboardRequest, ClipboardData, KeymapNotify,
    WindowFlags, DumpAcknowledged, Painted, Keyboard, Screens, ClipboardImage,
)  # fmt: skip
