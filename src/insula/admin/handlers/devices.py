"""Devices: none can be given to qubes yet, so every list is empty; which interfaces are denied is a property."""

from __future__ import annotations

from insula.admin.call import Call, Context
from insula.model.properties import view

CODE_LENGTH = 7
"""Characters of an interface code; admin-api §8."""


async def list_nothing(context: Context, call: Call) -> str:
    return ""


async def list_denied(context: Context, call: Call) -> str:
    """One interface code a line, without a final newline (as published)."""
    codes = view(context.store.system, call.dest).text("devices_denied") if call.dest.klass.has_machine else ""
    return "\n".join(codes[start : start + CODE_LENGTH] for start in range(0, len(codes), CODE_LENGTH))
