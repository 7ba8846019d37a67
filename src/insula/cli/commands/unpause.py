"""``insula unpause``."""

from __future__ import annotations

import typer

from insula.admin.client import AdminClient
from insula.cli.batch import Words, run_on
from insula.cli.options import Json, Qubes
from insula.cli.step import Step

app = typer.Typer(add_completion=False)


@app.command()
def unpause(qubes: Qubes, as_json: Json = False) -> None:
    """Let paused qubes go on."""
    run_on(qubes, Words("resuming", "resumed"), unpause_one, as_json=as_json)


async def unpause_one(client: AdminClient, name: str, step: Step) -> None:
    await client.unpause(name)
