"""``insula net``: the chain of net qubes as a tree, the way a packet goes from right to left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.commands.forward import as_object, load, text_of
from insula.cli.commands.ls import Line, describe
from insula.cli.connection import with_daemon
from insula.cli.options import Json
from insula.model.errors import QubesVMNotFoundError
from insula.model.klass import Klass
from insula.model.uplink import CARD_PREFIX, Uplink
from insula_proto.forward import Forward

OUTSIDE = "the network of this computer"
NOWHERE = "nowhere"

app = typer.Typer(add_completion=False)


@app.command()
def net(as_json: Json = False) -> None:
    """Draw who reaches the network through whom, and who has none."""

    async def work(client: AdminClient) -> tuple[list[Line], dict[str, str], dict[str, list[Forward]]]:
        rows = [row for row in await client.list_qubes() if row.klass not in (Klass.ADMINVM, Klass.REMOTEVM)]
        lines = await describe(client, rows)
        outside, forwards, found = {}, {}, []
        for line in lines:
            # A disposable may end, and be gone, at any moment.
            with suppress(QubesVMNotFoundError):
                uplink = (await client.get_property("uplink", line.row.name)).value
                if line.netvm:
                    forwards[line.row.name] = await load(client, line.row.name)
                if uplink != Uplink.NONE:
                    outside[line.row.name] = uplink
                found.append(line)
        return found, outside, forwards

    lines, outside, forwards = with_daemon(work)
    if as_json:
        output.print_json([_as_object(line, outside, forwards.get(line.row.name, ())) for line in lines])
        return
    for text in tree(lines, outside, forwards):
        output.print_line(text)


def _as_object(line: Line, outside: Mapping[str, str], forwards: Sequence[Forward]) -> dict[str, object]:
    return {
        "name": line.row.name,
        "netvm": line.netvm or None,
        "uplink": outside.get(line.row.name, Uplink.NONE.value),
        "state": line.row.state.value,
        "forwards": [as_object(one) for one in forwards],
    }


def tree(lines: Sequence[Line], outside: Mapping[str, str], forwards: Mapping[str, Sequence[Forward]]) -> Iterator[str]:
    """A line each; ``outside``: the uplink of those that have one; ``forwards``: ports of net qubes that lead there."""
    clients: dict[str, list[Line]] = {}
    for line in lines:
        clients.setdefault(line.netvm, []).append(line)
    first = clients.get("", [])
    providers = set(clients) - {""}
    below: dict[str, list[Line]] = {OUTSIDE: []}
    lonely = []
    without = []
    for line in first:
        uplink = outside.get(line.row.name)
        if uplink is not None:
            title = OUTSIDE if uplink == Uplink.HOST else f"network card {uplink.removeprefix(CARD_PREFIX)}"
            below.setdefault(title, []).append(line)
        elif line.row.name in providers:
            lonely.append(line)
        else:
            without.append(line.row.name)
    for title, members in (*below.items(), (NOWHERE, lonely)):
        if members:
            yield title
            yield from _branches(members, clients, forwards, "")
    if without:
        yield f"no network: {', '.join(without)}"


def _branches(
    members: Sequence[Line], clients: dict[str, list[Line]], forwards: Mapping[str, Sequence[Forward]], indent: str
) -> Iterator[str]:
    for line in members:
        is_last = line is members[-1]
        ports = ", ".join(map(text_of, forwards.get(line.row.name, ())))
        words = (line.row.name, line.row.state.value, line.ip, f"← {ports}" if ports else "")
        yield f"{indent}{'└─' if is_last else '├─'} {'  '.join(word for word in words if word)}"
        below = indent + ("   " if is_last else "│  ")
        yield from _branches(clients.get(line.row.name, []), clients, forwards, below)
