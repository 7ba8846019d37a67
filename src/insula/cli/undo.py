"""Nothing half-made: a qube that could not be finished is removed again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from insula.admin.client import AdminClient
from insula.cli.output import say
from insula.model.errors import InsulaError


@contextlib.asynccontextmanager
async def removed_on_failure(client: AdminClient, name: str) -> AsyncIterator[None]:
    """If the block fails or is interrupted, remove the qube ``name`` (just made by the caller) and say so."""
    try:
        yield
    except BaseException:
        try:
            await client.remove(name)
        except InsulaError as error:
            say(f"{name} is unfinished and could not be removed: {error}")
        else:
            say(f"{name} was removed again")
        raise
