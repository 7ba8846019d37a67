"""``insula prefs``: properties of a qube, or of the system."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient, PropertyValue
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json
from insula.cli.table import Cell, Column
from insula.model.errors import QubesNoSuchPropertyError

NONE_WORD = "none"
"""What people write for "no qube"; on the wire it is the empty value (admin-api §3)."""

app = typer.Typer(add_completion=False)


@app.command()
def prefs(
    qube: Annotated[
        str | None,
        typer.Argument(
            metavar="QUBE",
            help="Name of the qube; left out with --global.",
            autocompletion=completion.qubes_or_properties,
        ),
    ] = None,
    prop: Annotated[
        str | None,
        typer.Argument(metavar="PROP", help="Print only this property.", autocompletion=completion.properties),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Set it; none: no qube.")] = None,
    default: Annotated[
        str | None,
        typer.Option(
            "--default", "-D", metavar="PROP", help="Back to its default.", autocompletion=completion.properties
        ),
    ] = None,
    is_global: Annotated[bool, typer.Option("--global", help="Properties of the system.")] = False,
    help_properties: Annotated[bool, typer.Option("--help-properties", help="Say what each property means.")] = False,
    as_json: Json = False,
) -> None:
    """Show or set properties. `insula prefs QUBE PROP VALUE` sets, `-D PROP` goes back to the default."""
    if is_global:
        if value is not None:
            raise CliError("with --global there is no QUBE", exit_code=USAGE)
        qube, prop, value = None, qube, prop
    elif qube is None:
        raise CliError("name a qube, or use --global", exit_code=USAGE)
    if default is not None and prop is not None:
        raise CliError("-D takes the property, nothing else is given", exit_code=USAGE)

    if help_properties:
        print_help(with_daemon(lambda client: ask_help(client, qube)), as_json=as_json)
    elif default is not None:
        with_daemon(lambda client: reset(client, qube, default))
    elif prop is None:
        print_all(with_daemon(lambda client: client.get_properties(qube)), as_json=as_json)
    elif value is None:
        print_one(with_daemon(lambda client: get(client, qube, prop)), as_json=as_json)
    else:
        with_daemon(lambda client: put(client, qube, prop, value))


async def get(client: AdminClient, qube: str | None, prop: str) -> PropertyValue:
    """:raise CliError: no such property; guesses which one was meant."""
    try:
        return await client.get_property(prop, qube)
    except QubesNoSuchPropertyError as error:
        hint = did_you_mean(prop, await client.list_properties(qube))
        raise CliError(str(error), hint=hint or "without a property they are all listed") from error


async def put(client: AdminClient, qube: str | None, prop: str, value: str) -> None:
    current = await get(client, qube, prop)
    is_none = current.type == "vm" and value.lower() == NONE_WORD
    await client.set_property(prop, "" if is_none else value, qube)


async def reset(client: AdminClient, qube: str | None, prop: str) -> None:
    await get(client, qube, prop)
    await client.reset_property(prop, qube)


async def ask_help(client: AdminClient, qube: str | None) -> dict[str, str]:
    return {name: await client.property_help(name, qube) for name in sorted(await client.list_properties(qube))}


def typed(value: PropertyValue) -> str | int | bool | None:
    """The value as JSON has it."""
    if value.type == "str":
        return value.value
    if not value.value:
        return None
    match value.type:
        case "int":
            return int(value.value)
        case "bool":
            return value.value == "True"
    return value.value


def print_all(values: list[PropertyValue], *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {item.name: {"value": typed(item), "default": item.is_default, "type": item.type} for item in values}
        )
        return
    output.print_table(
        [Column("PROPERTY"), Column("VALUE"), Column("")],
        [
            [
                item.name,
                Cell(shown(item), style="dim" if item.is_default else "bold"),
                Cell("default" if item.is_default else "", style="dim"),
            ]
            for item in values
        ],
    )


def print_one(value: PropertyValue, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"name": value.name, "value": typed(value), "default": value.is_default, "type": value.type})
    else:
        output.print_line(shown(value))


def print_help(texts: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        output.print_json(texts)
    else:
        output.print_table([Column("PROPERTY"), Column("MEANING")], [[name, text] for name, text in texts.items()])


def shown(value: PropertyValue) -> str:
    return NONE_WORD if value.type == "vm" and not value.value else value.value
