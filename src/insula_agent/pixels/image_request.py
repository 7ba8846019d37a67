"""What ``qubes.GetImageRGBA`` is asked for: its first line, taken apart (agent-services §1); pure.

``-``: an image follows to the end. ``FORMAT:-``: the same, of that format. ``xdgicon:NAME``: an application's icon.
Anything else: a file of this qube.
"""

from __future__ import annotations

from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LINE = 4096
MAX_ICON = 512
"""Pixels of an icon's side."""
ICON_SIZES = (512, 256, 192, 128, 96, 72, 64, 48, 32, 24, 22, 16)
_ICON = "xdgicon:"
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+@-")
_FORMAT_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class Request(Value):
    """``format``: of data to follow, empty if not said. ``path`` or ``icon``: what to read instead, else empty."""

    __slots__ = ("format", "icon", "path")
    format: str
    icon: str
    path: str

    def __init__(self, path: str = "", icon: str = "", format: str = "") -> None:
        self._fill(path=path, icon=icon, format=format)


def parse(untrusted_line: bytes) -> Request:
    """:raise ValueError: not a line, or it names nothing."""
    if not untrusted_line.endswith(b"\n") or len(untrusted_line) > MAX_LINE or b"\0" in untrusted_line:
        raise ValueError("the first line says which image, and is short")
    text = untrusted_line[:-1].decode("utf-8", "surrogateescape")
    if text.startswith(_ICON):
        name = text[len(_ICON) :]
        if not name or not _NAME_LETTERS.issuperset(name) or name.startswith("."):
            raise ValueError("not the name of an icon")
        return Request(icon=name)
    kind, _, rest = text.rpartition(":")
    if rest == "-":
        if not _FORMAT_LETTERS.issuperset(kind):
            raise ValueError("not a format")
        return Request(format=kind.upper())
    if not text:
        raise ValueError("no image is named")
    return Request(path=text)


def icon_files(name: str, folders: Sequence[str]) -> list[str]:
    """Where the icon may be, best first: the theme every other one is built on, then the old flat folder."""
    in_theme = [f"{folder}/icons/hicolor/{size}x{size}/apps/{name}.png" for folder in folders for size in ICON_SIZES]
    return in_theme + [f"{folder}/pixmaps/{name}.{suffix}" for folder in folders for suffix in ("png", "xpm")]
