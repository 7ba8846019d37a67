"""Desktop entries (freedesktop.org, Desktop Entry Specification 1.5): what one says, which file an application is.

Pure but for :func:`find_files` and :func:`read_file`. An entry is text of whoever installed the application; it is
bounded, and what is executed is an argument vector, never a shell command.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUFFIX = ".desktop"
GROUP = "[Desktop Entry]"
MAX_ENTRY = 1 << 18
"""Bytes of a file; office suites with all translations have half of it."""
MAX_ENTRIES = 4096
"""Files looked at below one folder."""
MAX_DEPTH = 8
"""Folders below each other."""

_KEY_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_@.[]")
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_IN_QUOTES = frozenset('"`$\\')
"""What a backslash escapes between double quotes."""


class EntryError(ValueError):
    """The entry does not say what to start."""


def parse(untrusted_text: str) -> list[tuple[str, str]]:
    """Keys and raw values of the group ``[Desktop Entry]``, in order; a line that is none of both is skipped.

    The group must be the first; what follows it is for others.
    """
    items: list[tuple[str, str]] = []
    is_inside = False
    for line in untrusted_text.split("\n"):
        if line.startswith("["):
            if is_inside or line.strip().lower() != GROUP.lower():
                break
            is_inside = True
        elif is_inside and not line.startswith("#"):
            key, equals, value = line.partition("=")
            key = key.rstrip(" \t")
            if equals and key and _KEY_LETTERS.issuperset(key):
                items.append((key, value.strip(" \t\r")))
    return items


def is_hidden(values: Mapping[str, str]) -> bool:
    """Whether no menu shows it (agent-services §5)."""
    return values.get("NoDisplay", "") == "true" or "Screensaver" in values.get("Categories", "").split(";")


def unescape(value: str) -> str:
    """A value of type string. :raise EntryError: an escape that is none."""
    text, rest = [], value
    while rest:
        plain, backslash, rest = rest.partition("\\")
        text.append(plain)
        if backslash:
            if not rest or rest[0] not in _ESCAPES:
                raise EntryError(f"an escape that is none in {value[:80]!r}")
            text.append(_ESCAPES[rest[0]])
            rest = rest[1:]
    return "".join(text)


def split_exec(value: str) -> list[str]:
    """Arguments of an ``Exec`` value, field codes still in them. :raise EntryError: nothing, or a quote left open."""
    arguments: list[str] = []
    current: list[str] | None = None
    text = unescape(value)
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        if letter == '"':
            current = [] if current is None else current
            position = _quoted(text, position, current)
        elif letter in " \t\n":
            if current is not None:
                arguments.append("".join(current))
                current = None
        else:
            current = [] if current is None else current
            current.append(letter)
    if current is not None:
        arguments.append("".join(current))
    if not arguments or not arguments[0] or "\0" in text:
        raise EntryError("Exec names no program")
    return arguments


def _quoted(text: str, position: int, current: list[str]) -> int:
    """Take what is up to the closing quote; the position after it."""
    while position < len(text):
        letter = text[position]
        if letter == '"':
            return position + 1
        if letter == "\\" and text[position + 1 : position + 2] in _IN_QUOTES:
            position += 1
            letter = text[position]
        current.append(letter)
        position += 1
    raise EntryError("a quote in Exec is not closed")


def expand(arguments: Sequence[str], values: Mapping[str, str], path: str) -> list[str]:
    """Replace field codes, for a start without files. :raise EntryError: a code that is none."""
    expanded: list[str] = []
    for argument in arguments:
        if argument == "%i":
            icon = values.get("Icon", "")
            expanded += ["--icon", unescape(icon)] if icon else []
            continue
        text = _expand_one(argument, values, path)
        # An argument that was only files to open is no argument.
        if text or "%" not in argument:
            expanded.append(text)
    if not expanded or not expanded[0]:
        raise EntryError("Exec names no program")
    return expanded


def _expand_one(argument: str, values: Mapping[str, str], path: str) -> str:
    text, rest = [], argument
    while rest:
        plain, percent, rest = rest.partition("%")
        text.append(plain)
        if not percent:
            break
        code, rest = rest[:1], rest[1:]
        if code == "%":
            text.append("%")
        elif code == "c":
            text.append(unescape(values.get("Name", "")))
        elif code == "k":
            text.append(path)
        elif not code or code not in "fFuUdDnNvm":
            raise EntryError(f"field code %{code} in Exec")
    return "".join(text)


def file_id(relative_path: str) -> str:
    """The name of an entry by its place below ``applications``: folders joined by ``-``."""
    return relative_path.replace("/", "-")


def data_folders(environment: Mapping[str, str], home: str) -> list[str]:
    """Where entries are, first come first (XDG Base Directory Specification); only absolute ones count."""
    own = environment.get("XDG_DATA_HOME") or f"{home}/.local/share"
    shared = environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [folder.rstrip("/") or "/" for folder in [own, *shared.split(":")] if folder.startswith("/")]


def find_files(folder: str) -> Iterator[tuple[str, str]]:
    """Identifier and path of each entry below a folder, sorted, bounded; folders that are links are not entered."""
    count = 0
    waiting = [("", 0)]
    while waiting:
        relative, depth = waiting.pop(0)
        try:
            with os.scandir(f"{folder}/{relative}") as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError:
            # Gone, or not ours to look into: has no application for us.
            continue
        for item in items:
            name = f"{relative}{item.name}"
            if item.is_dir(follow_symlinks=False):
                if depth < MAX_DEPTH:
                    waiting.append((f"{name}/", depth + 1))
            elif name.endswith(SUFFIX) and item.is_file():
                count += 1
                if count > MAX_ENTRIES:
                    return
                yield file_id(name), f"{folder}/{name}"


def read_file(path: str) -> list[tuple[str, str]]:
    """Parse a file. :raise OSError: :raise EntryError: too long."""
    with open(path, "rb") as file:
        untrusted_data = file.read(MAX_ENTRY + 1)
    if len(untrusted_data) > MAX_ENTRY:
        raise EntryError(f"{path} is longer than {MAX_ENTRY} bytes")
    return parse(untrusted_data.decode("utf-8", "replace"))


def find(folders: Sequence[str], wanted_id: str) -> str | None:
    """Path of the entry with this identifier (with its suffix) in the first folder that has it."""
    for folder in folders:
        for found_id, path in find_files(f"{folder}/applications"):
            if found_id == wanted_id:
                return path
    return None
