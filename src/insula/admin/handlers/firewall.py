"""The firewall of a qube, as far as it exists: one rule that accepts everything.

There is no network between qubes yet, so there is nothing to filter. Reading gives the published default, which
is what clients copy when they clone a qube; writing anything else is refused rather than accepted and ignored.
"""

from __future__ import annotations

from insula.admin.call import Call, Context
from insula.model.errors import QubesNotImplementedError

DEFAULT_RULES = "action=accept\n"
"""admin-api §7: rule set of a new qube."""


async def get(context: Context, call: Call) -> str:
    return DEFAULT_RULES


async def set_rules(context: Context, call: Call) -> str:
    if call.untrusted_payload.rstrip(b"\n") != DEFAULT_RULES.rstrip("\n").encode():
        raise QubesNotImplementedError("Firewall rules other than 'action=accept' cannot be set yet")
    return ""
