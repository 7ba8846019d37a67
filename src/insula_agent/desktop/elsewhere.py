"""Applications whose files and links are opened in a disposable (feature ``service.app-dispvm.ID``, agent-services §5).

Such an application is started with other data folders (``XDG_DATA_DIRS``) than the rest: one that has everything the
usual ones have, but as only entry of a menu *Open in a disposable*, which there is the default for every kind. So what
the person has set as default is not found, and whatever opens files by the desktop's rules opens them elsewhere.
"""

from __future__ import annotations

import os

from insula_agent import files
from insula_agent.desktop import entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KEYS = "/run/insula/keys"
PREFIX = "hash-app-dispvm%2F"
"""Of the files that show keys ``/hash-app-dispvm/HASH``; the value is the application's identifier."""
OPENER = "qvm-open-in-dvm.desktop"
FOLDER = "insula-app-dispvm"
SCHEMES = ("x-scheme-handler/http", "x-scheme-handler/https", "x-scheme-handler/ftp")
BASIC_KINDS = ("text/plain", "text/html", "application/pdf", "application/octet-stream", "image/png", "image/jpeg")
"""Where no list of kinds is installed."""


class NoOpener(Exception):
    """The entry that opens things in a disposable is not here, so nothing may be started as if it were."""


def is_marked(file_id: str, keys: str = KEYS) -> bool:
    """Whether the host said so of this application; ``file_id`` has its suffix."""
    wanted = file_id[: -len(entries.SUFFIX)]
    try:
        names = os.listdir(keys)
    except FileNotFoundError:
        return False
    return any(files.read(f"{keys}/{name}") == wanted for name in names if name.startswith(PREFIX))


def data_dirs(environment: Mapping[str, str], home: str) -> str:
    """Make the folder, new each time; returns ``XDG_DATA_DIRS``. :raise NoOpener: :raise OSError:"""
    usual = entries.data_folders(environment, home)[1:]
    opener = entries.find(usual, OPENER)
    if opener is None:
        raise NoOpener(f"{OPENER} is in none of {':'.join(usual)}")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"{home}/.cache"
    folder = f"{runtime}/{FOLDER}.{os.getpid()}"
    os.makedirs(f"{folder}/applications", 0o700)
    os.symlink(opener, f"{folder}/applications/{OPENER}")
    lines = ["[Default Applications]", *(f"{kind}={OPENER};" for kind in [*SCHEMES, *kinds(usual)]), ""]
    files.write(f"{folder}/applications/mimeapps.list", "\n".join(lines))
    for name, path in _other_data(usual):
        os.symlink(path, f"{folder}/{name}")
    return folder


def kinds(folders: Sequence[str]) -> list[str]:
    """Kinds of files that are known here."""
    for folder in folders:
        known = files.read(f"{folder}/mime/types").split("\n")
        if len(known) > 1:
            return [kind for kind in known if "/" in kind and not kind.startswith("x-scheme-handler/")]
    return list(BASIC_KINDS)


def _other_data(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Everything but entries: icons, kinds, themes; of the first folder that has it."""
    seen = {"applications"}
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name, f"{folder}/{name}"
