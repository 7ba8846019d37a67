"""The daemon itself: ours, beyond the published methods (docs/protocols/insula-admin.md)."""

from __future__ import annotations

import json

from insula.admin.call import Call, Context


async def status(context: Context, call: Call) -> str:
    """One JSON object."""
    return json.dumps(dict(context.daemon.status()), sort_keys=True)


async def shut_down(context: Context, call: Call) -> str:
    """Answers when every qube is stopped; the daemon ends right after."""
    await context.daemon.shut_down()
    return ""
