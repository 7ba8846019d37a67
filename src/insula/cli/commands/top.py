"""``insula top``: what the running qubes really use, as it changes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.options import Json
from insula.cli.table import Cell, Column
from insula.cli.text import KIB, size_text
from insula.cli.usage import HostUsage, Usage, Watcher, host_usage

CPU_SAMPLE_S = 0.5
"""Between the two samples that a single table needs for its CPU column."""
NOTHING = "-"
BUSY_PERCENT = 80.0

COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("MEMORY", right=True),
    Column("ASSIGNED", right=True),
    Column("CPU %", right=True),
    Column("DISK", right=True),
)

app = typer.Typer(add_completion=False)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one table and end, as without a terminal.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, max=3600, metavar="SECONDS", help="Between two looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show what each running qube uses: memory (shared pages in equal parts), CPU (100 is one CPU), disk."""

    async def work(client: AdminClient) -> None:
        if as_json or once or not output.is_terminal(sys.stdout):
            await show_once(client, as_json=as_json)
        else:
            await follow(client, interval)

    with_daemon(work)


async def show_once(client: AdminClient, *, as_json: bool) -> None:
    watcher = Watcher(client)
    if await watcher.look():
        await asyncio.sleep(CPU_SAMPLE_S)
    usages, host = await watcher.look(), await host_usage(client)
    if as_json:
        output.print_json(as_object(usages, host))
        return
    output.print_line(headline(usages, host))
    output.print_table(COLUMNS, rows(usages))


async def follow(client: AdminClient, interval: float) -> None:
    """Redraw until interrupted."""
    from insula.cli.rich_live import live_page  # noqa: PLC0415 - rich is slow to import

    watcher = Watcher(client)
    with live_page() as draw:
        while True:
            usages = await watcher.look()
            draw(headline(usages, await host_usage(client)), COLUMNS, rows(usages))
            await asyncio.sleep(interval)


def headline(usages: Sequence[Usage], host: HostUsage) -> str:
    used = size_text(sum(usage.memory_kib or 0 for usage in usages) * KIB)
    total, available = size_text(host.memory_kib * KIB), size_text(host.available_kib * KIB)
    count = f"{len(usages)} qube{'' if len(usages) == 1 else 's'}"
    parts = [
        f"{count} with {used}; this machine: {available} of {total} available, load {host.load:.1f} on {host.cpus}"
    ]
    if host.waiting:
        parts.append(f"{host.waiting} in waiting with {size_text(host.waiting_kib * KIB)}")
    if host.start_memory_mib:
        parts.append(f"{host.startable} more of {host.start_memory_mib} MiB could be started")
    return "; ".join(parts)


def rows(usages: Sequence[Usage]) -> list[list[Cell | str]]:
    """Cells of the table, the largest memory first."""
    ordered = sorted(usages, key=lambda usage: (-(usage.memory_kib or 0), usage.name))
    return [
        [
            Cell(usage.name, style="bold"),
            output.state_cell(usage.state),
            _kib(usage.memory_kib),
            _kib(usage.assigned_kib),
            _percent(usage.cpu_percent),
            size_text(usage.disk_bytes),
        ]
        for usage in ordered
    ]


def _kib(kib: int | None) -> str:
    return NOTHING if kib is None else size_text(kib * KIB)


def _percent(percent: float | None) -> Cell | str:
    if percent is None:
        return NOTHING
    return Cell(f"{percent:.0f}", style="yellow" if percent >= BUSY_PERCENT else "")


def as_object(usages: Sequence[Usage], host: HostUsage) -> dict[str, object]:
    return {
        "host": {
            "memory_kib": host.memory_kib,
            "available_kib": host.available_kib,
            "cpus": host.cpus,
            "load": host.load,
            "in_waiting": {"machines": host.waiting, "memory_kib": host.waiting_kib},
            "startable": {"count": host.startable, "memory_mib": host.start_memory_mib},
        },
        "qubes": [
            {
                "name": usage.name,
                "state": usage.state,
                "memory_kib": usage.memory_kib,
                "assigned_kib": usage.assigned_kib,
                "cpu_percent": None if usage.cpu_percent is None else round(usage.cpu_percent, 1),
                "disk_bytes": usage.disk_bytes,
            }
            for usage in usages
        ],
    }
