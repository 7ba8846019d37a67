"""``insula pool``: where volumes are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient, PoolInfo
from insula.cli import completion, output
from insula.cli.commands.create import assignments
from insula.cli.connection import with_daemon
from insula.cli.failures import CliError, did_you_mean
from insula.cli.options import Json
from insula.cli.table import Column
from insula.cli.text import size_text
from insula.model.errors import PermissionDenied, QubesPoolNotFoundError

NOTHING = "-"

app = typer.Typer(add_completion=False, help="Places where volumes are kept.")

PoolName = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool.", autocompletion=completion.pools)]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List pools with their size and use."""

    async def work(client: AdminClient) -> list[PoolInfo]:
        return [await client.pool_info(name) for name in await client.list_pools()]

    infos = with_daemon(work)
    if as_json:
        output.print_json([as_object(info) for info in infos])
        return
    output.print_table(
        [Column("POOL"), Column("DRIVER"), Column("SIZE", right=True), Column("USED", right=True)],
        [[info.name, info.driver, amount(info.size), amount(info.usage)] for info in infos],
    )


@app.command("info")
def info(pool: PoolName, as_json: Json = False) -> None:
    """Everything a pool says about itself."""
    found = with_daemon(lambda client: ask(client, pool))
    if as_json:
        output.print_json(as_object(found))
        return
    rows = [["name", found.name], ["driver", found.driver], *([key, found.config[key]] for key in sorted(found.config))]
    rows += [["size", amount(found.size)], ["used", amount(found.usage)]]
    output.print_table([Column("KEY"), Column("VALUE")], rows)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new pool.")],
    driver: Annotated[str, typer.Argument(metavar="DRIVER", help="See `insula pool drivers`.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="For the driver; may be repeated.")
    ] = None,
) -> None:
    """Add a pool."""
    options = assignments(option or [], "--option")

    async def work(client: AdminClient) -> None:
        drivers = await client.pool_drivers()
        if driver not in drivers:
            hint = did_you_mean(driver, list(drivers)) or f"drivers: {', '.join(drivers)}"
            raise CliError(f"there is no storage driver {driver!a}", hint=hint)
        await client.add_pool(name, driver, options)

    with_daemon(work)


@app.command("remove")
def remove(pool: PoolName) -> None:
    """Remove a pool without volumes."""

    async def work(client: AdminClient) -> None:
        await ask(client, pool)
        await client.remove_pool(pool)

    with_daemon(work)


@app.command("drivers")
def drivers(as_json: Json = False) -> None:
    """List storage drivers and their options."""
    found = with_daemon(lambda client: client.pool_drivers())
    if as_json:
        output.print_json(found)
    else:
        output.print_table(
            [Column("DRIVER"), Column("OPTIONS")], [[name, " ".join(options)] for name, options in found.items()]
        )


async def ask(client: AdminClient, pool: str) -> PoolInfo:
    """:raise CliError: no such pool; guesses which one was meant."""
    try:
        return await client.pool_info(pool)
    except (PermissionDenied, QubesPoolNotFoundError) as error:
        known = await client.list_pools()
        if pool in known:
            raise
        raise CliError(f"no such pool: {pool!a}", hint=did_you_mean(pool, known) or "insula pool ls") from error


def as_object(info: PoolInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "driver": info.driver,
        "size": info.size,
        "usage": info.usage,
        "config": dict(info.config),
    }


def amount(size: int | None) -> str:
    return NOTHING if size is None else size_text(size)
