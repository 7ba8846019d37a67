"""Starting a qube from a CD: from an image here, or one that lies in a qube and is copied out of it first."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from insula.admin.client import AdminClient
from insula.cli.commands.cp import Copy, Place, copy_one
from insula.cli.connection import with_daemon_and_board
from insula.cli.progress import Board
from insula.client.machine import DEFAULT_COPY_LIMIT
from insula.daemon.paths import Paths
from insula.model.desktop import desktop_of
from insula.model.names import ADMIN_NAME


def start_from_cd(name: str, text: str, *, show: bool) -> None:
    """``text``: a path here, ``dom0:PATH``, or ``QUBE:PATH``. :raise CliError:"""
    place = Place.parse(text)

    async def work(client: AdminClient, board: Board) -> None:
        with tempfile.TemporaryDirectory(prefix=".cd-", dir=Paths.from_environment().data) as folder:
            if place.qube in (None, ADMIN_NAME):
                image = Path(place.path).absolute()
            else:
                # Its machine keeps the file open; the name is not needed any more when it runs.
                image = Path(folder) / "image"
                await copy_one(client, board, Copy(place.qube, place.path, str(image), is_out=True), DEFAULT_COPY_LIMIT)
            with board.step(name, "starting", "started"):
                await client.start(name, cd=image)
        if show:
            await client.show_windows(name, desktop_of(os.environ))

    with_daemon_and_board(work)
