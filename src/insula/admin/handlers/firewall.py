"""The firewall of a qube: what it may reach, as rules that its net qube carries out (admin-api §7)."""

from __future__ import annotations

import time

from insula.admin.arguments import ascii_text
from insula.admin.call import Call, Context
from insula.events.types import Event
from insula.model.errors import QubesValueError
from insula.model.qubesdb_keys import valid_rules
from insula_proto.firewall import FirewallError, format_rules, parse_rules

MAX_RULES_TEXT = 65536
"""Bytes of all rules of a qube: what its net qube is told of them must fit the keys it may have."""


async def get(context: Context, call: Call) -> str:
    return format_rules(valid_rules(call.dest.firewall, time.time()))


async def set_rules(context: Context, call: Call) -> str:
    """:raise QubesValueError: a line is no rule; the rules stay as they are."""
    if len(call.untrusted_payload) > MAX_RULES_TEXT:
        raise QubesValueError(f"Firewall rules have at most {MAX_RULES_TEXT} bytes together")
    try:
        rules = parse_rules(ascii_text(call.untrusted_payload, "Firewall rules"))
    except FirewallError as error:
        raise QubesValueError(f"Firewall rules: {error}") from error
    context.commit(context.store.system.with_qube(call.dest.with_firewall(rules)))
    context.bus.publish(Event(call.dest.name, "firewall-changed", {}))
    await context.engine.firewall_changed(call.dest.name)
    return ""


async def reload(context: Context, call: Call) -> str:
    """Have the net qube carry out the rules anew."""
    await context.engine.firewall_changed(call.dest.name)
    return ""
