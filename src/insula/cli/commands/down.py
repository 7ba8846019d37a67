"""``insula down``: stop every qube, then the daemon."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable
from insula.cli import output
from insula.cli.connection import with_running_daemon
from insula.cli.failures import CliError
from insula.cli.options import Json
from insula.cli.progress import board
from insula.cli.text import seconds_text
from insula.daemon.autostart import is_running
from insula.daemon.paths import Paths
from insula.model.errors import InsulaError
from insula.model.names import ADMIN_NAME

DEFAULT_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 30.0
"""For what is left after the time was up."""
GONE_TIMEOUT_S = 60.0
"""For the daemon to close its rooms once the qubes are stopped."""
POLL_S = 0.05

app = typer.Typer(add_completion=False)


@app.command()
def down(
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long qubes may take to shut down before they are killed."),
    ] = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Stop everything: every qube cleanly (those that take too long are killed), then the daemon."""
    stopped = with_running_daemon(lambda client: stop_everything(client, timeout))
    if as_json:
        output.print_json({"was_running": stopped is not None, "stopped": stopped or []})
    elif stopped is None:
        output.say("nothing was running")


async def stop_everything(client: AdminClient, timeout: float) -> list[str]:
    """Returns the qubes that were on. :raise CliError: the daemon is still there afterwards."""
    names = [row.name for row in await client.list_qubes() if row.state.is_on and row.name != ADMIN_NAME]
    with board() as lines:
        with lines.step("qubes", f"shutting down {', '.join(names) or 'none'}"):
            try:
                async with asyncio.timeout(timeout):
                    await client.shutdown_daemon()
            except TimeoutError:
                output.say(f"some qubes took longer than {seconds_text(timeout)} and are killed")
                await kill_rest(client)
        with lines.step("insulad", "ending", "and every qube stopped"):
            await wait_until_gone()
    return names


async def kill_rest(client: AdminClient) -> None:
    """Kill what is still on, then ask again: nothing keeps the daemon any more."""
    for row in await client.list_qubes():
        if row.state.is_on and row.name != ADMIN_NAME:
            try:
                await client.kill(row.name)
            except InsulaError as error:
                output.say(f"{row.name}: {error}")
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await client.shutdown_daemon()
    except (DaemonUnavailable, AccessRefused):
        return  # the first request went through meanwhile
    except TimeoutError:
        raise CliError("some qubes could neither be shut down nor killed", hint="insula ls --running") from None


async def wait_until_gone() -> None:
    """:raise CliError:"""
    paths = Paths.from_environment()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while is_running(paths):
        if time.monotonic() > deadline:
            log_file = paths.logs / "insulad.log"
            raise CliError(f"insulad is still there after {seconds_text(GONE_TIMEOUT_S)}", hint=f"its log: {log_file}")
        await asyncio.sleep(POLL_S)
