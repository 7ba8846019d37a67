"""``qubes.GetAppmenus``: the applications of this qube, as the host keeps them for its menus (agent-services §5).

A line ``FILE.desktop:Key=Value`` for each key, ``Exec`` replaced by the command that starts it here, a blank line after
each file. A qube whose root is thrown away lists only what lies on its private volume: the rest is its template's.

With ``--root FOLDER`` it is another system, which is being built: that folder is the root from then on.
"""

from __future__ import annotations

import os
import pwd
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import files
from insula_agent.desktop import entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = "/run/insula/keys"
STARTER = "qubes-desktop-run"
PRIVATE = "/rw"


def listing(file_id: str, items: Sequence[tuple[str, str]]) -> str:
    """The lines of one entry; empty if no menu shows it."""
    if not items or entries.is_hidden(dict(items)):
        return ""
    lines = [f"{file_id}:{key}={f'{STARTER} {file_id}' if key == 'Exec' else value}\n" for key, value in items]
    return "".join(lines) + "\n"


def kept_folders(folders: Sequence[str], persistence: str, private: str = PRIVATE) -> list[str]:
    """Those whose entries are this qube's own: all, those on the private volume, none."""
    if persistence == "rw-only":
        return [folder for folder in folders if _device(folder) == _device(private) is not None]
    return [] if persistence == "none" else list(folders)


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def _home() -> str:
    """Of the user whose menu it is, also when root asks."""
    home = os.environ.get("HOME", "")
    if os.geteuid() == 0:
        user = files.read(f"{KEYS}/default-user") or "user"
        try:
            home = pwd.getpwnam(user).pw_dir
        except KeyError:
            sys.stderr.write(f"no user {user!r}\n")
    return home


def main(arguments: Sequence[str]) -> int:
    home = _home()
    if arguments[:1] == ["--root"]:
        os.chroot(arguments[1])
        os.chdir("/")
        home = "/root"
    folders = entries.data_folders(os.environ, home)
    seen = set()
    for folder in kept_folders(folders, files.read(f"{KEYS}/qubes-vm-persistence") or "full"):
        for file_id, path in entries.find_files(f"{folder}/applications"):
            # As in a menu: the user's own entry takes the place of the system's.
            if file_id in seen:
                continue
            seen.add(file_id)
            try:
                text = listing(file_id, entries.read_file(path))
            except (OSError, entries.EntryError) as error:
                sys.stderr.write(f"{path}: {error}\n")
                continue
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
