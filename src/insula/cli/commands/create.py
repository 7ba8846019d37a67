"""``insula create``: make a qube, completely or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon_and_board
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json
from insula.cli.progress import Board
from insula.cli.undo import removed_on_failure
from insula.model.errors import InsulaError, QubesNoSuchPropertyError
from insula.model.klass import Klass

WITHOUT_TEMPLATE = frozenset(str(klass) for klass in Klass if not klass.has_template)

app = typer.Typer(add_completion=False)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new qube.")],
    label: Annotated[
        str, typer.Option("--label", "-l", help="Colour: how much you trust it.", autocompletion=completion.labels)
    ],
    klass: Annotated[
        str,
        typer.Option("--class", "-C", metavar="CLASS", help="Class of the qube.", autocompletion=completion.classes),
    ] = "AppVM",
    template: Annotated[
        str | None,
        typer.Option("--template", "-t", help="Template; without: the default one.", autocompletion=completion.qubes),
    ] = None,
    prop: Annotated[
        list[str] | None, typer.Option("--prop", metavar="NAME=VALUE", help="Set a property; may be repeated.")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option("--pool", metavar="POOL|VOLUME=POOL", help="Where its volumes are kept; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a qube. If a property is refused, the qube is removed again."""
    properties = assignments(prop or [], "--prop")
    everywhere, pools = parse_pools(pool or [])
    if template is not None and klass in WITHOUT_TEMPLATE:
        raise CliError(
            f"a {klass} has no template", hint=f"insula clone {template} {name} --class {klass}", exit_code=USAGE
        )

    async def work(client: AdminClient, board: Board) -> None:
        with board.step(name, "creating", "created"):
            await client.create_qube(klass, name, label, template=template, pool=everywhere, pools=pools or None)
            async with removed_on_failure(client, name):
                for key, value in properties.items():
                    await set_new_property(client, name, key, value)

    with_daemon_and_board(work)
    if as_json:
        output.print_json({"name": name, "class": klass, "label": label})


async def set_new_property(client: AdminClient, qube: str, key: str, value: str) -> None:
    """Set a property the user named. :raise CliError: it was refused; says which one."""
    try:
        await client.set_property(key, value, qube)
    except QubesNoSuchPropertyError as error:
        hint = did_you_mean(key, await client.list_properties(qube))
        raise CliError(str(error), hint=hint or "insula prefs QUBE lists the properties") from error
    except InsulaError as error:
        raise CliError(f"property {key}: {error}") from error


def assignments(words: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping. :raise CliError: usage."""
    values: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise CliError(f"{option} {word}: write NAME=VALUE", exit_code=USAGE)
        if key in values:
            raise CliError(f"{option} {key} is given twice", exit_code=USAGE)
        values[key] = value
    return values


def parse_pools(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """One pool for all volumes, or a pool for some. :raise CliError: both, or two for all."""
    everywhere = [word for word in words if "=" not in word]
    pools = assignments([word for word in words if "=" in word], "--pool")
    if len(everywhere) > 1 or (everywhere and pools):
        raise CliError("--pool: give one pool for all volumes, or VOLUME=POOL for each", exit_code=USAGE)
    return (everywhere[0] if everywhere else None), pools
