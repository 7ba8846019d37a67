"""Which application opens a kind of file or address, and the command that has it do so.

(freedesktop.org, Association between MIME types and applications 1.0.1.) What the person has set comes first, then the
system's defaults, then any application that says it can. The application's own command is run, not ``xdg-open``: that
returns at once under most desktops, and in a disposable the end of the call is the end of the qube.
"""

from __future__ import annotations

import os

from insula_agent.desktop import entries
from insula_agent.opening import kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TERMINAL = "x-terminal-emulator"
PASSES_ON = "qvm-open-in-"
"""Commands that have another qube open something. What was sent here to be opened is not passed on: where that is the
person's own default, each disposable would make the next one, without end (MC-23)."""
MAX_CANDIDATES = 64
"""Applications looked at for one file."""
_DEFAULT, _ADDED, _REMOVED, _CACHE = "Default Applications", "Added Associations", "Removed Associations", "MIME Cache"


class NoHandler(Exception):
    """Nothing here opens that."""


def parse_associations(lines: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Groups of ``mimeapps.list`` or ``mimeinfo.cache``: kind → identifiers of applications."""
    groups: dict[str, dict[str, list[str]]] = {}
    group: dict[str, list[str]] = {}
    for line in lines:
        text = line.strip()
        if text.startswith("["):
            group = groups.setdefault(text.strip("[]"), {})
        elif text and not text.startswith("#"):
            key, _, value = text.partition("=")
            group.setdefault(key.strip(), []).extend([name for name in value.strip().split(";") if name])
    return groups


def association_files(environment: Mapping[str, str], home: str) -> list[str]:
    """Where ``mimeapps.list`` is looked for, first come first."""
    own = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    shared = environment.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    config = [folder for folder in [own, *shared.split(":")] if folder.startswith("/")]
    data = [f"{folder}/applications" for folder in entries.data_folders(environment, home)]
    desktops = [name.lower() for name in environment.get("XDG_CURRENT_DESKTOP", "").split(":") if name]
    names = [f"{name}-mimeapps.list" for name in desktops if name.replace("-", "").isalnum()] + ["mimeapps.list"]
    return [f"{folder}/{name}" for folder in [*config, *data] for name in names]


def candidates(wanted: Sequence[str], environment: Mapping[str, str], home: str) -> list[str]:
    """Identifiers of applications for these kinds (nearest first), best first."""
    lists = [parse_associations(kinds.read_lines(path)) for path in association_files(environment, home)]
    caches = [
        parse_associations(kinds.read_lines(f"{folder}/applications/mimeinfo.cache"))
        for folder in entries.data_folders(environment, home)
    ]
    found: list[str] = []
    for kind in wanted:
        removed = {name for groups in lists for name in groups.get(_REMOVED, {}).get(kind, [])}
        for sources, group in ((lists, _DEFAULT), (lists, _ADDED), (caches, _CACHE)):
            for groups in sources:
                for name in groups.get(group, {}).get(kind, []):
                    if name not in found and (group != _CACHE or name not in removed):
                        found.append(name)
    return found[:MAX_CANDIDATES]


def declared(wanted: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The same from the entries themselves, for a qube in which nobody keeps the cache."""
    by_kind: dict[str, list[str]] = {}
    for folder in folders:
        for file_id, path in entries.find_files(f"{folder}/applications"):
            try:
                values = dict(entries.read_file(path))
            except (OSError, entries.EntryError):
                # Of no use, and nobody asked for this one.
                continue
            for kind in values.get("MimeType", "").split(";"):
                by_kind.setdefault(kind, []).append(file_id)
    return [name for kind in wanted for name in by_kind.get(kind, [])][:MAX_CANDIDATES]


def command(values: Mapping[str, str], path: str, what: str) -> list[str]:
    """The argument vector with which an entry opens a file or address. :raise entries.EntryError:"""
    if values.get("Type", "Application") != "Application" or values.get("Hidden", "") == "true":
        raise entries.EntryError("not an application")
    # A percent sign in an address is no field code.
    quoted = what.replace("%", "%%")
    words: list[str] = []
    is_placed = False
    for word in entries.split_exec(values.get("Exec", "")):
        pieces = []
        rest = word
        while rest:
            plain, percent, rest = rest.partition("%")
            pieces.append(plain)
            if not percent:
                break
            code, rest = rest[:1], rest[1:]
            if code and code in "fFuU":
                is_placed = True
                pieces.append(quoted)
            else:
                pieces.append("%" + code)
        words.append("".join(pieces))
    arguments = entries.expand(words, values, path)
    if not is_placed:
        arguments.append(what)
    return [TERMINAL, "-e", *arguments] if values.get("Terminal", "") == "true" else arguments


def find(wanted: Sequence[str], what: str, environment: Mapping[str, str]) -> list[str]:
    """The command that opens ``what``, which is of the first of these kinds. :raise NoHandler:"""
    home = environment.get("HOME", "/")
    folders = entries.data_folders(environment, home)
    names = candidates(wanted, environment, home) or declared(wanted, folders)
    for name in names:
        path = entries.find(folders, name)
        if path is None:
            continue
        try:
            found = command(dict(entries.read_file(path)), path, what)
        except (OSError, entries.EntryError):
            # Broken; another one may do.
            continue
        if not os.path.basename(found[0]).startswith(PASSES_ON):
            return found
    raise NoHandler(f"no application here opens {wanted[0]}")


def kinds_of(path: str, environment: Mapping[str, str]) -> list[str]:
    """The kinds a file is of, nearest first. :raise OSError:"""
    databases = [f"{folder}/mime" for folder in entries.data_folders(environment, environment.get("HOME", "/"))]
    globs = [line for folder in databases for line in kinds.read_lines(f"{folder}/globs2")]
    kind = kinds.by_name(os.path.basename(path), globs)
    if kind is None:
        with open(path, "rb") as file:
            kind = kinds.by_content(file.read(4096))
    subclasses = [line for folder in databases for line in kinds.read_lines(f"{folder}/subclasses")]
    return kinds.with_parents(kind, subclasses)
