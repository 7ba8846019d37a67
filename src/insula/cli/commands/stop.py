"""``insula stop``: shut qubes down cleanly and wait until they are."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.batch import Words, run_on
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError
from insula.cli.options import Json, SomeQubes
from insula.cli.step import Step
from insula.cli.text import seconds_text
from insula.model.errors import QubesVMNotStartedError, QubesVMShutdownTimeoutError
from insula.model.names import ADMIN_NAME

app = typer.Typer(add_completion=False)


@app.command()
def stop(
    qubes: SomeQubes = None,
    force: Annotated[bool, typer.Option("--force", help="Even if it is paused or others need it.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="How long to wait; without: its property shutdown_timeout."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All qubes that are on.")] = False,
    as_json: Json = False,
) -> None:
    """Shut qubes down and wait for it. What they had open is asked to save itself; `insula kill` does not ask."""
    if bool(qubes) == everything:
        raise CliError("name the qubes to stop, or use --all", exit_code=USAGE)
    names = with_daemon(running) if everything else qubes or []
    if not names:
        output.say("nothing was running")

    async def stop_one(client: AdminClient, name: str, step: Step) -> None:
        # All of them go: what another one needs may go in any order.
        await shut_down(client, name, step, force=force or everything, timeout=timeout)

    run_on(names, Words("shutting down", "stopped"), stop_one, as_json=as_json)


async def running(client: AdminClient) -> list[str]:
    return [row.name for row in await client.list_qubes() if row.state.is_on and row.name != ADMIN_NAME]


async def shut_down(client: AdminClient, name: str, step: Step, *, force: bool, timeout: float | None) -> None:
    """Shut one qube down; already halted is fine. :raise CliError: it took longer than ``timeout`` seconds."""
    try:
        if timeout is None:
            await client.shutdown(name, force=force, wait=True)
        else:
            await _within(client, name, force=force, timeout=timeout)
    except QubesVMNotStartedError:
        step.note = "was not running"


async def _within(client: AdminClient, name: str, *, force: bool, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await client.shutdown(name, force=force, wait=True)
                except QubesVMShutdownTimeoutError:
                    # The qube's own limit is shorter than what was asked for here: wait on.
                    if time.monotonic() >= deadline:
                        raise
    except TimeoutError:
        raise CliError(f"{name} did not shut down within {seconds_text(timeout)}", hint=f"insula kill {name}") from None
