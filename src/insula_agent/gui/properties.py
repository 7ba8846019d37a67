"""What programs say of their windows by properties (ICCCM, EWMH), as messages to the host.

The agent is the window manager, so it also keeps the states that one keeps for programs (``_NET_WM_STATE``).
"""

from __future__ import annotations

from insula_agent.gui import icons
from insula_proto import gui, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from insula_agent.gui.display import Display
    from insula_proto.gui import Message

NAMES = ("WM_NAME", "_NET_WM_NAME", "WM_NORMAL_HINTS", "WM_CLASS", "WM_HINTS", "_NET_WM_ICON")
"""Properties whose change the host is told of."""
STATE = "_NET_WM_STATE"
FULLSCREEN, ATTENTION, MODAL, HIDDEN = (
    f"{STATE}_{name}" for name in ("FULLSCREEN", "DEMANDS_ATTENTION", "MODAL", "HIDDEN")
)
SUPPORTED = (
    *("_NET_SUPPORTED", "_NET_SUPPORTING_WM_CHECK", "_NET_WM_NAME", "_NET_ACTIVE_WINDOW", "_NET_FRAME_EXTENTS"),
    *(STATE, FULLSCREEN, ATTENTION, MODAL, HIDDEN),
    *("_NET_WM_WINDOW_TYPE", "_NET_WM_WINDOW_TYPE_NORMAL", "_NET_WM_WINDOW_TYPE_DIALOG"),
    "_NET_WM_WINDOW_TYPE_UTILITY",
)
"""What toolkits may count on."""
_KINDS = {
    "_NET_WM_WINDOW_TYPE_NORMAL": 0,
    "_NET_WM_WINDOW_TYPE_DIALOG": gui.FLAG_DIALOG,
    "_NET_WM_WINDOW_TYPE_UTILITY": gui.FLAG_UTILITY,
    "_NET_WM_WINDOW_TYPE_TOOLBAR": gui.FLAG_UTILITY,
    "_NET_WM_WINDOW_TYPE_MENU": gui.FLAG_UTILITY,
}
"""Types the host tells apart; a window has the first of its own that is known."""
ATOMS = (
    *(*NAMES, *SUPPORTED, *_KINDS, "WM_TRANSIENT_FOR", "WM_STATE", "WM_PROTOCOLS", "WM_DELETE_WINDOW"),
    *("WM_TAKE_FOCUS", "WM_CHANGE_STATE", "_NET_REQUEST_FRAME_EXTENTS", "UTF8_STRING"),
)
"""All that is spoken of."""
_INPUT_HINT, _STATE_HINT, _GROUP_HINT, _URGENCY_HINT = 1, 2, 64, 256
"""Bits of WM_HINTS, whose words are: bits, input, initial state, …, group."""
_GROUP_WORD = 8
_ICONIC = 3


def cut(text: bytes, size: int) -> bytes:
    """What fits a field of that size with its NUL, whole characters of UTF-8."""
    text = text.partition(b"\0")[0][: size - 1]
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-back] if wanted > back else text
    return text


