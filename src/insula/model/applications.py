"""The applications of a qube, as it tells them for the host's menus (``qubes.SyncAppMenus``, agent-services §5); pure.

What a guest says is a claim about itself. A name is text for people and is shown as such; an identifier goes back to
the same guest as an argument (``qubes.StartApp+ID``) and to nowhere else. The command of an entry is not kept: only the
guest knows what its applications are.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from insula.model.errors import ProtocolError

MAX_LIST = 4 * 1024 * 1024
"""Bytes a guest may send: a large desktop with all its translations has half a million."""
MAX_LINES = 100_000
"""As published."""
MAX_APPLICATIONS = 1000
MAX_ID = 200
"""Characters of an identifier: with the name of the service it still is the name of a file."""
MAX_TEXT = 200
"""Characters of a name or comment; the rest is cut off."""
MAX_CATEGORIES = 32
MAX_ICON = 128

_SUFFIX = ".desktop"
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CATEGORY = re.compile(r"[A-Za-z0-9-]{1,64}")
_ICON = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_KEYS = frozenset({"Type", "Name", "GenericName", "Comment", "Categories", "Icon", "Exec"})


@dataclass(frozen=True)
class Application:
    """One entry of a menu."""

    id: str
    """Of the entry in the guest, without ``.desktop``."""
    name: str
    generic_name: str = ""
    comment: str = ""
    categories: tuple[str, ...] = ()
    icon: str = ""
    """A name of the icon theme, never a path."""


def parse_applications(untrusted_list: bytes) -> tuple[Application, ...]:
    """What a guest lists, sorted by identifier. Entries that no menu could show are left out.

    :raise ProtocolError: more than a list may have.
    """
    if len(untrusted_list) > MAX_LIST:
        raise ProtocolError(f"A list of applications has at most {MAX_LIST} bytes")
    untrusted_lines = untrusted_list.split(b"\n")
    if len(untrusted_lines) > MAX_LINES:
        raise ProtocolError(f"A list of applications has at most {MAX_LINES} lines")
    entries: dict[str, dict[str, str]] = {}
    for untrusted_line in untrusted_lines:
        untrusted_file, colon, untrusted_item = untrusted_line.decode("utf-8", "replace").partition(":")
        key, equals, untrusted_value = untrusted_item.partition("=")
        name = untrusted_file.removesuffix(_SUFFIX)
        if not (colon and equals and key in _KEYS and name != untrusted_file and is_application_id(name)):
            continue
        entries.setdefault(name, {}).setdefault(key, untrusted_value)
        if len(entries) > MAX_APPLICATIONS:
            raise ProtocolError(f"A list of applications has at most {MAX_APPLICATIONS}")
    found = (_application(name, entries[name]) for name in sorted(entries))
    return tuple(application for application in found if application is not None)


def is_application_id(text: str) -> bool:
    """Whether it can be the argument of ``qubes.StartApp``."""
    return len(text) <= MAX_ID and _ID.fullmatch(text) is not None


def _application(name: str, untrusted_values: dict[str, str]) -> Application | None:
    shown = _text(untrusted_values.get("Name", ""))
    if untrusted_values.get("Type", "Application") != "Application" or "Exec" not in untrusted_values or not shown:
        return None
    untrusted_categories = untrusted_values.get("Categories", "").split(";")
    icon = untrusted_values.get("Icon", "")
    return Application(
        id=name,
        name=shown,
        generic_name=_text(untrusted_values.get("GenericName", "")),
        comment=_text(untrusted_values.get("Comment", "")),
        categories=tuple(word for word in untrusted_categories if _CATEGORY.fullmatch(word))[:MAX_CATEGORIES],
        icon=icon if len(icon) <= MAX_ICON and _ICON.fullmatch(icon) else "",
    )


def _text(untrusted_text: str) -> str:
    """One line of printable characters: no controls, directions, joiners, or marks piled up (MC-39)."""
    kept = []
    for letter in untrusted_text[:MAX_TEXT]:
        category = unicodedata.category(letter)
        if category.startswith("Z"):
            kept.append(" ")
        elif not category.startswith(("C", "M")):
            kept.append(letter)
    return " ".join("".join(kept).split())
