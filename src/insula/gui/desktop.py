"""What happens on the desktop, and what it is told to do: the words between the machines and a back end.

Events are past tense, commands imperative. All are about windows of one qube, by the guest's numbers; all text in
commands is harmless to show. A back end carries out commands in their order, at once; an event may be about a window
that has been hidden meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from insula.gui.geometry import ICON_FRAME, POPUP_FRAME, WINDOW_FRAME, Desk, Frame, Rect
from insula_proto.gui import Message

_FRAMES = {"window": WINDOW_FRAME, "popup": POPUP_FRAME, "icon": ICON_FRAME}
"""By what a style is called; asked for with each picture, and an enumeration's own hash is slow."""


class Style(Enum):
    WINDOW = "window"
    """Moved, resized and closed by the user through the desktop's window manager."""
    POPUP = "popup"
    """A menu or tooltip: above all others, not managed, never with focus."""
    ICON = "icon"
    """In the desktop's tray, which gives it place and size."""

    @property
    def frame(self) -> Frame:
        return _FRAMES[self._value_]


class Role(Enum):
    """What a window of the style WINDOW is to its program; the desktop may place and stack it by that."""

    NORMAL = "normal"
    DIALOG = "dialog"
    UTILITY = "utility"
    """A palette, a torn-off menu: of use beside the window it belongs to."""


@dataclass(frozen=True)
class State:
    """How a window of the style WINDOW is shown."""

    is_fullscreen: bool = False
    is_maximised: bool = False
    is_minimised: bool = False
    wants_attention: bool = False


@dataclass(frozen=True)
class SizeHints:
    """In pixels of content; None: not limited."""

    minimum: tuple[int, int] | None = None
    maximum: tuple[int, int] | None = None
    increment: tuple[int, int] | None = None
    base: tuple[int, int] | None = None


@dataclass(frozen=True)
class Picture:
    """Where a window's pixels are in the frame memory: inside it, checked."""

    offset: int
    width: int
    height: int


@dataclass(frozen=True)
class Icon:
    """Blue, green, red, alpha for each pixel, as the guest gave it: to be tinted before it is shown (``tint``)."""

    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True)
class Layout:
    """Of a keyboard, in XKB's names: ``us``, ``de,us``."""

    layout: str
    variant: str = ""
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> Layout:
        """As the property ``keyboard_layout`` has it: ``us+dvorak+ctrl:nocaps``."""
        layout, _, rest = text.partition("+")
        variant, _, options = rest.partition("+")
        return cls(layout, variant, options)


# --- commands ------------------------------------------------------------------------------------------------------


class Command:
    """Base of all."""


@dataclass(frozen=True)
class Send(Command):
    """To the guest; all others are for the back end."""

    message: Message


@dataclass(frozen=True)
class Show(Command):
    window: int
    style: Style
    place: Rect
    title: str
    """Without the qube's name: the back end draws that apart."""
    class_name: str
    instance: str = ""
    """As ``class_name``: what the program calls this window of its class."""
    role: Role = Role.NORMAL
    parent: int | None = None
    """A window that is shown: this one belongs to it."""
    is_modal: bool = False
    """That window is to wait for this one."""
    is_positioned: bool = True
    """Else the desktop finds a place; ``place`` gives the size only."""
    may_focus: bool = False
    """Whether it may have the keyboard at once: the user is working in this qube now (MC-44)."""
    is_expected: bool = False
    """The user has just started a program in this qube, and looks for its window. (It gets no keyboard by that: by now
    the user may type elsewhere.)"""
    state: State = State()
    hints: SizeHints = SizeHints()


@dataclass(frozen=True)
class Hide(Command):
    """Nothing is left of it on the desktop; its picture is not looked at any more."""

    window: int


@dataclass(frozen=True)
class Move(Command):
    window: int
    place: Rect


@dataclass(frozen=True)
class SetTitle(Command):
    window: int
    title: str


@dataclass(frozen=True)
class SetState(Command):
    window: int
    state: State


@dataclass(frozen=True)
class SetHints(Command):
    window: int
    hints: SizeHints


