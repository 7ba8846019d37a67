"""``insula cp``: files and folders between this machine and a qube, by commands in the qube.

Over :mod:`insula.client`: into a qube nothing of it is trusted but an exit code, out of it only plain files, folders
and links that stay inside are made, whole or not at all, and nothing here is replaced.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import insula
from insula.admin.client import AdminClient
from insula.cli.connection import with_daemon_and_board
from insula.cli.failures import REFUSED, USAGE, CliError
from insula.cli.progress import Board
from insula.cli.qubes import find_qube
from insula.cli.text import visible
from insula.client.errors import ClientError
from insula.client.machine import DEFAULT_COPY_LIMIT
from insula.model.state import PowerState

MIB = 1 << 20

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Place:
    """A path, here (``qube`` is None) or in a qube."""

    qube: str | None
    path: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """``QUBE:PATH``, or a path of this machine; one with a colon is written ``./a:b``."""
        name, colon, path = text.partition(":")
        return cls(name, path) if colon and name and "/" not in name else cls(None, text)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path.rstrip("/"))


@dataclass(frozen=True)
class Copy:
    """One thing to copy, and the full path of what is made."""

    qube: str
    source: str
    target: str
    is_out: bool


def plan(sources: Sequence[str], target: str) -> list[Copy]:
    """What is to be copied where. :raise CliError: it is not from here to one qube, or from qubes to here."""
    wanted = Place.parse(target)
    copies: list[Copy] = []
    for text in sources:
        source = Place.parse(text)
        if source.qube is not None and wanted.qube is not None:
            raise CliError(
                "from qube to qube files go by the qubes' own hands",
                hint=f"in {source.qube}: qvm-copy-to-vm {wanted.qube} {source.path}",
                exit_code=USAGE,
            )
        qube = source.qube or wanted.qube
        if qube is None:
            raise CliError("neither of the two is in a qube", hint="QUBE:PATH is a path in a qube", exit_code=USAGE)
        if not source.name or source.name in (".", ".."):
            raise CliError(f"{text} names no file or folder", exit_code=USAGE)
        into = wanted.path == "" or wanted.path.endswith("/") or len(sources) > 1
        if wanted.qube is None:
            into = into or Path(target).is_dir()
        path = posixpath.join(wanted.path, source.name) if into else wanted.path
        copies.append(Copy(qube, source.path, path, is_out=wanted.qube is None))
    return copies


@app.command()
def cp(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Paths here, or QUBE:PATH.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="QUBE:PATH, or a path here.")],
    limit: Annotated[
        int, typer.Option("--limit", metavar="MIB", min=1, help="Take no more than this out of a qube.")
    ] = DEFAULT_COPY_LIMIT // MIB,
) -> None:
    """Copy files and folders into a qube (relative to its home), or out of one.

    A TARGET that ends in / gets them by their names. Out of a qube nothing is replaced. A qube that is off is started.
    """
    copies = plan(sources, target)

    async def work(client: AdminClient, board: Board) -> None:
        for copy in copies:
            await copy_one(client, board, copy, limit * MIB)

    with_daemon_and_board(work)


async def copy_one(client: AdminClient, board: Board, copy: Copy, limit: int) -> None:
    """:raise CliError: it was not copied; of a file nothing is there, of a folder in a qube maybe a part."""
    if (await find_qube(client, copy.qube)).state != PowerState.RUNNING.value:
        with board.step(copy.qube, "starting", "started"):
            await client.start(copy.qube)
    qube = insula.qube(copy.qube)
    with board.step(copy.source, "copying", ""):
        try:
            if copy.is_out:
                await qube.copy_out(copy.source, copy.target, limit=limit)
            else:
                await qube.copy_in(copy.source, copy.target)
        except (ClientError, FileExistsError) as error:
            raise CliError(visible(f"{copy.source}: {error}"), exit_code=REFUSED) from error
