"""From a command's coroutine to the daemon: one event loop, the daemon started if need be, errors with hints."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import typer

from insula.admin.client import AdminClient
from insula.cli.failures import NO_DAEMON, TERMINATED, CliError, describe
from insula.cli.progress import Board, board
from insula.daemon.autostart import ensure_daemon, is_running
from insula.daemon.paths import Paths
from insula.model import errors

T = TypeVar("T")


def with_daemon(work: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Run ``work(client)`` with a daemon that answers; start it if it does not run."""

    async def main() -> T:
        paths = Paths.from_environment()
        if not is_running(paths):
            with board() as lines, lines.step("insulad", "starting", "started"):
                await ensure_daemon(paths)
            await _show_notices(AdminClient(paths.admin_socket))
        return await _explained(AdminClient(paths.admin_socket), work)

    return run_async(main())


async def _show_notices(client: AdminClient) -> None:
    """What a daemon that was just started wants the user to know, e.g. that its state came from a copy (MC-63)."""
    notices = (await client.status()).get("notices", [])
    for notice in notices if isinstance(notices, list) else []:
        typer.echo(f"insula: note: {notice}", err=True)


def with_daemon_and_board(work: Callable[[AdminClient, Board], Awaitable[T]]) -> T:
    """As :func:`with_daemon`, with lines of progress to report to."""

    async def main(client: AdminClient) -> T:
        with board() as lines:
            return await work(client, lines)

    return with_daemon(main)


def with_running_daemon(work: Callable[[AdminClient], Awaitable[T]]) -> T | None:
    """Run ``work(client)`` if a daemon runs; None without starting one otherwise."""
    paths = Paths.from_environment()
    if not is_running(paths):
        return None

    async def main() -> T:
        return await _explained(AdminClient(paths.admin_socket), work)

    return run_async(main())


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` that ends cleanly on SIGTERM too: everything is cancelled, then the process exits.

    :raise typer.Exit: after SIGTERM. KeyboardInterrupt (SIGINT) comes through as itself.
    """
    was_terminated = False

    async def guarded() -> T:
        nonlocal was_terminated
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal was_terminated
            was_terminated = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await main
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if was_terminated:
            raise typer.Exit(TERMINATED) from None
        raise


async def explained(client: AdminClient, error: errors.InsulaError) -> CliError:
    """The error with its hint; asks the daemon for names where that helps to guess what was meant."""
    names: list[str] = []
    if isinstance(error, errors.QubesVMNotFoundError):
        with contextlib.suppress(errors.InsulaError):
            names = [row.name for row in await client.list_qubes()]
    failure = describe(error, names)
    assert failure is not None, "every InsulaError is described"
    return CliError(failure.message, hint=failure.hint, exit_code=failure.exit_code)


async def _explained(client: AdminClient, work: Callable[[AdminClient], Awaitable[T]]) -> T:
    try:
        return await work(client)
    except errors.InsulaError as error:
        raise await explained(client, error) from error


def not_running() -> CliError:
    """For commands that only make sense with a daemon and do not start one."""
    return CliError(
        "insulad does not run", hint="any command that needs it starts it, for example insula ls", exit_code=NO_DAEMON
    )
