"""``insula service``: services that run or do not run in a qube. Kept as features ``service.NAME``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json, Qube
from insula.cli.table import Cell, Column
from insula.model.errors import QubesFeatureNotFoundError

PREFIX = "service."
"""admin-api §4, features."""

app = typer.Typer(add_completion=False)


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


@app.command()
def service(
    qube: Qube,
    name: Annotated[str | None, typer.Argument(metavar="SERVICE", help="Print only this one.")] = None,
    switch: Annotated[Switch | None, typer.Argument(metavar="on|off", help="Turn it on or off.")] = None,
    default: Annotated[
        str | None, typer.Option("--default", "-D", metavar="SERVICE", help="As the template has it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set services. `insula service QUBE SERVICE on` sets; it counts from the next start."""
    if default is not None:
        if name is not None:
            raise CliError("-D takes the service, nothing else is given", exit_code=USAGE)
        with_daemon(lambda client: forget(client, qube, default))
    elif name is not None and switch is not None:
        value = "1" if switch is Switch.ON else ""
        with_daemon(lambda client: client.set_feature(qube, PREFIX + name, value))
    else:
        services = with_daemon(lambda client: ask(client, qube))
        if name is not None:
            if name not in services:
                hint = did_you_mean(name, list(services)) or f"insula service {qube} {name} on"
                raise CliError(f"nothing is set for service {name!a} of {qube}", hint=hint)
            services = {name: services[name]}
        show(services, as_json=as_json)


async def ask(client: AdminClient, qube: str) -> dict[str, bool]:
    """Service → whether it is on, sorted; those set for the qube itself."""
    values = await client.get_features(qube)
    return {name.removeprefix(PREFIX): bool(values[name]) for name in sorted(values) if name.startswith(PREFIX)}


async def forget(client: AdminClient, qube: str, name: str) -> None:
    try:
        await client.remove_feature(qube, PREFIX + name)
    except QubesFeatureNotFoundError as error:
        hint = did_you_mean(name, list(await ask(client, qube)))
        raise CliError(f"nothing is set for service {name!a} of {qube}", hint=hint) from error


def show(services: dict[str, bool], *, as_json: bool) -> None:
    if as_json:
        output.print_json(services)
        return
    output.print_table(
        [Column("SERVICE"), Column("STATE")],
        [[name, Cell("on", "green") if is_on else Cell("off", "dim")] for name, is_on in services.items()],
    )
