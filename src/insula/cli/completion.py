"""What the shell offers after TAB: names the daemon knows.

Asks the daemon only if it runs already, and not for long: pressing TAB starts nothing and never hangs. Without a
daemon there are simply no suggestions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import typer

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable, MalformedAnswer
from insula.daemon.autostart import is_running
from insula.daemon.paths import Paths
from insula.model.errors import InsulaError
from insula.model.state import PowerState

TIMEOUT_S = 1.0
VOLUMES = ("kernel", "private", "root", "volatile")

Question = Callable[[AdminClient], Awaitable[list[str]]]


def qubes(incomplete: str) -> list[str]:
    async def ask(client: AdminClient) -> list[str]:
        return [row.name for row in await client.list_qubes()]

    return _matching(incomplete, ask)


def templates(incomplete: str) -> list[str]:
    async def ask(client: AdminClient) -> list[str]:
        return [row.name for row in await client.list_qubes() if row.klass == "TemplateVM"]

    return _matching(incomplete, ask)


def labels(incomplete: str) -> list[str]:
    async def ask(client: AdminClient) -> list[str]:
        return list(await client.list_labels())

    return _matching(incomplete, ask)


def classes(incomplete: str) -> list[str]:
    return _matching(incomplete, AdminClient.list_classes)


def pools(incomplete: str) -> list[str]:
    return _matching(incomplete, AdminClient.list_pools)


def states(incomplete: str) -> list[str]:
    return [state.lower() for state in PowerState if state.lower().startswith(incomplete)]


def volumes(incomplete: str) -> list[str]:
    return [name for name in VOLUMES if name.startswith(incomplete)]


def properties(ctx: typer.Context, incomplete: str) -> list[str]:
    """Of the qube given before, or the global ones."""
    qube = _given_qube(ctx)

    async def ask(client: AdminClient) -> list[str]:
        return await client.list_properties(qube)

    return _matching(incomplete, ask)


def qubes_or_properties(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the first word of ``prefs``: with ``--global`` it is a property of the system."""
    return properties(ctx, incomplete) if ctx.params.get("is_global") else qubes(incomplete)


def features(ctx: typer.Context, incomplete: str) -> list[str]:
    return _of_qube(ctx, incomplete, AdminClient.list_features)


def tags(ctx: typer.Context, incomplete: str) -> list[str]:
    return _of_qube(ctx, incomplete, AdminClient.list_tags)


def _of_qube(
    ctx: typer.Context, incomplete: str, question: Callable[[AdminClient, str], Awaitable[list[str]]]
) -> list[str]:
    qube = _given_qube(ctx)
    if qube is None:
        return []

    async def ask(client: AdminClient) -> list[str]:
        return await question(client, qube)

    return _matching(incomplete, ask)


def _given_qube(ctx: typer.Context) -> str | None:
    qube = ctx.params.get("qube")
    return qube if isinstance(qube, str) else None


def _matching(incomplete: str, question: Question) -> list[str]:
    paths = Paths.from_environment()
    if not is_running(paths):
        return []

    async def ask() -> list[str]:
        async with asyncio.timeout(TIMEOUT_S):
            return await question(AdminClient(paths.admin_socket))

    try:
        found = asyncio.run(ask())
    # A shell that wants suggestions cannot show an error.
    except (InsulaError, DaemonUnavailable, AccessRefused, MalformedAnswer, TimeoutError):
        return []
    return [name for name in found if name.startswith(incomplete)]
