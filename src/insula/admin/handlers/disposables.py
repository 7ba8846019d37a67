"""A disposable that belongs to a connection: ours, beyond the published methods (docs/protocols/insula-admin.md)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from insula.admin.call import Call, Context
from insula.admin.leases import parse_options
from insula.events.types import Event


async def open_disposable(context: Context, call: Call) -> AsyncGenerator[Event, None]:
    """Make, start and hold a disposable of the destination (dom0: the default) until the caller hangs up."""
    options = parse_options(call.untrusted_payload)
    async with aclosing(context.leases.hold(context, call.source, call.dest, options)) as events:
        async for event in events:
            yield event
