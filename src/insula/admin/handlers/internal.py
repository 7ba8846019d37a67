"""For the host's own parts: what the policy engine decides on."""

from __future__ import annotations

import json

from insula.admin.call import Call, Context
from insula.admin.handlers.qubes import power_state
from insula.model.properties import View, names_for, view
from insula.model.qube import PropertyValue, Qube


async def get_system_info(context: Context, call: Call) -> str:
    """JSON ``{"domains": {NAME: {…}}}`` (admin-api §2, internal socket)."""
    qubes = context.store.system.sorted_qubes()
    return json.dumps({"domains": {qube.name: _describe(context, qube) for qube in qubes}})


def _describe(context: Context, qube: Qube) -> dict[str, object]:
    system = context.store.system
    here, known = view(system, qube), frozenset(names_for(qube.klass))
    return {
        "tags": sorted(qube.tags),
        "type": str(qube.klass),
        "internal": bool(qube.features.get("internal")),
        "template_for_dispvms": bool(_value(here, known, "template_for_dispvms")),
        "default_dispvm": _value(here, known, "default_dispvm"),
        "icon": here.text("icon"),
        "label": system.label(qube.label).color_text,
        "guivm": _value(here, known, "guivm"),
        "relayvm": _value(here, known, "relayvm"),
        "transport_rpc": _value(here, known, "transport_rpc"),
        "power_state": str(power_state(context, qube)),
        "uuid": str(qube.uuid),
    }


def _value(here: View, known: frozenset[str], name: str) -> PropertyValue:
    """None for properties that the class does not have."""
    return here.value(name) if name in known else None
