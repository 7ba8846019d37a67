"""``qubes.StartApp+ID`` and ``qubes-desktop-run ID.desktop``: becomes the application an entry describes.

One whose files are to be opened in disposables gets data folders of its own (:mod:`insula_agent.desktop.elsewhere`).
It *becomes* it, so that the call lasts as long as the application: a disposable that was started for it ends with it.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import programs
from insula_agent.desktop import elsewhere, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_NOT_FOUND = 127
EXIT_PROBLEM = 125
TERMINAL = "x-terminal-emulator"


def plan(values: Mapping[str, str], path: str) -> list[str]:
    """The argument vector of an entry. :raise entries.EntryError:"""
    if values.get("Type", "Application") != "Application":
        raise entries.EntryError("not an application")
    arguments = entries.expand(entries.split_exec(values.get("Exec", "")), values, path)
    return [TERMINAL, "-e", *arguments] if values.get("Terminal", "") == "true" else arguments


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0]:
        sys.stderr.write("which application? Its identifier is the name of its .desktop file.\n")
        return EXIT_PROBLEM
    wanted = arguments[0] if arguments[0].endswith(entries.SUFFIX) else arguments[0] + entries.SUFFIX
    folders = entries.data_folders(os.environ, os.environ.get("HOME", "/"))
    path = entries.find(folders, wanted)
    if path is None:
        sys.stderr.write(f"{wanted} is in none of {':'.join(folders)}\n")
        return EXIT_NOT_FOUND
    try:
        values = dict(entries.read_file(path))
        command = plan(values, path)
        if elsewhere.is_marked(wanted):
            os.environ["XDG_DATA_DIRS"] = elsewhere.data_dirs(os.environ, os.environ.get("HOME", "/"))
        os.chdir(values.get("Path") or os.environ.get("HOME", "/"))
        programs.become(command)
    except FileNotFoundError as error:
        sys.stderr.write(f"{path}: {error}\n")
        return EXIT_NOT_FOUND
    except (OSError, entries.EntryError, elsewhere.NoOpener) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
