"""``insula menu``: applications of all qubes, found by a few letters and started; and in the desktop's own menu."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError
from insula.cli.options import Json
from insula.cli.table import Column
from insula.manager import display
from insula.manager import menu as entries
from insula.manager.menu import Entry
from insula.model.errors import QubesVMNotFoundError
from insula.model.klass import Klass

app = typer.Typer(add_completion=False)

OFF = ("", "0")
"""Values of the feature ``gui`` of a qube without windows."""
WITHOUT = (Klass.ADMINVM, Klass.TEMPLATEVM, Klass.REMOTEVM)
"""Classes of qubes that are not in the menu: what is done in a template is done to all its qubes."""


@app.command()
def menu(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD…]", help="Parts of the names of an application and of a qube, in any order."),
    ] = None,
    is_install: Annotated[
        bool, typer.Option("--install", help="Have the desktop's menu show the applications of all qubes, as of now.")
    ] = False,
    is_uninstall: Annotated[bool, typer.Option("--uninstall", help="Take them out of the desktop's menu.")] = False,
    is_list: Annotated[bool, typer.Option("--list", help="List them here, also where there is a desktop.")] = False,
    as_json: Json = False,
) -> None:
    """Start an application by a few letters: in a window, or at once, `insula menu fox work`.

    Without words a window opens where there is a desktop. If several applications match words, they are listed.
    """
    if is_install + is_uninstall + is_list + bool(words) > 1:
        raise CliError("--install, --uninstall, --list and words exclude each other", exit_code=USAGE)
    if is_uninstall:
        for path in entries.remove():
            output.print_line(f"removed: {path}")
        return
    found = with_daemon(find_all)
    if is_install:
        written = entries.install(found, insula())
        output.print_line(
            f"{len(written)} entries of {len({entry.qube for entry in found})} qubes in the desktop's menu"
        )
        return
    if not (words or is_list or as_json) and has_desktop():
        chosen = choose(found)
        if chosen is not None:
            start(chosen)
        return
    matching = [entry for entry in found if entry.matches(words or [])]
    if words and len(matching) == 1 and not as_json:
        start(matching[0])
    elif as_json:
        output.print_json([{"qube": e.qube, "id": e.id, "name": e.name} for e in matching])
    elif matching:
        rows = [[entry.qube, entry.name, entry.id or "-"] for entry in matching]
        output.print_table([Column("QUBE"), Column("NAME"), Column("ID")], rows)
    else:
        raise CliError(
            f"no application matches {' '.join(words or [])}",
            hint="insula menu --list shows those there are, of all qubes",
        )


def has_desktop() -> bool:
    """Whether a window can be shown; where there could be one and it cannot, it is said why."""
    try:
        display.check()
    except display.NoDisplay as error:
        if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            output.say(f"insula: note: {error}")
        return False
    return True


def choose(found: list[Entry]) -> Entry | None:
    """In a window; None: none."""
    from insula.manager import qt_launcher  # noqa: PLC0415 - Qt is large, and may be missing

    return qt_launcher.choose(found)


async def find_all(client: AdminClient) -> list[Entry]:
    """Those of all qubes that may have windows, by qube and name; of one that has told of none, the terminal."""
    colours = {name: int(colour, 16) for name, colour in (await client.list_labels()).items()}
    found: list[Entry] = []
    for row in await client.list_qubes():
        if row.klass not in WITHOUT:
            # A disposable may end, and be gone, at any moment.
            with suppress(QubesVMNotFoundError):
                found += await _find(client, row.name, colours)
    return sorted(found, key=lambda entry: (entry.qube, entry.name.lower()))


async def _find(client: AdminClient, qube: str, colours: Mapping[str, int]) -> list[Entry]:
    """Those of one qube. :raise QubesVMNotFoundError:"""
    if (await client.get_features(qube)).get("gui") in OFF:
        return []
    colour = colours.get((await client.get_property("label", qube)).value, 0)
    told = [
        Entry(qube, colour, item["id"], item["name"], item["comment"], tuple(item["categories"]))
        for item in await client.applications(qube)
    ]
    return told or [Entry(qube, colour, "", "Terminal")]


def insula() -> list[str]:
    """This command."""
    program = Path(sys.executable).with_name("insula")
    return [str(program)] if program.exists() else [sys.executable, "-m", "insula.cli.main"]


def start(entry: Entry) -> None:
    """In the background: whoever types this wants to go on."""
    output.say(f"{entry.name} of {entry.qube}")
    subprocess.Popen(
        entry.words(insula()),
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
