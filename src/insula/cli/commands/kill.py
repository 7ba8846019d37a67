"""``insula kill``."""

from __future__ import annotations

import typer

from insula.admin.client import AdminClient
from insula.cli.batch import Words, run_on
from insula.cli.options import Json, Qubes
from insula.cli.step import Step
from insula.model.errors import QubesVMNotStartedError

app = typer.Typer(add_completion=False)


@app.command()
def kill(qubes: Qubes, as_json: Json = False) -> None:
    """End qubes at once, like pulling the plug; what they had not saved is lost."""
    run_on(qubes, Words("killing", "killed"), kill_one, as_json=as_json)


async def kill_one(client: AdminClient, name: str, step: Step) -> None:
    try:
        await client.kill(name)
    except QubesVMNotStartedError:
        step.note = "was not running"
