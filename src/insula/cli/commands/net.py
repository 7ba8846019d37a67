"""``insula net``: the chain of net qubes as a tree, the way a packet goes from right to left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.commands.ls import Line, describe
from insula.cli.connection import with_daemon
from insula.cli.options import Json
from insula.model.klass import Klass
from insula.model.uplink import Uplink

OUTSIDE = "the network of this computer"
NOWHERE = "nowhere"

app = typer.Typer(add_completion=False)


@app.command()
def net(as_json: Json = False) -> None:
    """Draw who reaches the network through whom, and who has none."""

    async def work(client: AdminClient) -> tuple[list[Line], set[str]]:
        rows = [row for row in await client.list_qubes() if row.klass not in (Klass.ADMINVM, Klass.REMOTEVM)]
        lines = await describe(client, rows)
        uplinks = [(line.row.name, await client.get_property("uplink", line.row.name)) for line in lines]
        return lines, {name for name, uplink in uplinks if uplink.value == Uplink.HOST}

    lines, outside = with_daemon(work)
    if as_json:
        output.print_json([_as_object(line, outside) for line in lines])
        return
    for text in tree(lines, outside):
        output.print_line(text)


def _as_object(line: Line, outside: set[str]) -> dict[str, object]:
    uplink = Uplink.HOST if line.row.name in outside else Uplink.NONE
    return {"name": line.row.name, "netvm": line.netvm or None, "uplink": uplink.value, "state": line.row.state.value}


def tree(lines: Sequence[Line], outside: set[str]) -> Iterator[str]:
    """A line each; ``outside``: names of those that lead to the host's network."""
    clients: dict[str, list[Line]] = {}
    for line in lines:
        clients.setdefault(line.netvm, []).append(line)
    providers = set(clients) - {""}
    first = clients.get("", [])
    roots = [line for line in first if line.row.name in outside]
    lonely = [line for line in first if line.row.name not in outside and line.row.name in providers]
    for title, members in ((OUTSIDE, roots), (NOWHERE, lonely)):
        if members:
            yield title
            yield from _branches(members, clients, "")
    without = [line.row.name for line in first if line not in roots and line not in lonely]
    if without:
        yield f"no network: {', '.join(without)}"


def _branches(members: Sequence[Line], clients: dict[str, list[Line]], indent: str) -> Iterator[str]:
    for line in members:
        is_last = line is members[-1]
        yield f"{indent}{'└─' if is_last else '├─'} {line.row.name}  {line.row.state.value}  {line.ip}".rstrip()
        below = indent + ("   " if is_last else "│  ")
        yield from _branches(clients.get(line.row.name, []), clients, below)
