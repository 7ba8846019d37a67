"""``insula tags``: tags of a qube, which rules refer to."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, CliError, did_you_mean
from insula.cli.options import Json, Qube
from insula.model.errors import QubesTagNotFoundError

app = typer.Typer(add_completion=False)


@app.command()
def tags(
    qube: Qube,
    tag: Annotated[
        str | None,
        typer.Argument(metavar="TAG", help="Only say whether it has this one.", autocompletion=completion.tags),
    ] = None,
    add: Annotated[list[str] | None, typer.Option("--add", "-a", metavar="TAG", help="May be repeated.")] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", "-D", metavar="TAG", help="May be repeated.", autocompletion=completion.tags),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change tags. `insula tags QUBE --add work --remove old`."""
    if add or remove:
        with_daemon(lambda client: change(client, qube, add or [], remove or []))
        return
    found = sorted(with_daemon(lambda client: client.list_tags(qube)))
    if tag is not None:
        if tag not in found:
            raise CliError(f"{qube} has no tag {tag!a}", hint=did_you_mean(tag, found), exit_code=REFUSED)
        found = [tag]
    if as_json:
        output.print_json(found)
    else:
        for name in found:
            output.print_line(name)


async def change(client: AdminClient, qube: str, add: list[str], remove: list[str]) -> None:
    for tag in add:
        await client.add_tag(qube, tag)
    for tag in remove:
        try:
            await client.remove_tag(qube, tag)
        except QubesTagNotFoundError as error:
            hint = did_you_mean(tag, await client.list_tags(qube))
            raise CliError(str(error), hint=hint or f"insula tags {qube} lists them") from error