@dataclass(frozen=True)
class SetPicture(Command):
    """Look there from now on, and not at the picture before; None: show the background."""

    window: int
    picture: Picture | None


@dataclass(frozen=True)
class SetCursor(Command):
    """As in :class:`insula_proto.gui.Cursor`."""

    window: int
    cursor: int


@dataclass(frozen=True)
class SetIcon(Command):
    """None: it has none of its own."""

    window: int
    icon: Icon | None


@dataclass(frozen=True)
class Paint(Command):
    """These parts of the content, from the picture; the rest is as it was."""

    window: int
    rects: tuple[Rect, ...]


@dataclass(frozen=True)
class Activate(Command):
    """The user clicked into it: give it the keyboard."""

    window: int


@dataclass(frozen=True)
class Tell(Command):
    """Tell the user, in the desktop's corner; host text with the qube's name before it."""

    text: str


@dataclass(frozen=True)
class StartCopy(Command):
    """The user copies from this qube: what comes as :class:`OfferCopy` with this number is the answer."""

    number: int
    stamp: int
    """Of the key press, in milliseconds of the display server's 32-bit clock."""


@dataclass(frozen=True)
class OfferCopy(Command):
    number: int
    data: bytes
    """Never shown, never logged."""
    is_image: bool = False
    """A body of :class:`insula_proto.gui.ClipboardImage`; else text."""


@dataclass(frozen=True)
class FailCopy(Command):
    number: int
    reason: str


@dataclass(frozen=True)
class AskPaste(Command):
    """The user pastes into this qube: what may be pasted comes back with this number."""

    number: int
    stamp: int


ABOUT_A_WINDOW = (
    Show, Hide, Move, SetTitle, SetState, SetHints, SetPicture, SetCursor, SetIcon, Paint, Activate,
)  # fmt: skip
"""Commands a back end carries out; the others are for whoever started it."""


# --- events --------------------------------------------------------------------------------------------------------


class Event:
    """Base of all."""


@dataclass(frozen=True)
class DeskChanged(Event):
    desk: Desk


@dataclass(frozen=True)
class LayoutChanged(Event):
    """The user's keyboard is laid out so now."""

    layout: Layout


@dataclass(frozen=True)
class Moved(Event):
    """The content is there now, whoever moved it."""

    window: int
    place: Rect


@dataclass(frozen=True)
class StateChanged(Event):
    """It is shown so now, whoever wanted it; ``wants_attention`` does not matter."""

    window: int
    state: State


@dataclass(frozen=True)
class Exposed(Event):
    """It can be seen from now on."""

    window: int


@dataclass(frozen=True)
class Obscured(Event):
    """Nothing of it can be seen."""

    window: int


@dataclass(frozen=True)
class Undocked(Event):
    """An icon is in no tray: there is none, or it has gone."""

    window: int


@dataclass(frozen=True)
class CloseRequested(Event):
    window: int


@dataclass(frozen=True)
class FocusGained(Event):
    window: int
    held: frozenset[int] = frozenset()
    """X key codes that are down already: pressed elsewhere."""


@dataclass(frozen=True)
class FocusLost(Event):
    window: int


@dataclass(frozen=True)
class KeyChanged(Event):
    window: int
    is_press: bool
    code: int
    """X key code."""
    symbol: str
    """What is on the key in the user's layout, lower case; "" if it is no character."""
    state: int
    """X modifier mask before the key."""
    x: int
    y: int
    """The pointer, relative to the content."""
    is_repeat: bool
    stamp: int


@dataclass(frozen=True)
class ButtonChanged(Event):
    window: int
    is_press: bool
    button: int
    """X number: 4 to 7 are turns of a wheel, each a press and a release."""
    state: int
    x: int
    y: int


@dataclass(frozen=True)
class PointerMoved(Event):
    window: int
    state: int
    x: int
    y: int


@dataclass(frozen=True)
class PointerCrossed(Event):
    window: int
    is_enter: bool
    state: int
    x: int
    y: int


PASSED_ON = (KeyChanged, PointerMoved, PointerCrossed)
"""Events that at most the guest is told of: they change nothing on the desktop, and not who has the focus."""
