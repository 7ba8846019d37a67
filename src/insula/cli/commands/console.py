"""``insula console``: what a qube wrote to its console, made safe to look at (MC-103)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.failures import CliError
from insula.cli.options import Qube
from insula.cli.qubes import find_qube
from insula.cli.text import visible_bytes
from insula.daemon.paths import Paths

READ_SIZE = 65536
FOLLOW_POLL_S = 0.25
MAX_LINE = 16384
"""Bytes without a newline that are shown at once: a guest may never end its line."""

app = typer.Typer(add_completion=False)


@app.command()
def console(
    qube: Qube,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted or the qube ends.")] = False,
) -> None:
    """Print a qube's console log, of the last start if it is off. Control characters are shown as \\xNN."""
    with_daemon(lambda client: show(client, qube, follow=follow))


async def show(client: AdminClient, qube: str, *, follow: bool) -> None:
    """:raise CliError: there is no log yet."""
    await find_qube(client, qube)
    path, is_on = log_of(qube)
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise CliError(f"{qube} has written nothing to a console yet", hint=f"insula start {qube}") from None
    with stream:
        pending = b""
        while True:
            chunk = stream.read(READ_SIZE)
            pending = print_complete(pending + chunk)
            if chunk:
                continue
            if not (follow and is_on):
                break
            await asyncio.sleep(FOLLOW_POLL_S)
            is_on = path.exists()
        if pending:
            output.print_text(visible_bytes(pending))


def log_of(qube: str) -> tuple[Path, bool]:
    """Where the log is, and whether more may come."""
    paths = Paths.from_environment()
    now = paths.qube(qube) / "console.log"
    return (now, True) if now.exists() else (paths.logs / f"{qube}.console.log", False)


def print_complete(untrusted_data: bytes) -> bytes:
    """Print all complete lines; returns the rest."""
    end = untrusted_data.rfind(b"\n") + 1
    if end == 0 and len(untrusted_data) >= MAX_LINE:
        end = len(untrusted_data)
    if end:
        output.print_text(visible_bytes(untrusted_data[:end]))
        output.flush()
    return untrusted_data[end:]
