"""What only an X11 desktop needs, over Qt's own connection to it: which keys are down, and what lies where.

X repeats a key that is held to whoever has the focus, as presses, and Qt takes the first of them for a new one. So the
server is asked when a window gets the focus, and when a key is said to be released. (On Wayland keys are repeated by
the program that saw them pressed.)

On X11 a popup may be put anywhere, so what it may not cover must be found (:func:`Neighbours.look`): by the server's
order of all windows, in which each managed one lies in its window manager's frame.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from insula.gui.backend.xcb import Xcb, children, numbers, property_bytes
from insula.gui.cover import Pane
from insula.gui.desktop import Layout
from insula.gui.geometry import WINDOW_FRAME, Rect

_KEYS_AT = 8
_KEYS = 32
"""``xcb_query_keymap_reply_t``: a bit for each of 256 key codes behind eight bytes."""
_VIEWABLE = 2
_INPUT_OUTPUT = 1
MAX_WINDOWS = 1024
"""Windows of the desktop that are looked at, the upper ones."""
MAX_CLIENTS = 256
MAX_DEPTH = 4
"""Windows a window manager puts around one."""
_RULES_NAMES = 5
"""Rules, model, layout, variant, options."""
PROMPT_CLASS = b"insula-prompt"


def held_keys(xcb: Xcb) -> frozenset[int]:
    """X key codes that are down now, whoever saw them pressed."""
    reply = xcb.answer(xcb.ask("query_keymap"))
    if reply is None:
        return frozenset()  # the connection broke, which ends the program
    bits = reply[_KEYS_AT : _KEYS_AT + _KEYS]
    return frozenset(code for code in range(8 * _KEYS) if bits[code // 8] >> code % 8 & 1)


def layout(xcb: Xcb) -> Layout | None:
    """How the keyboard is laid out, if the server was told by names."""
    value = property_bytes(xcb.answer(xcb.ask_property(xcb.root, "_XKB_RULES_NAMES")))
    names = value.decode("ascii", "replace").split("\0")
    return Layout(*names[2:5]) if len(names) >= _RULES_NAMES and names[2] else None


@dataclass(frozen=True)
class Seen:
    """The desktop, as others' windows lie on it."""

    panes: tuple[Pane, ...]
    """Topmost first."""
    docks: tuple[Rect, ...]
    """Panels."""


@dataclass(frozen=True)
class Listed:
    """A window that can be seen, as its program named it."""

    instance: bytes
    class_name: bytes
    place: Rect
    """With all that is drawn around it."""
    is_managed: bool


