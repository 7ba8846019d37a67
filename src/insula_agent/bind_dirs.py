"""bind-dirs: single files and folders of the root file system that a qube keeps (agent-services §14).

The published format is shell fragments (``*.conf``) that fill an array ``binds``. Root does not run what it finds in
the user's configuration just to read a list, so fragments are *parsed*, not sourced. Understood is what the published
documentation shows, and nothing else:

* blank lines, and lines or ends of lines that begin with ``#``;
* ``binds+=( ITEM… )`` adds, ``binds=( ITEM… )`` replaces; the parentheses may span lines;
* an item is ``'…'``, ``"…"`` without ``$``, backquote or backslash, or a bare word of letters, digits, ``/._+@:,=-``.

A line that is anything else is reported and skipped; the others still count. An item must be an absolute path without
``.``, ``..`` or empty components, outside the file systems in :data:`NEVER`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FOLDERS = ("/usr/lib/qubes-bind-dirs.d", "/etc/qubes-bind-dirs.d", "/rw/config/qubes-bind-dirs.d")
"""Read in this order; later fragments may replace what earlier ones filled in."""
STORAGE = "/rw/bind-dirs"
NEVER = ("/rw", "/proc", "/sys", "/dev", "/run")
"""Not kept by a copy on disk, or the keeper itself."""
MAX_BINDS = 256
MAX_PATH = 4095  # PATH_MAX without the final NUL
MAX_FRAGMENT = 65536
"""Bytes of a fragment."""
MAX_LINKS = 10
"""Symbolic links followed from an item (agent-services §14)."""

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+@:,=-")
_NOT_IN_DOUBLE_QUOTES = frozenset("$`\\")


class _Unparsable(Exception):
    pass


def parse_fragment(text: str, binds: Iterable[str]) -> tuple[list[str], list[str]]:
    """Apply a fragment to the list so far. Return the new list, and one complaint for each thing skipped."""
    result = list(binds)
    complaints: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first = number
        statement = lines[number].strip()
        number += 1
        if not statement or statement.startswith("#"):
            continue
        name, parenthesis, body = statement.partition("(")
        if not parenthesis or name not in ("binds+=", "binds="):
            complaints.append(f"line {first + 1}: not understood")
            continue
        try:
            items, number = _parse_array(body, lines, number)
        except _Unparsable as error:
            complaints.append(f"line {first + 1}: {error}")
            continue
        result = result + items if name == "binds+=" else items
    return result, complaints


def _parse_array(body: str, lines: list[str], number: int) -> tuple[list[str], int]:
    """Items up to the closing parenthesis, and the number of the line after it. :raise _Unparsable:"""
    items, is_complete = _parse_items(body)
    while not is_complete:
        if number == len(lines):
            raise _Unparsable("no closing parenthesis")
        more, is_complete = _parse_items(lines[number])
        items += more
        number += 1
    return items, number


def _parse_items(line: str) -> tuple[list[str], bool]:
    """Items of one line of an array; whether its closing parenthesis was there. :raise _Unparsable:"""
    items: list[str] = []
    position = 0
    while position < len(line):
        letter = line[position]
        if letter in " \t":
            position += 1
        elif letter == "#":
            return items, False
        elif letter == ")":
            rest = line[position + 1 :].strip()
            if rest and not rest.startswith("#"):
                raise _Unparsable("text after the closing parenthesis")
            return items, True
        else:
            item, position = _parse_item(line, position)
            if position < len(line) and line[position] not in " \t)":
                raise _Unparsable("items are separated by blanks")
            items.append(item)
    return items, False


def _parse_item(line: str, position: int) -> tuple[str, int]:
    quote = line[position]
    if quote in "'\"":
        end = line.find(quote, position + 1)
        if end < 0:
            raise _Unparsable("no closing quote")
        item = line[position + 1 : end]
        if quote == '"' and not _NOT_IN_DOUBLE_QUOTES.isdisjoint(item):
            raise _Unparsable("expansions are not done")
        return item, end + 1
    end = position
    while end < len(line) and line[end] in _BARE:
        end += 1
    if end == position:
        raise _Unparsable(f"character {line[position]!r} outside quotes")
    return line[position:end], end


def is_bindable(path: str) -> bool:
    """Whether an item is a path that can be kept."""
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or len(path) > MAX_PATH or "\0" in path:
        return False
    if any(part in ("", ".", "..") for part in parts[1:]):
        return False
    return not any(path == root or path.startswith(root + "/") for root in NEVER)


def resolve(path: str, read_link: Callable[[str], str | None]) -> str | None:
    """Follow symbolic links at the path's end, at most :data:`MAX_LINKS`; None if there are more or one leads out.

    ``read_link`` returns the target of a link, None for what is none.
    """
    for _ in range(MAX_LINKS + 1):
        target = read_link(path)
        if target is None:
            return path if is_bindable(path) else None
        path = _join(path.rpartition("/")[0], target)
    return None


def _join(folder: str, target: str) -> str:
    """``target`` as seen from ``folder``, without ``.`` and ``..``."""
    parts: list[str] = []
    for part in (target if target.startswith("/") else f"{folder}/{target}").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


class BindStep:
    """One thing to do for an item: ``copy`` the system's to storage, ``make_file`` or ``make_folder`` the missing
    mount point, then (always last) ``bind``."""

    __slots__ = ("action", "path")

    def __init__(self, action: str, path: str) -> None:
        self.action = action
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BindStep) and (self.action, self.path) == (other.action, other.path)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BindStep({self.action!r}, {self.path!r})"


def plan_bind(path: str, in_system: str | None, in_storage: str | None) -> list[BindStep]:
    """Steps for one path; kinds are ``file``, ``folder`` or None for absent. Nothing in both places: nothing to do.

    A kind that differs between the two is left alone (a file cannot be bound over a folder): no steps.
    """
    if in_system is None and in_storage is None:
        return []
    if in_storage is None:
        return [BindStep("copy", path), BindStep("bind", path)]
    if in_system is None:
        return [BindStep(f"make_{in_storage}", path), BindStep("bind", path)]
    return [BindStep("bind", path)] if in_system == in_storage else []
