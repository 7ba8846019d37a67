"""Applications of qubes in the desktop's own menu: an entry file for each, with an icon in the colour of its qube.

What a qube said of its applications is text for people and an identifier that goes back to it (``model.applications``);
the command of an entry is ours. Files of entries whose application is gone are removed; nothing else in those folders
is touched: ours begin with ``insula-app-``.

The icon is a plain one, with the first letter of the application: a picture drawn by a qube would not be a mark.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.manager.autostart import exec_line, write

PREFIX = "insula-app-"
TERMINAL = "x-terminal-emulator"
"""What a qube is started with that has told of no application: Debian's name of the terminal."""
MAX_ENTRIES = 5000
"""Files; a menu of more helps nobody."""


@dataclass(frozen=True)
class Entry:
    """An application of a qube."""

    qube: str
    colour: int
    """Of its label, ``0xRRGGBB``."""
    id: str
    """Of the application; empty: the terminal."""
    name: str
    comment: str = ""
    categories: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Without suffix; a qube's name has no plus sign."""
        return f"{PREFIX}{self.qube}+{self.id or 'terminal'}"

    def words(self, insula: Sequence[str]) -> list[str]:
        """The command that starts it."""
        if not self.id:
            return [*insula, "run", "--gui", self.qube, TERMINAL]
        return [*insula, "run", "--gui", "--service", f"qubes.StartApp+{self.id}", self.qube]

    def matches(self, words: Iterable[str]) -> bool:
        """Whether each of the words is in the name of the application or of the qube."""
        text = f"{self.qube} {self.name} {self.id}".lower()
        return all(word.lower() in text for word in words)


def entry_file(entry: Entry, insula: Sequence[str], icon: Path) -> str:
    """Desktop Entry Specification 1.5."""
    return "\n".join(
        [
            "[Desktop Entry]",
            "Type=Application",
            f"Name={_text(f'{entry.qube}: {entry.name}')}",
            *([f"Comment={_text(entry.comment)}"] if entry.comment else []),
            f"Icon={_text(str(icon))}",
            f"Exec={exec_line(entry.words(insula))}",
            "Terminal=false",
            f"Categories={''.join(f'{category};' for category in (*entry.categories, f'X-Insula-{entry.qube}'))}",
            f"X-Insula-Qube={_text(entry.qube)}",
            "",
        ]
    )


def icon_file(entry: Entry) -> str:
    """A square in the colour of the qube, with a letter."""
    letter = next((sign for sign in entry.name.upper() if sign.isascii() and sign.isalnum()), "")
    red, green, blue = entry.colour >> 16, entry.colour >> 8 & 255, entry.colour & 255
    ink = "#000000" if 299 * red + 587 * green + 114 * blue > 128_000 else "#ffffff"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" viewBox="0 0 64 64">'
        '<rect x="3" y="3" width="58" height="58" rx="9" stroke="#ffffff" stroke-width="2"'
        f' fill="#{entry.colour:06x}"/>'
        f'<text x="32" y="45" font-family="sans-serif" font-size="38" font-weight="bold" text-anchor="middle"'
        f' fill="{ink}">{letter}</text></svg>\n'
    )


def install(entries: Sequence[Entry], insula: Sequence[str], environ: Mapping[str, str] | None = None) -> list[Path]:
    """Have the desktop's menu show these and no others of ours; the files of the entries. :raise OSError:"""
    applications, icons = _folders(os.environ if environ is None else environ)
    kept: list[Path] = []
    wanted: set[Path] = set()
    for entry in entries[:MAX_ENTRIES]:
        icon, path = icons / f"{entry.file_name}.svg", applications / f"{entry.file_name}.desktop"
        write(icon, icon_file(entry))
        write(path, entry_file(entry, insula, icon))
        wanted |= {icon, path}
        kept.append(path)
    for path in _ours(applications, icons):
        if path not in wanted:
            path.unlink()
    return kept


def remove(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Take all of ours out of the menu; returns what was there. :raise OSError:"""
    applications, icons = _folders(os.environ if environ is None else environ)
    files = _ours(applications, icons)
    for path in files:
        path.unlink()
    return [path for path in files if path.parent == applications]


def _folders(env: Mapping[str, str]) -> tuple[Path, Path]:
    data = Path(env.get("XDG_DATA_HOME") or Path(env.get("HOME", "/")) / ".local" / "share")
    return data / "applications", data / "icons" / "insula"


def _ours(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.glob(f"{PREFIX}*"))


def _text(text: str) -> str:
    """A string of the file: a backslash would begin an escape."""
    return text.replace("\\", "\\\\")