class Neighbours:
    def __init__(self, xcb: Xcb) -> None:
        self._xcb = xcb
        self._desktop = xcb.atom("_NET_WM_WINDOW_TYPE_DESKTOP")
        self._dock = xcb.atom("_NET_WM_WINDOW_TYPE_DOCK")
        self._above = xcb.atom("_NET_WM_STATE_ABOVE")

    def look(self, own: Collection[int]) -> Seen:
        """Look around; ``own`` are the X server's numbers of the qube's windows."""
        xcb = self._xcb
        tree, listed = xcb.ask("query_tree", xcb.root), xcb.ask_property(xcb.root, "_NET_CLIENT_LIST")
        order = children(xcb.answer(tree))[-MAX_WINDOWS:]
        clients = numbers(property_bytes(xcb.answer(listed)))[:MAX_CLIENTS]
        client_in = self._frames(clients)
        rects = self._shown(order)
        managed = [window for window in order if window in rects and window in client_in]
        described = dict(zip(managed, self._describe([client_in[window] for window in managed]), strict=True))
        panes: list[Pane] = []
        docks: list[Rect] = []
        for window in reversed(order):
            if window not in rects or window in own:
                continue  # (its own popups lie where they may)
            client = client_in.get(window)
            if client is None:
                panes.append(Pane(rects[window]))
                continue
            kinds, states, of_class, inner = described[window]
            if client in own:
                panes.append(Pane(rects[window], is_own=True))
            elif self._dock in kinds:
                docks.append(rects[window])
                panes.append(Pane(rects[window]))
            elif self._above in states or PROMPT_CLASS in of_class.split(b"\0"):
                panes.append(Pane(rects[window]))
            elif self._desktop not in kinds:
                # (Only classes of windows that insula-gui shows have a colon.)
                content = WINDOW_FRAME.inside(inner) if b":" in of_class else inner
                panes.append(Pane(rects[window], content))
        return Seen(tuple(panes), tuple(docks))

    def windows(self) -> list[Listed]:
        """All that can be seen, topmost first, panels and the desktop itself aside as windows that are not managed."""
        xcb = self._xcb
        tree, listed = xcb.ask("query_tree", xcb.root), xcb.ask_property(xcb.root, "_NET_CLIENT_LIST")
        order = children(xcb.answer(tree))[-MAX_WINDOWS:]
        client_in = self._frames(numbers(property_bytes(xcb.answer(listed)))[:MAX_CLIENTS])
        rects = self._shown(order)
        there = [window for window in reversed(order) if window in rects]
        found = []
        for window, about in zip(there, self._describe([client_in.get(each, each) for each in there]), strict=True):
            kinds, _, of_class, _ = about
            instance, _, class_name = of_class.removesuffix(b"\0").partition(b"\0")
            is_managed = window in client_in and self._dock not in kinds and self._desktop not in kinds
            found.append(Listed(instance, class_name, rects[window], is_managed))
        return found

    def active(self) -> tuple[int, Rect] | None:
        """The window the user works in, and where it is without its window manager's frame."""
        xcb = self._xcb
        active = numbers(property_bytes(xcb.answer(xcb.ask_property(xcb.root, "_NET_ACTIVE_WINDOW"))))
        if not active or not active[0]:
            return None
        [(_, _, _, rect)] = self._describe(active[:1])
        return active[0], rect

    def _shown(self, windows: Sequence[int]) -> dict[int, Rect]:
        """Of those that can be seen: where they are."""
        xcb = self._xcb
        asked = [(xcb.ask("get_window_attributes", window), xcb.ask("get_geometry", window)) for window in windows]
        rects = {}
        for window, (attributes, geometry) in zip(windows, asked, strict=True):
            about, rect = xcb.answer(attributes), _rect(xcb.answer(geometry))
            if about is None or rect is None:
                continue
            if about[26] == _VIEWABLE and int.from_bytes(about[12:14], "little") == _INPUT_OUTPUT:
                rects[window] = rect
        return rects

    def _frames(self, clients: Sequence[int]) -> dict[int, int]:
        """The root's child that each client lies in → the client."""
        xcb = self._xcb
        found: dict[int, int] = {}
        waiting = {client: client for client in clients}
        for _ in range(MAX_DEPTH):
            asked = [(client, outer, xcb.ask("query_tree", outer)) for client, outer in waiting.items()]
            waiting = {}
            for client, outer, question in asked:
                reply = xcb.answer(question)
                parent = int.from_bytes(reply[12:16], "little") if reply is not None else 0
                if parent == xcb.root:
                    found[outer] = client
                elif parent:
                    waiting[client] = parent
        return found

    def _describe(self, clients: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...], bytes, Rect]]:
        """Types, states, class and place of each."""
        xcb = self._xcb
        asked = [
            [
                xcb.ask_property(client, "_NET_WM_WINDOW_TYPE"),
                xcb.ask_property(client, "_NET_WM_STATE"),
                xcb.ask_property(client, "WM_CLASS"),
                xcb.ask("get_geometry", client),
                xcb.ask("translate_coordinates", client, xcb.root, 0, 0),
            ]
            for client in clients
        ]
        described = []
        for questions in asked:
            kinds, states, of_class, geometry, where = xcb.answers(questions)
            rect = _rect(geometry) or Rect(0, 0, 0, 0)
            x, y = struct.unpack_from("<hh", where, 12) if where is not None else (0, 0)
            described.append(
                (
                    numbers(property_bytes(kinds)),
                    numbers(property_bytes(states)),
                    property_bytes(of_class),
                    Rect(x, y, rect.width, rect.height),
                )
            )
        return described


def _rect(reply: bytes | None) -> Rect | None:
    """Of a reply to GetGeometry, its border included."""
    if reply is None:
        return None
    x, y, width, height, border = struct.unpack_from("<hhHHH", reply, 12)
    return Rect(x, y, width + 2 * border, height + 2 * border)
