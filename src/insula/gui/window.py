"""One window: what the guest said of it, what host and guest agree on, and what the desktop was last told."""

from __future__ import annotations

from dataclasses import dataclass, field

from insula.gui.damage import Damage
from insula.gui.desktop import Icon, Picture, Role, Show, SizeHints, State, Style
from insula.gui.geometry import Rect
from insula_proto import gui, limits

NEVER = float("-inf")


@dataclass
class Window:
    number: int
    place: Rect
    """Where the content is, in the host's eyes."""
    wants_popup: bool
    class_name: str
    instance: str = ""
    style: Style = Style.WINDOW
    """Decided when it is mapped; a popup may become a window while it is shown, never the other way round."""
    is_mapped: bool = False
    is_docked: bool = False
    """An icon for the tray, from before it is mapped until its end."""
    docks_at: float = NEVER
    """When it may be shown: a desktop without tray is not asked all the time."""
    kind: int = 0
    """What it is (``gui.FLAG_MODAL`` and the like); as its style, decided when it is mapped."""
    transient_for: int = gui.NO_WINDOW
    title: str = ""
    is_positioned: bool = False
    """Whether the program, or its user, chose the place."""
    hints: SizeHints = field(default_factory=SizeHints)
    state: State = field(default_factory=State)
    """As it is shown, or is to be."""
    asked_fullscreen: bool = False
    told_flags: int = 0
    """What the guest knows of the state (``gui.FLAG_…``)."""
    picture: Picture | None = None
    unacknowledged: int = 0
    """Pictures whose predecessor the guest still keeps for us."""
    cursor: int = gui.CURSOR_DEFAULT
    is_queued: bool = False
    """The guest was told where the window is, and has not answered (§6)."""
    must_configure: bool = False
    """It is to be told, again if need be."""
    damage: Damage = field(default_factory=Damage)
    owes_paint: bool = False
    """The guest waits for PAINTED."""
    is_exposed: bool = False
    paint_due: float = NEVER
    """When the screen has its next picture, after that of the last paint."""
    changed_at: float = NEVER
    """When the desktop was last told of another place, title or the like."""
    shown: Show | None = None
    """What the desktop was told, brought up to date; None: it is not shown."""
    shown_picture: Picture | None = None
    shown_cursor: int = gui.CURSOR_DEFAULT
    icon: Icon | None = None
    shown_icon: Icon | None = None

    @property
    def content(self) -> Rect:
        """In the coordinates of the window itself."""
        return Rect(0, 0, self.place.width, self.place.height)

    @property
    def role(self) -> Role:
        if self.style is Style.POPUP:
            return Role.NORMAL
        if self.kind & gui.FLAG_UTILITY:
            return Role.UTILITY
        return Role.DIALOG if self.kind & gui.FLAG_DIALOG else Role.NORMAL

    @property
    def flags(self) -> int:
        """What the guest is to know of the state. One that asked for the whole screen, and got less, is told that it
        has it: some programs do not go on otherwise (§7)."""
        flags = gui.FLAG_MINIMISE if self.state.is_minimised else 0
        if self.state.is_fullscreen or (self.state.is_maximised and self.asked_fullscreen):
            flags |= gui.FLAG_FULLSCREEN
        return flags


def size_hints(message: gui.WindowHints) -> SizeHints:
    """Each group if its flag is set and it lies within the limits, else not at all (§10)."""

    def pair(flag: int, width: int, height: int, smallest: int) -> tuple[int, int] | None:
        fits = smallest <= width <= limits.GUI_MAX_WIDTH and smallest <= height <= limits.GUI_MAX_HEIGHT
        return (width, height) if message.flags & flag and fits else None

    return SizeHints(
        minimum=pair(gui.HINT_MIN_SIZE, message.min_width, message.min_height, 0),
        maximum=pair(gui.HINT_MAX_SIZE, message.max_width, message.max_height, 1),
        increment=pair(gui.HINT_INCREMENT, message.width_increment, message.height_increment, 1),
        base=pair(gui.HINT_BASE_SIZE, message.base_width, message.base_height, 0),
    )
