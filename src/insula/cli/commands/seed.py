"""``insula template seed``: the frozen systems that qubes are forked from."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from insula.cli import output
from insula.cli.connection import with_daemon, with_daemon_and_board
from insula.cli.failures import CliError
from insula.cli.options import Json
from insula.cli.table import Cell, Column
from insula.cli.text import KIB, size_text

MINUTE, HOUR, DAY = 60, 3600, 86400

app = typer.Typer(add_completion=False, help="Frozen systems that qubes are forked from.")


@app.command("list")
def list_seeds(as_json: Json = False) -> None:
    """List seeds, the one used last first. They are made by themselves; removing one only costs time."""
    seeds = with_daemon(lambda client: client.seeds())
    if as_json:
        output.print_json(seeds)
        return
    columns = [
        Column("SEED"),
        Column("TEMPLATE"),
        Column("MEMORY", right=True),
        Column("VCPUS", right=True),
        Column("KERNEL"),
        Column("SIZE", right=True),
        Column("USED"),
        Column("IN WAITING", right=True),
    ]
    now = time.time()
    output.print_table(columns, [_row(seed, now) for seed in seeds])


def _row(seed: dict[str, Any], now: float) -> list[Cell | str]:
    return [
        Cell(seed["name"], "bold"),
        seed["template"],
        f"{seed['memory_mib']} MiB",
        str(seed["vcpus"]),
        seed["kernel"],
        size_text(seed["size"]),
        ago(now - seed["used_at"]),
        waiting_text(seed["waiting"]),
    ]


def waiting_text(waiting: dict[str, int]) -> str:
    """``1 (70 MiB)``: machines of that seed that wait to become qubes, and what they take together."""
    machines = waiting["machines"]
    return f"{machines} ({size_text(waiting['memory_kib'] * KIB)})" if machines else "-"


def ago(seconds: float) -> str:
    """``3 min ago``: one number, the largest unit that fits."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now"


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(metavar="TEMPLATE|QUBE", help="For its app qubes, or for this one.")],
    as_json: Json = False,
) -> None:
    """Make the seed for a template's app qubes (or for a qube with settings of its own) now, if there is none."""

    async def work(client: Any, board: Any) -> dict[str, Any]:
        with board.step(name, "making its seed", "seed ready"):
            seed: dict[str, Any] = await client.build_seed(name)
            return seed

    seed = with_daemon_and_board(work)
    if as_json:
        output.print_json(seed)


@app.command("drop")
def drop(
    names: Annotated[list[str] | None, typer.Argument(metavar="SEED…", help="Names, as 'list' shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    as_json: Json = False,
) -> None:
    """Remove seeds. Running qubes are not touched; later starts boot, or wait for a new seed."""
    if bool(names) == every:
        raise CliError("name the seeds to remove, or give --all", hint="insula template seed list")

    async def work(client: Any) -> list[str]:
        dropped = [seed["name"] for seed in await client.seeds()] if every else list(names or [])
        for name in dropped:
            await client.drop_seed(name)
        return dropped

    dropped = with_daemon(work)
    if as_json:
        output.print_json(dropped)
