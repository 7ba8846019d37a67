"""An update of a template that belongs to a connection: ours (docs/protocols/insula-admin.md)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from insula.admin import updates
from insula.admin.call import Call, Context
from insula.events.types import Event


async def open_update(context: Context, call: Call) -> AsyncGenerator[Event, None]:
    """Start the template and hold it until it has ended, or the caller hangs up."""
    async with aclosing(updates.hold(context, call.dest)) as events:
        async for event in events:
            yield event
