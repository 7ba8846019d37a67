"""Tags of qubes."""

from __future__ import annotations

from insula.admin.call import Call, Context
from insula.model import tags


async def list_tags(context: Context, call: Call) -> str:
    return "".join(f"{tag}\n" for tag in sorted(call.dest.tags))


async def get(context: Context, call: Call) -> str:
    """``1`` or ``0``."""
    return "1" if tags.parse_tag(call.untrusted_arg) in call.dest.tags else "0"


async def set_tag(context: Context, call: Call) -> str:
    tag = tags.parse_tag(call.untrusted_arg)
    tags.check_may_change(tag, call.source.name)
    context.commit(tags.with_tag(context.store.system, call.dest.name, tag))
    return ""


async def remove(context: Context, call: Call) -> str:
    tag = tags.parse_tag(call.untrusted_arg)
    tags.check_may_change(tag, call.source.name)
    context.commit(tags.without_tag(context.store.system, call.dest.name, tag))
    return ""