class Properties:
    def __init__(self, display: Display, send: Callable[[Message], None]) -> None:
        self._display = display
        self._send = send

    # Those who read raise BadRequest: the window is gone.

    def name_of(self, atom: int) -> str | None:
        """Which of :data:`NAMES` it is."""
        return next((name for name in NAMES if atom == self._display.atom(name)), None)

    def announce(self, number: int, window: int, *, is_placed: bool) -> None:
        """Tell of a window that is new."""
        for name in ("WM_NORMAL_HINTS", "WM_CLASS"):
            self.tell(number, window, name, is_placed=is_placed)
        if self._display.property(window, "_NET_WM_ICON"):
            self.tell(number, window, "_NET_WM_ICON", is_placed=is_placed)

    def tell(self, number: int, window: int, name: str, *, is_placed: bool) -> None:
        """Tell of one property as it is now.

        :param is_placed: somebody has put it elsewhere than where X puts windows that nobody has placed.
        """
        display = self._display
        if name in ("WM_NAME", "_NET_WM_NAME"):
            title = display.property(window, "_NET_WM_NAME") or display.property(window, "WM_NAME")
            self._send(gui.Title(number, cut(title, limits.GUI_TITLE_SIZE)))
        elif name == "WM_CLASS":
            instance, _, rest = display.property(window, name).partition(b"\0")
            class_name = rest.partition(b"\0")[0]
            size = limits.GUI_CLASS_SIZE
            self._send(gui.WindowClass(number, cut(class_name, size), cut(instance, size)))
        elif name == "WM_NORMAL_HINTS":
            fields = display.numbers(window, name)
            if len(fields) >= 17:
                flags, _, _, _, _, *sizes = fields[:11]
                if not is_placed:
                    # Toolkits say so all the same.
                    flags &= ~(gui.HINT_PROGRAM_POSITION | gui.HINT_USER_POSITION)
                self._send(gui.WindowHints(number, flags, *sizes, *fields[15:17]))
        elif name == "_NET_WM_ICON":
            icon = icons.load(lambda first, count: display.words(window, name, first, count))
            self._send(gui.Icon(number, *(icon or (0, 0, b""))))
        elif name == "WM_HINTS":
            bits = (display.numbers(window, name) or [0])[0]
            self.tell_attention(number, is_wanted=bool(bits & _URGENCY_HINT))

    def tell_attention(self, number: int, *, is_wanted: bool) -> None:
        added, removed = (gui.FLAG_ATTENTION, 0) if is_wanted else (0, gui.FLAG_ATTENTION)
        self._send(gui.WindowFlags(number, added, removed))

    def tell_kind(self, number: int, window: int) -> None:
        """Before it is shown: what it is, and how it wants to be shown."""
        display = self._display
        states = display.numbers(window, STATE)
        hints = display.numbers(window, "WM_HINTS")
        bits = hints[0] if hints else 0
        flags = self._kind(window)
        for state, flag in (
            (MODAL, gui.FLAG_MODAL),
            (FULLSCREEN, gui.FLAG_FULLSCREEN),
            (ATTENTION, gui.FLAG_ATTENTION),
        ):
            flags |= flag if display.atom(state) in states else 0
        if bits & _URGENCY_HINT:
            flags |= gui.FLAG_ATTENTION
        if bits & _STATE_HINT and len(hints) > 2 and hints[2] == _ICONIC:
            flags |= gui.FLAG_MINIMISE
        if flags:
            self._send(gui.WindowFlags(number, flags, 0))

    def _kind(self, window: int) -> int:
        display = self._display
        types = display.numbers(window, "_NET_WM_WINDOW_TYPE")
        known = {display.atom(name): flag for name, flag in _KINDS.items()}
        for kind in types:
            if kind in known:
                return known[kind]
        # One that belongs to another and does not say what it is, is a dialog (EWMH).
        return gui.FLAG_DIALOG if not types and display.property(window, "WM_TRANSIENT_FOR") else 0

    def owner(self, window: int, others: Iterable[int]) -> int:
        """The window it belongs to, 0: none. One that belongs to its whole group, or to something that is not to be
        seen, belongs to the first of ``others`` in the group."""
        display = self._display
        named = display.numbers(window, "WM_TRANSIENT_FOR")
        if not named:
            return 0
        others = [other for other in others if other != window]
        if named[0] in others:
            return named[0]
        group = self._group(window)
        return next((other for other in others if group and self._group(other) == group), 0)

    def _group(self, window: int) -> int:
        hints = self._display.numbers(window, "WM_HINTS")
        return hints[_GROUP_WORD] if len(hints) > _GROUP_WORD and hints[0] & _GROUP_HINT else 0

    def takes_input(self, window: int) -> bool:
        """Whether it is to be given the keyboard by the window manager."""
        hints = self._display.numbers(window, "WM_HINTS")
        return len(hints) < 2 or not hints[0] & _INPUT_HINT or bool(hints[1])

    def has_state(self, window: int, state: str) -> bool:
        return self._display.atom(state) in self._display.numbers(window, STATE)

    def set_state(self, window: int, state: str, *, is_on: bool) -> None:
        """Note that a window is shown so now, or is not any more."""
        atom = self._display.atom(state)
        states = self._display.numbers(window, STATE)
        if is_on is not (atom in states):
            states = [*states, atom] if is_on else [other for other in states if other != atom]
            self._display.set_numbers(window, STATE, "ATOM", states)
