"""``insula screenshot``: a picture of the screen, of a window or of a part, kept with the user's pictures."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

import insula
from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.commands.cp import Copy, copy_one
from insula.cli.connection import with_daemon_and_board
from insula.cli.failures import INTERRUPTED, REFUSED, USAGE, CliError
from insula.cli.progress import Board
from insula.cli.qubes import find_qube
from insula.client.machine import DEFAULT_COPY_LIMIT
from insula.manager import display
from insula.manager.screenshot import NothingToShow, free_path
from insula.model.state import PowerState

INCOMING = "QubesIncoming/dom0"
"""Where a qube finds what this machine gives it."""

app = typer.Typer(add_completion=False)


@app.command()
def screenshot(
    qube: Annotated[
        str | None, typer.Argument(metavar="[QUBE]", help="Its topmost window; without it, the whole screen.")
    ] = None,
    is_window: Annotated[bool, typer.Option("--window", help="The window you click at (Escape: none).")] = False,
    is_region: Annotated[bool, typer.Option("--region", help="The part you draw a frame around.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where it is kept, as PNG; nothing is replaced."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="QUBE", help=f"Copy it there too, into {INCOMING}.")] = None,
) -> None:
    """Take a picture of the screen. Of a window it has nothing that lies above it and is another qube's."""
    if (qube is not None) + is_window + is_region > 1:
        raise CliError("QUBE, --window and --region exclude each other", exit_code=USAGE)
    try:
        display.check()
    except display.NoDisplay as error:
        raise CliError(str(error)) from None
    path = _take(qube, is_window=is_window, is_region=is_region, file=file)
    output.print_line(str(path))
    if to is not None:
        name = to

        async def work(client: AdminClient, board: Board) -> None:
            await _give(client, board, name, path)

        with_daemon_and_board(work)


def _take(qube: str | None, *, is_window: bool, is_region: bool, file: Path | None) -> Path:
    """Returns where it is. :raise CliError:"""
    from insula.manager import qt_screenshot  # noqa: PLC0415 - Qt is large, and may be missing
    from insula.manager import screenshot as shots  # noqa: PLC0415 - (our own name is taken here)

    try:
        screen = qt_screenshot.Screen()
        if qube is not None:
            shot = shots.of_qube(qube, screen.area, screen.windows)
        elif is_window or is_region:
            shot = screen.choose(qt_screenshot.Choice.WINDOW if is_window else qt_screenshot.Choice.REGION)
        else:
            shot = shots.of_screen(screen.area, screen.windows)
        picture = screen.picture(shot)
        path = file or free_path(_folder(qt_screenshot.pictures_folder()), datetime.now().astimezone())
        # Made by us, for nobody else to read, and never in the place of another.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except NothingToShow as error:
        raise CliError(f"no picture: {error}", exit_code=REFUSED) from None
    except qt_screenshot.GaveUp:
        raise CliError("no picture was taken", exit_code=INTERRUPTED) from None
    except OSError as error:
        raise CliError(f"the picture cannot be kept: {error}", exit_code=REFUSED) from error
    if not picture.save(str(path), "PNG"):  # type: ignore[call-overload] # (it takes text)
        path.unlink()
        raise CliError(f"the picture cannot be written to {path}", exit_code=REFUSED)
    return path


def _folder(wanted: str) -> Path:
    folder = Path(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _give(client: AdminClient, board: Board, name: str, path: Path) -> None:
    """:raise CliError:"""
    if (await find_qube(client, name)).state != PowerState.RUNNING.value:
        with board.step(name, "starting", "started"):
            await client.start(name)
    made = await insula.qube(name).run(["mkdir", "-p", "--", INCOMING])
    if made.exit_code:
        raise CliError(f"{name} has no room for it", exit_code=REFUSED)
    await copy_one(client, board, Copy(name, str(path), f"{INCOMING}/{path.name}", is_out=False), DEFAULT_COPY_LIMIT)
