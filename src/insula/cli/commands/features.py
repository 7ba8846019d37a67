"""``insula features``: features of a qube."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json, Qube
from insula.cli.table import Column
from insula.model.errors import QubesFeatureNotFoundError

app = typer.Typer(add_completion=False)


@app.command()
def features(
    qube: Qube,
    feature: Annotated[
        str | None,
        typer.Argument(metavar="FEATURE", help="Print only this one.", autocompletion=completion.features),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Set it; '' means off.")] = None,
    unset: Annotated[
        str | None,
        typer.Option(
            "--unset",
            "--default",
            "-D",
            metavar="FEATURE",
            help="Forget it: the template decides.",
            autocompletion=completion.features,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set features. `insula features QUBE FEATURE VALUE` sets, `-D FEATURE` forgets."""
    if unset is not None:
        if feature is not None:
            raise CliError("-D takes the feature, nothing else is given", exit_code=USAGE)
        with_daemon(lambda client: forget(client, qube, unset))
    elif feature is None:
        print_all(with_daemon(lambda client: client.get_features(qube)), as_json=as_json)
    elif value is None:
        found = with_daemon(lambda client: get(client, qube, feature))
        if as_json:
            output.print_json({"name": feature, "value": found})
        else:
            output.print_line(found)
    else:
        with_daemon(lambda client: client.set_feature(qube, feature, value))


async def get(client: AdminClient, qube: str, feature: str) -> str:
    """The qube's own, else its template's. :raise CliError: none of them has it."""
    try:
        return await client.get_feature(qube, feature, check="Template")
    except QubesFeatureNotFoundError as error:
        raise await _not_found(client, qube, feature, error) from error


async def forget(client: AdminClient, qube: str, feature: str) -> None:
    try:
        await client.remove_feature(qube, feature)
    except QubesFeatureNotFoundError as error:
        raise await _not_found(client, qube, feature, error) from error


async def _not_found(client: AdminClient, qube: str, feature: str, error: QubesFeatureNotFoundError) -> CliError:
    hint = did_you_mean(feature, await client.list_features(qube))
    return CliError(str(error), hint=hint or f"insula features {qube} lists them")


def print_all(values: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        output.print_json(values)
    else:
        output.print_table([Column("FEATURE"), Column("VALUE")], [[name, values[name]] for name in sorted(values)])
