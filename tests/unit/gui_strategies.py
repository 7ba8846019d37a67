"""Messages of the GUI protocol for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from insula_proto import gui
from insula_proto.gui import Message

U32 = st.integers(0, 0xFFFFFFFF)
I32 = st.integers(-(2**31), 2**31 - 1)
WINDOW = st.integers(1, 0xFFFFFFFF)
SIDE = st.integers(1, 0x7FFFFFFF)
FLAG = st.booleans()


def text(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=size - 1).map(lambda data: data.replace(b"\0", b"0"))


def grant_picture(window: int, width: int, height: int, more: int) -> Message:
    pages = -(-width * height * 4 // 4096) + more
    return gui.GrantPicture(window, width, height, tuple(range(pages)))


CLIPBOARD = st.builds(gui.ClipboardData, U32, st.binary(max_size=500))
DESTROY = st.builds(gui.Destroy, U32)
MAP = st.builds(gui.Map, U32, U32, FLAG)
CONFIGURE = st.builds(gui.Configure, U32, I32, I32, SIDE, SIDE, FLAG)
FLAGS = st.tuples(U32, U32, U32).map(lambda three: gui.WindowFlags(three[0], three[1], three[2] & ~three[1]))
FRAME_PICTURE = st.builds(
    gui.FramePicture, U32, st.integers(1, 16384), st.integers(1, 6144), st.integers(0, 2**50).map(lambda n: n * 4096)
)
GRANT_PICTURE = st.builds(grant_picture, U32, st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
CURSOR = st.builds(gui.Cursor, U32, st.just(0) | st.integers(0, 76).map(lambda n: 0x100 + 2 * n))

ICON = st.tuples(U32, st.integers(1, 64), st.integers(1, 64)).map(
    lambda three: gui.Icon(
        *three, bytes(range(256)) * (three[1] * three[2] // 64) + bytes(three[1] * three[2] % 64 * 4)
    )
) | st.builds(gui.Icon, U32, st.just(0), st.just(0), st.just(b""))


@st.composite
def images(draw: st.DrawFn) -> Message:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = 4 * width * height
    return gui.ClipboardImage(draw(U32), width, height, draw(st.binary(min_size=size, max_size=size)))


KEYBOARD = st.builds(gui.Keyboard, U32, *[st.text("abc_,:-", max_size=size).map(str.encode) for size in (63, 63, 255)])
MONITOR = st.tuples(st.integers(0, 16384), st.integers(0, 6144), st.integers(1, 16384), st.integers(1, 6144), U32, U32)
SCREENS = st.builds(
    gui.Screens, U32, st.integers(48, 480), st.lists(MONITOR, min_size=1, max_size=16).map(tuple)
)  # fmt: skip
OURS_FROM_HOST: st.SearchStrategy[Message] = KEYBOARD | SCREENS | images()

FROM_AGENT: st.SearchStrategy[Message] = st.one_of(
    st.builds(gui.Create, WINDOW, I32, I32, SIDE, SIDE, U32, FLAG),
    DESTROY,
    MAP,
    st.builds(gui.Unmap, U32),
    CONFIGURE,
    st.builds(gui.Damage, U32, I32, I32, U32, U32),
    CLIPBOARD,
    st.builds(gui.Title, U32, text(128)),
    st.builds(gui.Dock, U32),
    st.builds(gui.WindowHints, U32, *[U32] * 9),
    FLAGS,
    st.builds(gui.WindowClass, U32, text(64), text(64)),
    CURSOR,
)
"""But icons, which are ours, and pictures, of which a channel has one kind."""

FROM_HOST: st.SearchStrategy[Message] = st.one_of(
    st.builds(gui.Key, U32, FLAG, I32, I32, U32, U32),
    st.builds(gui.Button, U32, FLAG, I32, I32, U32, U32),
    st.builds(gui.Motion, U32, I32, I32, U32, FLAG),
    st.builds(gui.Crossing, U32, FLAG, I32, I32, U32, U32, U32, FLAG),
    st.builds(gui.Focus, U32, FLAG, U32, U32),
    DESTROY,
    MAP,
    CONFIGURE,
    st.builds(gui.Close, U32),
    st.builds(gui.ClipboardRequest, U32),
    CLIPBOARD,
    st.builds(gui.KeymapNotify, U32, st.binary(min_size=32, max_size=32)),
    FLAGS,
    st.builds(gui.DumpAcknowledged, U32),
    st.builds(gui.Painted, U32),
)
