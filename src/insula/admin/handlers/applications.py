"""Applications of a qube, for menus: ours, beyond the published methods (docs/protocols/insula-admin.md)."""

from __future__ import annotations

import msgspec

from insula.admin.call import Call, Context


async def list_applications(context: Context, call: Call) -> str:
    """As a JSON list; what a guest said of itself, and nothing the host found."""
    return msgspec.json.encode(context.applications.of(context.store.system, call.dest)).decode()
