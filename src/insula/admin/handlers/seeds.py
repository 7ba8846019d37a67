"""Frozen systems that qubes are forked from: ours, beyond the published methods (docs/protocols/insula-admin.md)."""

from __future__ import annotations

import json
import re

from insula.admin.call import Call, Context
from insula.lifecycle.seeds import Seed
from insula.lifecycle.standby import StandbyCount
from insula.model.errors import ProtocolError, QubesException

NONE = StandbyCount(0, 0, 0)
_NAME = re.compile(r"[0-9a-f]{16}")


async def list_seeds(context: Context, call: Call) -> str:
    """JSON list, the one used last first."""
    counts = await context.templates.in_waiting()
    return json.dumps([_as_object(seed, counts.get(seed.folder.name, NONE)) for seed in context.templates.seeds()])


async def build(context: Context, call: Call) -> str:
    """JSON object of the seed; answers when it can be used."""
    return json.dumps(_as_object(await context.templates.build_seed(call.dest.name)))


async def drop(context: Context, call: Call) -> str:
    if not _NAME.fullmatch(call.untrusted_arg):
        raise ProtocolError(f"Not the name of a seed: {call.untrusted_arg[:64]!a}")
    if not context.templates.drop_seed(call.untrusted_arg):
        raise QubesException(f"There is no seed {call.untrusted_arg}")
    return ""


def _as_object(seed: Seed, count: StandbyCount = NONE) -> dict[str, object]:
    return {
        "name": seed.folder.name,
        "template": seed.key.template,
        "kernel": seed.key.kernel.partition(" ")[0],
        "memory_mib": seed.key.memory_mib,
        "vcpus": seed.key.vcpus,
        "size": seed.size,
        "created_at": seed.created_at,
        "used_at": seed.used_at,
        "waiting": {"machines": count.waiting, "memory_kib": count.memory_kib, "taken": count.taken},
    }
