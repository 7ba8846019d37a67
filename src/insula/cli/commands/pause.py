"""``insula pause``."""

from __future__ import annotations

import typer

from insula.admin.client import AdminClient
from insula.cli.batch import Words, run_on
from insula.cli.options import Json, Qubes
from insula.cli.step import Step

app = typer.Typer(add_completion=False)


@app.command()
def pause(qubes: Qubes, as_json: Json = False) -> None:
    """Freeze qubes where they are."""
    run_on(qubes, Words("pausing", "paused"), pause_one, as_json=as_json)


async def pause_one(client: AdminClient, name: str, step: Step) -> None:
    await client.pause(name)
