"""``insula label``: the colours that say how much a qube is trusted."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.failures import CliError, did_you_mean
from insula.cli.options import Json
from insula.cli.table import Column
from insula.model.errors import QubesLabelNotFoundError

app = typer.Typer(add_completion=False, help="Colours that say how much you trust a qube.")

LabelName = Annotated[str, typer.Argument(metavar="LABEL", help="Name.", autocompletion=completion.labels)]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List labels."""
    colors = with_daemon(lambda client: client.list_labels())
    if as_json:
        output.print_json([{"name": name, "color": color} for name, color in colors.items()])
    else:
        output.print_table(
            [Column("LABEL"), Column("COLOR")],
            [[output.label_cell(name, colors), color] for name, color in colors.items()],
        )


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="LABEL", help="Name of the new label.")],
    color: Annotated[str, typer.Argument(metavar="COLOR", help="0xRRGGBB or #rrggbb.")],
) -> None:
    """Make a label."""
    wire_color = "0x" + color[1:] if color.startswith("#") else color
    with_daemon(lambda client: client.call("admin.label.Create", arg=name, payload=wire_color.encode()))


@app.command("remove")
def remove(label: LabelName) -> None:
    """Remove a label nobody uses; built-in ones stay."""

    async def work(client: AdminClient) -> None:
        try:
            await client.call("admin.label.Remove", arg=label)
        except QubesLabelNotFoundError as error:
            hint = did_you_mean(label, list(await client.list_labels()))
            raise CliError(str(error), hint=hint or "insula label ls") from error

    with_daemon(work)
