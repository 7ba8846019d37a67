"""``insula events``: what happens, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Annotated

import typer

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable, EventRecord
from insula.cli import completion, output
from insula.cli.connection import with_daemon
from insula.model.names import ADMIN_NAME

RECONNECT_S = 1.0
"""As the published client waits (admin-api §6)."""

app = typer.Typer(add_completion=False)


@app.command()
def events(
    qube: Annotated[
        str | None, typer.Argument(metavar="QUBE", help="Only events of this one.", autocompletion=completion.qubes)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
) -> None:
    """Follow events until interrupted, one line each; reconnects if the daemon is restarted."""
    with_daemon(lambda client: follow(client, qube or ADMIN_NAME, as_json=as_json))


async def follow(client: AdminClient, dest: str, *, as_json: bool) -> None:
    """Never returns. :raise QubesVMNotFoundError:"""
    was_lost = False
    while True:
        with contextlib.suppress(DaemonUnavailable, AccessRefused):
            async with contextlib.aclosing(client.events(dest)) as stream:
                async for record in stream:
                    if was_lost:
                        output.say("connected again")
                        was_lost = False
                    show(record, as_json=as_json)
        if not was_lost:
            output.say("the connection to insulad was lost; waiting for it")
            was_lost = True
        await asyncio.sleep(RECONNECT_S)


def show(record: EventRecord, *, as_json: bool) -> None:
    now = time.time()
    if as_json:
        output.print_json_line(
            {"time": round(now, 3), "subject": record.subject, "event": record.name, "data": dict(record.kwargs)}
        )
        return
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    data = " ".join(f"{key}={value}" for key, value in record.kwargs.items())
    output.print_line(f"{clock} {record.subject or '-'} {record.name} {data}".rstrip())
    output.flush()
