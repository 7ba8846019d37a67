"""A program with a window that owns the clipboard of its X server: an image, handed out in parts (ICCCM's INCR).

It needs nothing but Python and xcffib, so it runs in a qube as in tests without one. It prints ``copied`` when it does.
"""

from __future__ import annotations

SIDE_X, SIDE_Y = 500, 400
"""Of the image, in pixels."""
IMAGE_OWNER = """\
import struct, sys, zlib
import xcffib, xcffib.xproto as x
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\\0" + bytes((y * 7 + i) % 251 for i in range(3 * 500)) for y in range(400))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 500, 400, 8, 2, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")
connection = xcffib.connect()
core, root = connection.core, connection.get_setup().roots[0].root
def atom(name):
    return core.InternAtom(False, len(name), name).reply().atom
window = connection.generate_id()
core.CreateWindow(0, window, root, 40, 60, 200, 100, 0, 1, 0, x.CW.BackPixel, [0x404040])
core.MapWindow(window)
core.SetSelectionOwner(window, atom("CLIPBOARD"), 0)
connection.flush()
print("copied", flush=True)
parts = [png[at : at + 65536] for at in range(0, len(png), 65536)] + [b""]
where = None
while True:
    event = connection.wait_for_event()
    if isinstance(event, x.SelectionRequestEvent):
        given = 0
        if event.target == atom("image/png"):
            where, given = (event.requestor, event.property), event.property
            core.ChangeWindowAttributes(event.requestor, x.CW.EventMask, [x.EventMask.PropertyChange])
            core.ChangeProperty(0, event.requestor, event.property, atom("INCR"), 32, 1, struct.pack("<I", len(png)))
        notice = x.SelectionNotifyEvent.synthetic(event.time, event.requestor, event.selection, event.target, given)
        core.SendEvent(False, event.requestor, 0, notice.pack())
    elif isinstance(event, x.PropertyNotifyEvent) and where == (event.window, event.atom) and event.state and parts:
        part = parts.pop(0)
        core.ChangeProperty(0, *where, atom("image/png"), 8, len(part), part)
    connection.flush()
"""

ASK_FOR_IMAGE = """\
import struct, xcffib, xcffib.xproto as x
connection = xcffib.connect()
core, root = connection.core, connection.get_setup().roots[0].root
def atom(name):
    return core.InternAtom(False, len(name), name).reply().atom
window = connection.generate_id()
core.CreateWindow(0, window, root, -9, -9, 1, 1, 0, 2, 0, 0, [])
core.ConvertSelection(window, atom("CLIPBOARD"), atom("image/png"), atom("TAKEN"), 0)
connection.flush()
while True:
    event = connection.wait_for_event()
    if isinstance(event, x.SelectionNotifyEvent):
        break
if event.property:
    data = bytes(core.GetProperty(False, window, event.property, 0, 0, 1 << 24).reply().value.buf())
    print(*struct.unpack(">II", data[16:24]))
"""
"""Prints width and height of the image in the clipboard, or nothing."""
