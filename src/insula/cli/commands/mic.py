"""``insula mic``: which qube hears the microphone of the desktop."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, USAGE, CliError
from insula.cli.options import Json
from insula.model.errors import DeviceAlreadyAttached

app = typer.Typer(add_completion=False)


@app.command()
def mic(
    qube: Annotated[
        str | None,
        typer.Argument(metavar="QUBE", help="Attach it to this one, which runs.", autocompletion=completion.qubes),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Take it away from the qube that has it.")] = False,
    as_json: Json = False,
) -> None:
    """Say which qube hears the microphone, attach it to one, or take it away. `insula mic work`, `insula mic -d`.

    At most one qube has it, until it is taken away or the qube ends; then nobody has.
    """
    if detach and qube is not None:
        raise CliError("QUBE and --detach exclude each other", exit_code=USAGE)
    if detach:
        with_daemon(take_away)
    elif qube is not None:
        with_daemon(lambda client: give(client, qube))
    else:
        show(with_daemon(lambda client: client.microphone_holder()), as_json=as_json)


def show(holder: str | None, *, as_json: bool) -> None:
    if as_json:
        output.print_json(holder)
    else:
        output.print_line(holder or "No qube hears the microphone.")


async def give(client: AdminClient, qube: str) -> None:
    try:
        await client.attach_microphone(qube)
    except DeviceAlreadyAttached as error:
        raise CliError(str(error), hint="insula mic --detach takes it away", exit_code=REFUSED) from error


async def take_away(client: AdminClient) -> None:
    holder = await client.microphone_holder()
    if holder is None:
        raise CliError("No qube has the microphone", exit_code=REFUSED)
    await client.detach_microphone(holder)
