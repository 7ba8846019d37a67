"""``insula forward``: ports of a qube's net qube that lead to it."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, CliError
from insula.cli.options import Json, Qube
from insula.cli.table import Column
from insula.model.errors import QubesFeatureNotFoundError
from insula.model.forwards import FEATURE
from insula_proto.forward import Forward, ForwardError, format_forwards, parse_forward, parse_forwards

FORM = "PROTOCOL:PORT:TARGET, for example tcp:8080:80"

app = typer.Typer(add_completion=False)


@app.command()
def forward(
    qube: Qube,
    add: Annotated[
        list[str] | None, typer.Option("--add", "-a", metavar="FORWARD", help=f"May be repeated; {FORM}.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-D", metavar="FORWARD", help="May be repeated; as it is listed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change which ports of a qube's net qube lead to it. What arrives there from outside goes to its port."""
    if add or remove:
        added, removed = [_one(word) for word in add or []], [_one(word) for word in remove or []]
        with_daemon(lambda client: change(client, qube, added, removed))
        return
    forwards = with_daemon(lambda client: load(client, qube))
    if as_json:
        output.print_json([as_object(one) for one in forwards])
        return
    columns = [Column("PROTOCOL"), Column("PORT", right=True), Column("TARGET", right=True)]
    output.print_table(columns, [[one.protocol, str(one.port), str(one.target)] for one in forwards])


def as_object(one: Forward) -> dict[str, object]:
    return {"protocol": one.protocol, "port": one.port, "target": one.target}


def text_of(one: Forward) -> str:
    """For a line of text: whence, and where to."""
    return f"{one.protocol} {one.port} → {one.target}"


def _one(word: str) -> Forward:
    try:
        return parse_forward(word)
    except ForwardError as error:
        raise CliError(str(error), hint=FORM, exit_code=REFUSED) from error


async def load(client: AdminClient, qube: str) -> list[Forward]:
    try:
        value = await client.call("admin.vm.feature.Get", qube, arg=FEATURE)
    except QubesFeatureNotFoundError:
        return []
    return parse_forwards(value.decode("ascii"))


async def change(client: AdminClient, qube: str, added: list[Forward], removed: list[Forward]) -> None:
    forwards = await load(client, qube)
    for one in removed:
        if one not in forwards:
            hint = f"insula forward {qube} lists them"
            raise CliError(f"{qube} has no forwarded port {one}", hint=hint, exit_code=REFUSED)
    kept = [one for one in forwards if one not in removed and one not in added]
    await client.set_feature(qube, FEATURE, format_forwards([*kept, *added]))
