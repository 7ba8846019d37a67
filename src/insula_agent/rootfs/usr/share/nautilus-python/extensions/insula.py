"""Entries in the menu of Files (GNOME): copy, move, open in other qubes. Needs the package python3-nautilus."""

import os
import subprocess

from gi.repository import GObject, Nautilus

ENTRIES = (
    ("copy", "Copy to another qube…", True),
    ("move", "Move to another qube…", True),
    ("open", "Open in another qube…", False),
    ("open-in-disposable", "Edit in a disposable", False),
    ("view-in-disposable", "View in a disposable", False),
    ("convert", "Convert to a trusted PDF", False),
)
"""Verb of insula-file-action, label, whether folders can be chosen too."""


class Qubes(GObject.GObject, Nautilus.MenuProvider):
    """Adds the entries for files that lie on this qube."""

    def get_file_items(self, *arguments):
        files = arguments[-1]
        paths = [file.get_location().get_path() for file in files]
        if not paths or None in paths:
            return []
        has_folder = any(file.is_directory() for file in files)
        items = []
        for verb, label, takes_folders in ENTRIES:
            if takes_folders or not has_folder:
                item = Nautilus.MenuItem(name=f"Insula::{verb}", label=label)
                item.connect("activate", self._run, verb, paths)
                items.append(item)
        return items

    def _run(self, item, verb, paths):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.Popen(["/usr/bin/insula-file-action", verb, *paths], env=environment)
