"""Invariant: both ends of a GUI channel, fed any bytes, return messages they may get or raise RemoteProtocolError; a
window and a picture they return have a possible size (MC-35), and what they keep is bounded by one message (MC-11).
"""

from __future__ import annotations

import harness

from insula_proto import gui, gui_wire, limits
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui_channel import AgentEnd, HostEnd, Screen

AGENT_HELLO = AgentEnd(uses_frames=True).hello()
HOST = HostEnd(uses_frames=True)
HOST.receive(AGENT_HELLO)
HOST_HELLO = HOST.answer(Screen(1280, 800))
SEEDS = [
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.Create(1, 0, 0, 10, 10)) + gui_wire.encode(gui.Map(1)),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.FramePicture(1, 9, 9, 4096)) + gui_wire.encode(gui.Damage(1, 0, 0, 5, 5)),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.Title(1, b"title")) + gui_wire.encode(gui.WindowClass(1, b"a", b"b")),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.Configure(1, 0, 0, 10, 10)) + gui_wire.encode(gui.Cursor(1, 0x102)),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.WindowHints(1, 16, 5, 5)) + gui_wire.encode(gui.WindowFlags(1, 1, 0)),
    b"\1" + AGENT_HELLO + gui_wire.encode(gui.GrantPicture(1, 10, 10, (3,))) + gui_wire.encode(gui.Destroy(1)),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.ClipboardData(0, b"text")) + gui_wire.encode(gui.Unmap(1)),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.Key(1, True, 0, 0, 0, 38)) + gui_wire.encode(gui.Focus(1, True)),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.KeymapNotify(0, bytes(32))) + gui_wire.encode(gui.Painted(1)),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.Crossing(1, True, 0, 0, 0)) + gui_wire.encode(gui.Close(1)),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.Icon(1, 2, 3, bytes(24))) + gui_wire.encode(gui.Icon(1, 0, 0, b"")),
    b"\0" + AGENT_HELLO + gui_wire.encode(gui.ClipboardImage(1, 2, 3, bytes(24))),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.ClipboardImage(1, 2, 3, bytes(24))),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.Keyboard(0, b"de,us", b"neo,", b"ctrl:nocaps")),
    b"\2" + HOST_HELLO + gui_wire.encode(gui.Screens(0, 96, ((0, 0, 1280, 800, 300, 190), (1280, 0, 800, 600, 0, 0)))),
]  # fmt: skip
LONGEST = gui_wire.HEADER.size + gui_wire.lengths((gui.ClipboardImage,))[gui.ClipboardImage.kind][1]


def make_end(choice: int) -> HostEnd | AgentEnd:
    return AgentEnd(uses_frames=True) if choice % 3 == 2 else HostEnd(uses_frames=choice % 3 == 0)


def fuzz_one(data: bytes) -> None:
    end = make_end(data[0] if data else 0)
    try:
        for piece in harness.pieces(data[1:]):
            for message in end.receive(piece):
                if isinstance(message, (gui.Create, gui.Configure)):
                    assert 0 < message.width < 2**31
                    assert 0 < message.height < 2**31
                elif isinstance(message, (gui.FramePicture, gui.GrantPicture)):
                    assert 0 < message.width <= limits.GUI_MAX_WIDTH
                    assert 0 < message.height <= limits.GUI_MAX_HEIGHT
    except RemoteProtocolError:
        pass
    kept = end._decoder
    assert kept is None or len(kept._partial) <= LONGEST


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
