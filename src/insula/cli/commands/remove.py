"""``insula remove``: delete qubes and what they keep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from insula.admin.client import AdminClient
from insula.cli.batch import Words, run_on
from insula.cli.failures import REFUSED, USAGE, CliError
from insula.cli.options import Json, Qubes, Yes
from insula.cli.output import is_terminal, say
from insula.cli.step import Step
from insula.cli.text import visible

app = typer.Typer(add_completion=False)


@app.command()
def remove(qubes: Qubes, yes: Yes = False, as_json: Json = False) -> None:
    """Delete qubes with everything in them. There is no way back."""
    if not yes:
        ask_before_removing(qubes)
    run_on(qubes, Words("removing", "removed"), remove_one, as_json=as_json)


def ask_before_removing(names: Sequence[str]) -> None:
    """Return if the person at the terminal agrees. :raise CliError: nobody to ask. :raise typer.Exit: no."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise CliError("removing needs a yes and there is no terminal to ask", hint="--yes", exit_code=USAGE)
    if not typer.confirm(f"Remove {visible(', '.join(names))} and everything in it?", err=True):
        say("nothing was removed")
        raise typer.Exit(REFUSED)


async def remove_one(client: AdminClient, name: str, step: Step) -> None:
    await client.remove(name)
