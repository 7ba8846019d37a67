"""``insula ls``: the qubes, what they are and what they use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from insula.admin.client import AdminClient, QubeRow
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.cli.label_colors import label_colors
from insula.cli.options import Json, SomeQubes
from insula.cli.table import Cell, Column
from insula.cli.text import KIB, size_text
from insula.model.errors import QubesFeatureNotFoundError, QubesVMNotFoundError
from insula.model.names import ADMIN_NAME, UPDATES

MAX_AT_ONCE = 32
MEMORY_TIMEOUT_S = 0.5
"""For the figures of all running qubes together; without them the table is still worth printing."""
NOTHING = "-"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Line:
    row: QubeRow
    label: str
    template: str
    netvm: str
    ip: str
    memory_kib: int | None
    """Memory of the host it takes now; None when it is off."""
    has_updates: bool
    """Whether it, or a qube made from it, has said so."""


@app.command()
def ls(
    qubes: SomeQubes = None,
    running: Annotated[bool, typer.Option("--running", help="Only qubes that are on.")] = False,
    state: Annotated[
        str | None, typer.Option(help="Only qubes in this state.", autocompletion=completion.states)
    ] = None,
    as_json: Json = False,
) -> None:
    """List qubes: class, state, label, template, net qube, memory, address, and which have updates."""

    async def work(client: AdminClient) -> tuple[list[Line], dict[str, str]]:
        rows = chosen(await client.list_qubes(), qubes or [])
        rows = [
            row
            for row in rows
            if (not running or row.state.is_on) and (state is None or row.state.lower() == state.lower())
        ]
        lines = await describe(client, rows)
        return lines, await label_colors(client, {line.label for line in lines})

    lines, colors = with_daemon(work)
    if as_json:
        output.print_json([as_object(line) for line in lines])
    else:
        print_lines(lines, colors)


def chosen(rows: Sequence[QubeRow], names: Sequence[str]) -> list[QubeRow]:
    """The rows of these names, or all. :raise QubesVMNotFoundError:"""
    for name in names:
        if all(row.name != name for row in rows):
            raise QubesVMNotFoundError(f"No such qube: {name!a}")
    return [row for row in rows if not names or row.name in names]


async def describe(client: AdminClient, rows: Sequence[QubeRow]) -> list[Line]:
    """Ask for the rest of each line; a qube removed meanwhile is left out."""
    slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(row: QubeRow) -> Line | None:
        async with slots:
            try:
                values = {item.name: item.value for item in await client.get_properties(row.name)}
            except QubesVMNotFoundError:
                return None
        has_updates = values.get("updateable") == "True" and await _has_updates(client, row.name)
        return Line(
            row=row,
            label=values.get("label", ""),
            template=values.get("template", ""),
            netvm=values.get("netvm", ""),
            ip=values.get("ip", ""),
            memory_kib=used.get(row.name),
            has_updates=has_updates,
        )

    used = await memory_used(client, [row.name for row in rows if row.state.is_on and row.name != ADMIN_NAME])
    lines = await asyncio.gather(*(one(row) for row in rows))
    return [line for line in lines if line is not None]


async def _has_updates(client: AdminClient, name: str) -> bool:
    try:
        return bool(await client.call("admin.vm.feature.Get", name, arg=UPDATES))
    except (QubesFeatureNotFoundError, QubesVMNotFoundError):
        return False


async def memory_used(client: AdminClient, names: Sequence[str]) -> dict[str, int]:
    """KiB of the host's memory these qubes use now; one that is just coming or going may be missing."""
    used: dict[str, int] = {}
    if not names:
        return used
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MEMORY_TIMEOUT_S), contextlib.aclosing(client.stats()) as stream:
            async for record in stream:
                if record.name == "vm-stats" and (figure := record.kwargs.get("memory_kb", "")).isdecimal():
                    used[record.subject] = int(figure)
                if used.keys() >= set(names):
                    break
    return used


def as_object(line: Line) -> dict[str, object]:
    return {
        "name": line.row.name,
        "class": line.row.klass,
        "state": line.row.state.value,
        "label": line.label,
        "template": line.template or None,
        "netvm": line.netvm or None,
        "memory_kib": line.memory_kib,
        "ip": line.ip or None,
        "uuid": str(line.row.uuid),
        "has_updates": line.has_updates,
    }


def print_lines(lines: Sequence[Line], colors: dict[str, str]) -> None:
    columns = [
        *(Column(title) for title in ("NAME", "CLASS", "STATE", "LABEL", "TEMPLATE", "NETVM")),
        Column("MEMORY", right=True),
        Column("IP"),
    ]
    # Only where there is something to be told.
    shows_updates = any(line.has_updates for line in lines)
    if shows_updates:
        columns.append(Column("UPDATES"))
    output.print_table(
        columns,
        [
            [
                Cell(line.row.name, style="bold"),
                line.row.klass,
                output.state_cell(line.row.state.value),
                output.label_cell(line.label, colors),
                line.template or NOTHING,
                line.netvm or NOTHING,
                NOTHING if line.memory_kib is None else size_text(line.memory_kib * KIB),
                line.ip or NOTHING,
                *(["available" if line.has_updates else NOTHING] if shows_updates else ()),
            ]
            for line in lines
        ],
    )
